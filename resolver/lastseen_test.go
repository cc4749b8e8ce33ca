// SPDX-License-Identifier: MIT

package resolver

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mesh.internal/mesh/resolver/store"
	"mesh.internal/mesh/resolver/store/storetest"
)

// losing is a store that can lose its disk.
type losing struct {
	mu sync.Mutex
	m  *storetest.Memory
}

func (s *losing) now() *storetest.Memory { s.mu.Lock(); defer s.mu.Unlock(); return s.m }

// begin puts another store in its place, empty or with what fill puts there.
func (s *losing) begin(fill ...store.KV) {
	old, m := s.now(), &storetest.Memory{}
	for _, kv := range fill {
		m.Commit(context.Background(), nil, []store.Op{{Key: kv.Key, Value: kv.Value}})
	}
	s.mu.Lock()
	s.m = m
	s.mu.Unlock()
	old.SetDown(true)
}

func (s *losing) Load(ctx context.Context) ([]store.KV, int64, error) { return s.now().Load(ctx) }
func (s *losing) Get(ctx context.Context, key string) (store.KV, error) {
	return s.now().Get(ctx, key)
}
func (s *losing) Follow(ctx context.Context, rev int64, f func(int64, []store.Change)) error {
	return s.now().Follow(ctx, rev, f)
}
func (s *losing) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (int64, error) {
	return s.now().Commit(ctx, conds, ops)
}

// node is start with what a node publishes of itself.
func node(t *testing.T, dir, name string, st store.Store) (r *Resolver, stop func()) {
	t.Helper()
	r, stop = start(t, dir, name, st)
	r.SetSelf(nodes(name)[0].Addrs, []byte("the record of "+name))
	settle()
	return r, stop
}

func owners(r *Resolver) []string {
	if x := r.State().LastSeen; x != nil {
		return x.Owners
	}
	return nil
}

// A store that begins empty takes no name away, neither at once nor while its owner is away, and nothing is hidden of that.
func TestStoreBeginsAnew(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		st := &losing{m: &storetest.Memory{}}
		a, _ := node(t, dir("a"), "nibz", st)
		b, stopB := node(t, dir("b"), "spencer", st)
		c, stopC := node(t, dir("c"), "bkero", st)
		a.AddHost(t.Context(), host("printer", "10.11.0.77"))
		a.AddGroup(t.Context(), "friends", "printer")
		c.AddHost(t.Context(), host("scanner", "10.11.0.78"))
		settle()
		stopC()

		lost := []string{}
		watching, done := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			for watching.Err() == nil {
				changed := b.Changed()
				for _, n := range []string{"printer", "scanner"} {
					if h, _ := b.View().Lookup(n); h == nil {
						lost = append(lost, n)
					}
				}
				select {
				case <-changed:
				case <-watching.Done():
				}
			}
		})
		st.begin()
		settle()
		done()
		wg.Wait()
		if len(lost) > 0 {
			t.Errorf("for a while it did not have %v", lost)
		}
		wantAddr(t, b, "printer", "10.11.0.77")
		wantAddr(t, b, "scanner", "10.11.0.78")
		if x := b.State().LastSeen; x == nil || x.Names != 1 || !slices.Equal(x.Owners, []string{"bkero"}) {
			t.Errorf("it tells %+v of what it has only seen", x)
		}
		if x := b.Trace("scanner").Said; x == nil || x.LastSeen.IsZero() {
			t.Errorf("why: %+v", x)
		}
		if x := b.Trace("printer").Said; x == nil || !x.LastSeen.IsZero() {
			t.Errorf("why of what is there again: %+v", x)
		}
		if _, err := a.AddHost(t.Context(), host("scanner", "10.11.0.79")); err == nil {
			t.Error("another took the name of one that is away")
		}
		if landed, err := a.KeepName(t.Context(), "scanner"); landed || err == nil {
			t.Error("another keeps the name of one that is away")
		}
		stopB()
		b, _ = node(t, dir("b"), "spencer", st) // it is kept on disk too
		<-time.After(24 * time.Hour)
		wantAddr(t, b, "scanner", "10.11.0.78")
		c, stopC = node(t, dir("c"), "bkero", st)
		defer stopC()
		<-time.After(2 * settleIn)
		for _, r := range []*Resolver{a, b, c} {
			wantAddr(t, r, "printer", "10.11.0.77")
			wantAddr(t, r, "scanner", "10.11.0.78")
			if len(owners(r)) > 0 || r.View().Group("friends") == nil {
				t.Errorf("in the end: %v", r.State())
			}
		}
	})
}

// What its owner has deleted, or does not come back for, goes.
func TestLastSeenEnds(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		st := &losing{m: &storetest.Memory{}}
		a, stopA := node(t, dir("a"), "nibz", st)
		b, _ := node(t, dir("b"), "spencer", st)
		c, stopC := node(t, dir("c"), "bkero", st)
		a.AddHost(t.Context(), host("printer", "10.11.0.77"))
		a.AddHost(t.Context(), host("plotter", "10.11.0.76"))
		c.AddHost(t.Context(), host("scanner", "10.11.0.78"))
		settle()
		stopC()
		stopA()
		st.begin()
		settle()
		ctx, cancel := context.WithCancel(t.Context())
		a = New(Config{Zone: "mesh.internal", Prefixes: prefixes, Signer: member("nibz"), Verifier: everybody, StateDir: dir("a"), Log: a.cfg.Log})
		go a.Run(ctx) // without the store
		if _, err := a.RemoveHost(ctx, "printer"); err != nil {
			t.Fatal(err)
		}
		cancel()
		synctest.Wait()
		wantAddr(t, b, "printer", "10.11.0.77")
		a, _ = node(t, dir("a"), "nibz", st)
		wantAddr(t, a, "printer", "")
		<-time.After(settleIn + time.Second)
		for _, r := range []*Resolver{a, b} {
			wantAddr(t, r, "printer", "")
			wantAddr(t, r, "plotter", "10.11.0.76")
			wantAddr(t, r, "scanner", "10.11.0.78")
		}
		<-time.After(lastSeenFor)
		wantAddr(t, b, "scanner", "")
		wantAddr(t, b, "plotter", "10.11.0.76")
	})
}

// A name that somebody else has claimed meanwhile is the other's, for all.
func TestLastSeenYields(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		st := &losing{m: &storetest.Memory{}}
		a, stopA := node(t, dir("a"), "nibz", st)
		b, _ := node(t, dir("b"), "spencer", st)
		a.AddHost(t.Context(), host("printer", "10.11.0.77"))
		settle()
		stopA()
		st.begin()
		settle()
		wantAddr(t, b, "printer", "10.11.0.77")
		c, _ := node(t, dir("c"), "bkero", st) // which has not seen the old store
		if landed, err := c.AddHost(t.Context(), host("printer", "10.11.0.99")); !landed || err != nil {
			t.Fatal(landed, err)
		}
		settle()
		wantAddr(t, b, "printer", "10.11.0.99")
		a, _ = node(t, dir("a"), "nibz", st)
		<-time.After(2 * settleIn)
		for _, r := range []*Resolver{a, b, c} {
			wantAddr(t, r, "printer", "10.11.0.99")
		}
		if w := a.State().Waiting; len(w) != 1 {
			t.Errorf("who lost it is told %v", w)
		}
	})
}

// A backup of an owner that is away brings back what it has, and takes nothing that came after it.
func TestLastSeenBesidesBackup(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		st := &losing{m: &storetest.Memory{}}
		a, stopA := node(t, dir("a"), "nibz", st)
		b, _ := node(t, dir("b"), "spencer", st)
		a.AddHost(t.Context(), host("printer", "10.11.0.77"))
		settle()
		backup, _, _ := st.Load(t.Context())
		a.AddHost(t.Context(), host("printer", "10.11.0.78"))
		a.AddHost(t.Context(), host("plotter", "10.11.0.76"))
		settle()
		stopA()
		st.begin(backup...)
		<-time.After(time.Hour)
		wantAddr(t, b, "printer", "10.11.0.78")
		wantAddr(t, b, "plotter", "10.11.0.76")
	})
}

// A gap in which much was deleted and made anew is none of another store, whatever a member puts there.
func TestNotAnew(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		a, _ := node(t, dir("a"), "nibz", &st)
		b, _ := node(t, dir("b"), "spencer", &st)
		a.AddHost(t.Context(), host("printer", "10.11.0.77"))
		a.AddHost(t.Context(), host("nas.nibz", "10.11.0.80"))
		settle()
		again := func() {
			st.SetDown(true)
			settle()
			st.SetDown(false)
			settle()
		}
		key := "nibz/hosts/nas.nibz"
		junk, _ := store.Seal(key, store.Value{Seq: 1 << 60, Name: "nas.nibz", Addrs: []netip.Addr{netip.MustParseAddr("10.11.6.6")}}, member("bkero"))
		for range 3 {
			st.SetDown(true)
			settle()
			st.SetDown(false)
			st.Commit(t.Context(), nil, []store.Op{{Key: key}})
			st.Commit(t.Context(), nil, []store.Op{{Key: key, Value: junk}})
			settle()
			again()
		}
		a.RemoveHost(t.Context(), "printer")
		again()
		for _, r := range []*Resolver{a, b} {
			wantAddr(t, r, "printer", "")
			wantAddr(t, r, "nas.nibz", "10.11.0.80")
			if r.State().LastSeen != nil {
				t.Errorf("%+v", r.State().LastSeen)
			}
		}
	})
}

// A service stays as last seen; how it is does not, once its owner would have said so again.
func TestLastSeenHealth(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		st := &losing{m: &storetest.Memory{}}
		b, _ := node(t, dir("b"), "spencer", st)
		for key, v := range map[string]store.Value{
			store.ServiceKey("nibz", "http"): {Seq: 1, Name: "http", Service: &store.Service{Type: "http", Proto: "tcp", Port: 80}},
			store.HealthKey("nibz"):          {Seq: 1, Health: map[string]store.Health{"http": {State: string(Passing)}}},
		} {
			x, err := store.Seal(key, v, member("nibz"))
			if err != nil {
				t.Fatal(err)
			}
			st.Commit(t.Context(), nil, []store.Op{{Key: key, Value: x}})
		}
		settle()
		is := func(want State) {
			t.Helper()
			if all := b.View().ServicesOf("http"); len(all) != 1 || all[0].Health.State != want {
				t.Errorf("%+v, want %s", all, want)
			}
		}
		is(Passing)
		st.begin()
		settle()
		is(Passing)
		<-time.After(settleIn)
		is(Offline)
	})
}
