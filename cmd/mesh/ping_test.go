// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mesh.internal/mesh/cmd/internal/api"
)

// answers are what a ping gets, one after the other, the last one again and again.
func answers(all ...api.Pong) func(context.Context) (api.Pong, error) {
	return func(context.Context) (api.Pong, error) {
		p := all[0]
		if len(all) > 1 {
			all = all[1:]
		}
		p.Name, p.Direct = "bkero", p.Way.Direct()
		return p, nil
	}
}

var (
	direct  = api.Pong{RTT: 0.8, Way: api.Way{Endpoint: "192.0.2.7:7655"}}
	relayed = api.Pong{RTT: 12.34, Way: api.Way{Via: []string{"spencer", "nibz"}}}
	silent  = api.Pong{Error: "no answer of bkero in 2s"}
)

func TestPing(t *testing.T) {
	for _, c := range []struct {
		name    string
		p       pings
		answers []api.Pong
		want    []string
		fails   string
		took    time.Duration
	}{
		{"some", pings{count: 3}, []api.Pong{relayed, silent, direct}, []string{"   1    12.3 ms  via spencer, nibz\n", "   2  no answer of bkero in 2s\n", "   3    0.80 ms  direct 192.0.2.7:7655\n",
			"3 sent, 2 answered, 33% lost; round trip min 0.80 ms, avg 6.57 ms, max 12.3 ms"}, "", 2 * time.Second},
		{"until direct", pings{untilDirect: true}, []api.Pong{relayed, relayed, direct}, []string{"3 sent"}, "", 2 * time.Second},
		{"never direct", pings{untilDirect: true}, []api.Pong{relayed}, nil, "the way to bkero has not become direct", 30 * time.Second},
		{"direct and silent", pings{untilDirect: true, count: 1}, []api.Pong{{Error: "no answer", Way: direct.Way}}, nil, "has not become direct", 0},
		{"never", pings{count: 2}, []api.Pong{silent}, []string{"2 sent, 0 answered, 100% lost\n"}, "bkero did not answer", time.Second},
		{"JSON", pings{count: 1, json: true}, []api.Pong{relayed}, []string{`"via":["spencer","nibz"]`, `"sent":1,"answered":1,"min_ms":12.34`}, "", 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			var out strings.Builder
			c.p.node, c.p.every, c.p.limit, c.p.out, c.p.ask = "bkero", time.Second, 30*time.Second, &out, answers(c.answers...)
			begin := time.Now()
			err := c.p.run(t.Context())
			if (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%s: %v", c.name, err)
			}
			var h hinted
			if err != nil && !errors.As(err, &h) {
				t.Errorf("%s: no hint with %v", c.name, err)
			}
			if took := time.Since(begin); took != c.took {
				t.Errorf("%s: took %v", c.name, took)
			}
			for _, w := range c.want {
				if !strings.Contains(out.String(), w) {
					t.Errorf("%s: no %q in\n%s", c.name, w, out.String())
				}
			}
		})
	}
	synctest.Test(t, func(t *testing.T) { // ^C
		var out strings.Builder
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		p := pings{node: "bkero", every: time.Second, limit: time.Second, out: &out, ask: answers(direct)}
		if err := p.run(ctx); err != nil || p.Sent != 2 || !strings.Contains(out.String(), "2 sent") {
			t.Errorf("interrupted: %v\n%s", err, out.String())
		}
	})
}

func TestShowPath(t *testing.T) {
	p := api.Path{Name: "bkero", Reason: "the one before did not answer", NotDirect: "its only known address, 192.0.2.7:7655, does not answer", Ways: []api.PathWay{
		{Way: api.Way{Via: []string{"spencer"}}, Used: true, Source: "map", Confirmed: true, RTT: 12.3, MTU: 1360},
		{Way: api.Way{Endpoint: "192.0.2.7:7655"}, Source: "record", Missed: 3},
	}}
	const want = `bkero  

   WAY                    STATE         RTT  LOSS   MTU  SOURCE
▶  via spencer            in use     12.3 ms    0%  1360  map
   direct 192.0.2.7:7655  no answer        -     -     -  record

In use: via spencer (the one before did not answer).
Not direct: its only known address, 192.0.2.7:7655, does not answer.
`
	var b strings.Builder
	if err := showPath(&b, p); err != nil || b.String() != strings.Replace(want, "STATE         RTT", "STATE          RTT", 1) {
		t.Errorf("%v, got\n%s\nwant\n%s", err, b.String(), want)
	}
}
