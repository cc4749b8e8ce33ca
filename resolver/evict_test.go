// SPDX-License-Identifier: MIT

package resolver

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mesh.internal/mesh/resolver/store"
	"mesh.internal/mesh/resolver/store/storetest"
)

// roll is everybody but one who was evicted.
type roll struct {
	mu   sync.Mutex
	gone string
}

func (r *roll) Verify(owner string, msg, sig []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if owner == r.gone {
		return store.ErrEvicted
	}
	return everybody.Verify(owner, msg, sig)
}

// TestEvicted evicts a node that goes on writing to the store: what it says counts for nothing, what it held is free, and
// Clear takes it out of the store.
func TestEvicted(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		var r roll
		begin := func(name string) *Resolver {
			x := New(Config{Zone: "mesh.internal", Prefixes: prefixes, Signer: member(name), Verifier: &r, StateDir: dir(name), Log: slog.New(slog.DiscardHandler), Store: &st})
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan struct{})
			go func() { x.Run(ctx); close(ended) }()
			x.SetNodes(nodes(everybody...))
			synctest.Wait()
			t.Cleanup(sync.OnceFunc(func() { cancel(); <-ended }))
			return x
		}
		spencer, nibz := begin("spencer"), begin("nibz")
		bkero, stop := start(t, dir("bkero"), "bkero", &st) // which does not know, or care, that it was evicted
		defer stop()
		promised, err := spencer.ClaimNode(t.Context(), "bkero2", netip.Addr{}, time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range []Host{host("printer", "10.11.0.77"), host("nas.bkero", "10.11.0.78")} {
			if landed, err := bkero.AddHost(t.Context(), h); !landed || err != nil {
				t.Fatal(landed, err)
			}
		}
		if _, err := bkero.AddGroup(t.Context(), "friends", "printer"); err != nil {
			t.Fatal(err)
		}
		settle()
		wantAddr(t, nibz, "printer", "10.11.0.77")
		if nibz.View().Group("friends") == nil {
			t.Fatal("no group")
		}

		r.mu.Lock()
		r.gone = "bkero"
		r.mu.Unlock()
		for _, x := range []*Resolver{spencer, nibz} {
			x.SetNodes(nodes("spencer", "nibz"))
		}
		if _, err := bkero.AddHost(t.Context(), host("other.bkero", "10.11.0.79")); err != nil {
			t.Fatal(err)
		}
		settle()
		for _, x := range []*Resolver{spencer, nibz} {
			for _, name := range []string{"bkero", "printer", "nas.bkero", "other.bkero"} {
				wantAddr(t, x, name, "")
			}
			if x.View().Group("friends") != nil {
				t.Error("its group is still there")
			}
			if s := x.State(); len(s.Refused) != 0 {
				t.Errorf("status goes on about %v", s.Refused)
			}
		}
		stop()
		if landed, err := nibz.AddHost(t.Context(), host("printer", "10.11.0.77")); !landed || err != nil {
			t.Errorf("its name and address are not free: %v", err)
		}
		if err := spencer.Clear(t.Context(), "bkero"); err != nil {
			t.Fatal(err)
		}
		kvs, _, err := st.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var left []string
		for _, kv := range kvs {
			if strings.HasPrefix(kv.Key, "bkero/") {
				t.Errorf("%s is left", kv.Key)
			}
			left = append(left, kv.Key)
		}
		wantAddr(t, nibz, "printer", "10.11.0.77")
		if all := strings.Join(left, " "); !strings.Contains(all, store.AddrClaimKey(promised.String())) || !strings.Contains(all, store.NameClaimKey("printer")) {
			t.Errorf("what others hold was cleared too: %s", all)
		}
		if _, err := spencer.ClaimNode(t.Context(), "bkero", netip.MustParseAddr("10.11.0.2"), time.Now().Add(time.Hour)); err != nil {
			t.Errorf("it cannot be invited again: %v", err)
		}
	})
}
