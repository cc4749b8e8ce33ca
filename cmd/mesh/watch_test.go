// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mesh.internal/mesh/cmd/internal/api"
)

// life is what a daemon says until it ends.
type life struct {
	events []api.Event
	err    error
}

// daemons are connections, one after the other; the last one stays until ctx ends.
func daemons(lives ...life) func(context.Context, func(api.Event) error) error {
	return func(ctx context.Context, f func(api.Event) error) error {
		l := lives[0]
		for _, e := range l.events {
			e.At = time.Date(2026, 11, 30, 12, 0, 0, 0, time.Local)
			if err := f(e); err != nil {
				return err
			}
		}
		if lives = lives[1:]; len(lives) == 0 {
			<-ctx.Done()
			return ctx.Err()
		}
		return l.err
	}
}

func event(kind, name, addr string, more ...func(*api.Event)) api.Event {
	e := api.Event{Kind: kind}
	if name != "" {
		e.Host = &api.Host{Name: name, FQDN: name + ".mesh.internal", Owner: "nibz", Addrs: []netip.Addr{netip.MustParseAddr(addr)}}
	}
	for _, f := range more {
		f(&e)
	}
	return e
}

func TestWatch(t *testing.T) {
	ready := event(api.Ready, "", "")
	is := func(name, addr string) api.Event { return event(api.Is, name, addr) }
	changed := func(e *api.Event) {
		before := *e.Host
		before.Addrs = []netip.Addr{netip.MustParseAddr("10.11.0.1")}
		e.Before, e.Changed = &before, []string{"addresses"}
	}
	first := life{[]api.Event{is("a", "10.11.0.1"), is("b", "10.11.0.2"), is("c", "10.11.0.3"), ready, event(api.Added, "d", "10.11.0.4"), event(api.Changed, "a", "10.11.0.5", changed)}, api.ErrEnded}
	away := life{nil, fmt.Errorf("gone: %w", api.ErrEnded)}
	second := life{[]api.Event{is("a", "10.11.0.5"), is("c", "10.11.0.9"), is("e", "10.11.0.6"), ready, event(api.Removed, "e", "10.11.0.6")}, nil}
	for _, c := range []struct {
		name  string
		w     watch
		lives []life
		want  string
	}{
		{"changes", watch{}, []life{first}, "added d 10.11.0.4 of nibz|changed a addresses: 10.11.0.1 → 10.11.0.5|"},
		{"all", watch{all: true, names: []string{"b", "c.mesh.internal"}}, []life{first}, "is b 10.11.0.2 of nibz|is c 10.11.0.3 of nibz|"},
		{"a restart", watch{}, []life{first, away, away, second},
			"added d 10.11.0.4 of nibz|changed a addresses: 10.11.0.1 → 10.11.0.5|meshd is away; waiting for it|removed b 10.11.0.2 of nibz|changed c addresses: 10.11.0.3 → 10.11.0.9|" +
				"removed d 10.11.0.4 of nibz|added e 10.11.0.6 of nibz|removed e 10.11.0.6 of nibz|"},
		{"one name", watch{names: []string{"d"}}, []life{first, second}, "added d 10.11.0.4 of nibz|meshd is away; waiting for it|removed d 10.11.0.4 of nibz|"},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var out strings.Builder
			c.w.out, c.w.log, c.w.again, c.w.connect = &out, &out, time.Second, daemons(c.lives...)
			if err := c.w.run(ctx); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			var got strings.Builder
			for line := range strings.Lines(out.String()) {
				got.WriteString(strings.Join(strings.Fields(strings.TrimPrefix(line, "12:00:00")), " ") + "|")
			}
			if got.String() != c.want {
				t.Errorf("%s: got\n%s\nwant\n%s", c.name, got.String(), c.want)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) { // JSON, and who is not there at the beginning is not waited for
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var out strings.Builder
		w := watch{json: true, all: true, out: &out, log: &out, connect: daemons(first)}
		w.run(ctx)
		n := 0
		for d := json.NewDecoder(strings.NewReader(out.String())); d.More(); n++ {
			var e api.Event
			if err := d.Decode(&e); err != nil || e.Host == nil {
				t.Fatalf("%v in %s", err, out.String())
			}
		}
		if n != 5 {
			t.Errorf("%d events: %s", n, out.String())
		}
		w = watch{out: &out, log: &out, connect: daemons(away, second)}
		if err := w.run(t.Context()); !errors.Is(err, api.ErrEnded) {
			t.Errorf("nobody there: %v", err)
		}
	})
}
