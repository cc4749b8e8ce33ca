// SPDX-License-Identifier: MIT

package resolver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"mesh.internal/mesh/resolver/store"
	"mesh.internal/mesh/resolver/store/storetest"
)

func TestCheckMeta(t *testing.T) {
	many := map[string]string{}
	for i := range MaxMeta + 1 {
		many[fmt.Sprintf("k%d", i)] = ""
	}
	for _, c := range []struct {
		meta map[string]string
		err  string
	}{
		{nil, ""},
		{map[string]string{"location": "cellar, 2nd shelf", "on-call": "müller <m@example.org>", "x.y_z": ""}, ""},
		{many, "33 keys"},
		{map[string]string{"a": strings.Repeat("x", maxMetaAll)}, "4097 bytes"},
		{map[string]string{"a": strings.Repeat("x", maxMetaAll-1)}, ""},
		{map[string]string{"": "x"}, "begins with a letter"},
		{map[string]string{"Location": "x"}, "begins with a letter"},
		{map[string]string{"1a": "x"}, "begins with a letter"},
		{map[string]string{"a b": "x"}, "begins with a letter"},
		{map[string]string{strings.Repeat("a", 64): "x"}, "begins with a letter"},
		{map[string]string{"a": "x\ny"}, "one line"},
		{map[string]string{"a": "\x1b[2J"}, "one line"},
		{map[string]string{"a": "\xff"}, "one line"},
		{map[string]string{"a": "\u202egnp.exe"}, "one line"}, // would be shown in another order than it has
	} {
		if err := CheckMeta(c.meta); (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%.40v: %v, want %q", c.meta, err, c.err)
		}
	}
}

// TestMeta takes metadata along every way that a host has, and changes nothing but them.
func TestMeta(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		a, stopA := start(t, dir("a"), "nibz", &st)
		b, stopB := start(t, dir("b"), "spencer", &st)
		defer stopB()
		want := func(r *Resolver, meta map[string]string) {
			t.Helper()
			if h, _ := r.View().Lookup("printer"); h == nil || !reflect.DeepEqual(h.Meta, meta) {
				t.Errorf("printer is %+v, want metadata %v", h, meta)
			}
		}
		h := host("printer", "10.11.0.77")
		for _, meta := range []map[string]string{{"location": "cellar"}, {"location": "attic"}, nil, {"role": "print"}} {
			h.Meta = meta
			if landed, err := a.AddHost(t.Context(), h); !landed || err != nil {
				t.Fatal(landed, err)
			}
			settle()
			want(b, meta)
		}
		stopA()
		a, stopA = start(t, dir("a"), "nibz", &st) // from own.json and names.json
		defer stopA()
		settle()
		want(a, h.Meta)
		stopA()
		os.Remove(filepath.Join(dir("a"), "own.json"))
		a, stopA = start(t, dir("a"), "nibz", &st) // from the store
		settle()
		want(a, h.Meta)
		h.Meta = map[string]string{"Location": "x"}
		if _, err := a.AddHost(t.Context(), h); err == nil || !strings.Contains(err.Error(), "metadata key") {
			t.Errorf("a bad key: %v", err)
		}
		// A member that keeps to no bounds is not taken, and what was there stays.
		key := store.HostKey("nibz", "printer")
		bad, err := store.Seal(key, store.Value{Seq: 1 << 60, Name: "printer", Addrs: h.Addrs, Meta: map[string]string{"a": "\x1b]0;x\a"}}, member("nibz"))
		if err != nil {
			t.Fatal(err)
		}
		stopA()
		st.Commit(t.Context(), nil, []store.Op{{Key: key, Value: bad}})
		settle()
		want(b, map[string]string{"role": "print"})
		if s := b.State().Refused; len(s) != 1 || !strings.Contains(s[0], key) || !strings.Contains(s[0], "metadata a") {
			t.Errorf("refused: %v", s)
		}
	})
}

// TestOldValue reads a value of before there were metadata.
func TestOldValue(t *testing.T) {
	const line = `{"owner":"nibz","seq":7,"name":"printer","addrs":["10.11.0.77"],"aliases":["laser"]}`
	key := store.HostKey("nibz", "printer")
	b, err := store.Seal(key, store.Value{Seq: 7, Name: "printer", Addrs: host("", "10.11.0.77").Addrs, Aliases: []string{"laser"}}, member("nibz"))
	if err != nil || !strings.HasPrefix(string(b), line+"\n") {
		t.Errorf("%v: a value without new fields is\n%s, want\n%s", err, b, line)
	}
}

// TestAliasGivenUp gives up what a host no longer needs: another node may have it at once, and nothing else is lost.
func TestAliasGivenUp(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		a, stopA := start(t, dir("a"), "nibz", &st)
		defer stopA()
		b, stopB := start(t, dir("b"), "spencer", &st)
		defer stopB()
		h := host("printer", "10.11.0.77")
		h.Addrs = append(h.Addrs, netip.MustParseAddr("10.11.0.78"))
		h.Aliases = []string{"laser", "ink"}
		a.AddHost(t.Context(), h)
		settle()
		if _, err := b.AddHost(t.Context(), host("laser", "10.11.0.79")); !errors.Is(err, ErrTaken) {
			t.Errorf("another's alias: %v", err)
		}
		landed, err := a.ChangeHost(t.Context(), "printer", func(h Host) (Host, error) {
			h.Aliases, h.Addrs = []string{"ink"}, h.Addrs[:1]
			return h, nil
		})
		if !landed || err != nil {
			t.Fatal(landed, err)
		}
		settle()
		if landed, err := b.AddHost(t.Context(), host("laser", "10.11.0.78")); !landed || err != nil {
			t.Errorf("an alias and an address that were given up: %v %v", landed, err)
		}
		for _, n := range []string{"printer", "ink"} {
			if kv, _ := st.Get(t.Context(), store.NameClaimKey(n)); kv.Modified == 0 {
				t.Errorf("the claim on %s is gone", n)
			}
		}
		// An alias that moves from one host to another of the same node stays claimed, whichever goes first.
		a.AddHost(t.Context(), Host{Name: "scanner", Addrs: host("", "10.11.0.90").Addrs, Aliases: []string{"ink"}})
		a.RemoveHost(t.Context(), "printer")
		settle()
		if kv, _ := st.Get(t.Context(), store.NameClaimKey("ink")); kv.Modified == 0 {
			t.Error("the claim on ink went with the host that had it before")
		}
	})
}

// counted counts what is asked of a store.
type counted struct {
	*storetest.Memory
	mu   sync.Mutex
	gets int
}

func (c *counted) Get(ctx context.Context, key string) (store.KV, error) {
	c.mu.Lock()
	c.gets++
	c.mu.Unlock()
	return c.Memory.Get(ctx, key)
}

// TestManyHosts adds hosts one after the other: what each costs must not grow with those that there are.
func TestManyHosts(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		st := &counted{Memory: new(storetest.Memory)}
		a, stopA := start(t, dir("a"), "nibz", st)
		defer stopA()
		settle()
		add := func(from, to int) int {
			st.mu.Lock()
			before := st.gets
			st.mu.Unlock()
			for i := from; i < to; i++ {
				if landed, err := a.AddHost(t.Context(), host(fmt.Sprintf("h%d", i), fmt.Sprintf("10.11.1.%d", 1+i))); !landed || err != nil {
					t.Fatal(landed, err)
				}
				<-time.After(time.Second)
			}
			st.mu.Lock()
			defer st.mu.Unlock()
			return st.gets - before
		}
		first := add(0, 20)
		add(20, 180)
		last := add(180, 200)
		if first == 0 || last > first+40 {
			t.Errorf("the first 20 hosts took %d reads, the last 20 of 200 took %d", first, last)
		}
	})
}

// TestMostParts has a host with as many claims as there may be, and changes all of them at once.
func TestMostParts(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		a, stopA := start(t, dir("a"), "nibz", &st)
		defer stopA()
		parts := func(from, n int) Host {
			h := Host{Name: "printer"}
			for i := range n {
				h.Addrs = append(h.Addrs, netip.AddrFrom4([4]byte{10, 11, 7, byte(from + i)}))
				h.Aliases = append(h.Aliases, fmt.Sprintf("a%d", from+i))
			}
			return h
		}
		for _, h := range []Host{parts(1, mostParts/2), parts(100, mostParts/2), parts(150, 3)} {
			if landed, err := a.AddHost(t.Context(), h); !landed || err != nil {
				t.Fatal(landed, err)
			}
			settle()
			if n := len(keys(t, &st, "_claims/")); n != 1+len(h.Addrs)+len(h.Aliases) {
				t.Errorf("%d claims for %d aliases and addresses", n, len(h.Addrs)+len(h.Aliases))
			}
		}
		if _, err := a.AddHost(t.Context(), parts(1, mostParts/2+1)); err == nil || !strings.Contains(err.Error(), "together") {
			t.Errorf("one too many: %v", err)
		}
	})
}
