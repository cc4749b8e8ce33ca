// SPDX-License-Identifier: MIT

package resolver

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mesh.internal/mesh/resolver/store"
	"mesh.internal/mesh/resolver/store/storetest"
)

var prefixes = []netip.Prefix{netip.MustParsePrefix("10.11.0.0/16"), netip.MustParsePrefix("fd00:1::/48")}

// member signs with a key that only tests have: HMAC under its name.
type member string

func (m member) Name() string                    { return string(m) }
func (m member) Sign(msg []byte) ([]byte, error) { return mac(string(m), msg), nil }

func mac(name string, msg []byte) []byte {
	h := hmac.New(sha256.New, []byte(name))
	h.Write(msg)
	return h.Sum(nil)
}

type members []string

func (ms members) Verify(owner string, msg, sig []byte) error {
	for _, m := range ms {
		if m == owner {
			if !hmac.Equal(sig, mac(owner, msg)) {
				return errors.New("bad signature")
			}
			return nil
		}
	}
	return store.ErrUnknownOwner
}

var everybody = members{"spencer", "bkero", "nibz"}

func nodes(names ...string) (out []Node) {
	for _, n := range names {
		for i, m := range everybody {
			if m == n {
				out = append(out, Node{Name: n, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 11, 0, byte(1 + i)})}, Key: n})
			}
		}
	}
	return out
}

// start runs a resolver until the test's end or stop.
func start(t *testing.T, dir, name string, st store.Store) (r *Resolver, stop func()) {
	t.Helper()
	cfg := Config{Zone: "mesh.internal", Prefixes: prefixes, Signer: member(name), Verifier: everybody, StateDir: dir, Log: slog.New(slog.DiscardHandler)}
	if st != nil {
		cfg.Store = st
	}
	r = New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { r.Run(ctx); close(ended) }()
	r.SetNodes(nodes(everybody...))
	synctest.Wait()
	stop = sync.OnceFunc(func() { cancel(); <-ended })
	t.Cleanup(stop)
	return r, stop
}

func host(name, addr string) Host {
	return Host{Name: name, Addrs: []netip.Addr{netip.MustParseAddr(addr)}}
}

func settle() { <-time.After(10 * time.Second); synctest.Wait() }

func wantAddr(t *testing.T, r *Resolver, name, addr string) {
	t.Helper()
	h, _ := r.View().Lookup(name)
	switch {
	case addr == "" && h != nil:
		t.Errorf("%s is %v, want none", name, h.Addrs)
	case addr != "" && (h == nil || h.Addrs[0] != netip.MustParseAddr(addr)):
		t.Errorf("%s is %+v, want %s", name, h, addr)
	}
}

// run gives each test a bubble and directories made outside of it.
func run(t *testing.T, f func(t *testing.T, dir func(name string) string)) {
	base := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f(t, func(name string) string {
			d := filepath.Join(base, name)
			os.MkdirAll(d, 0o700)
			return d
		})
	})
}

func TestHostReachesOthers(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		a, stopA := start(t, dir("a"), "nibz", &st)
		b, stopB := start(t, dir("b"), "spencer", &st)
		defer stopB()
		defer stopA()
		landed, err := a.AddHost(t.Context(), host("printer", "10.11.0.77"))
		if !landed || err != nil {
			t.Fatal(landed, err)
		}
		wantAddr(t, a, "printer", "10.11.0.77") // the writer reads what it wrote
		settle()
		wantAddr(t, b, "PRINTER.mesh.internal.", "10.11.0.77")
		if h, ok := b.View().Reverse(netip.MustParseAddr("10.11.0.77")); !ok || b.View().FQDN(h) != "printer.mesh.internal" {
			t.Errorf("reverse: %v", h)
		}
		if _, err := b.AddHost(t.Context(), host("printer", "10.11.0.78")); !errors.Is(err, ErrTaken) {
			t.Errorf("a taken name: %v", err)
		}
		if _, err := b.AddHost(t.Context(), host("scanner", "10.11.0.77")); !errors.Is(err, ErrTaken) {
			t.Errorf("a taken address: %v", err)
		}
		if _, err := b.RemoveHost(t.Context(), "printer"); err == nil || !strings.Contains(err.Error(), "nibz") {
			t.Errorf("removed another's: %v", err)
		}
		if _, err := a.RemoveHost(t.Context(), "printer"); err != nil {
			t.Fatal(err)
		}
		settle()
		wantAddr(t, b, "printer", "")
		if landed, err := b.AddHost(t.Context(), host("printer", "10.11.0.77")); !landed || err != nil {
			t.Errorf("a freed name: %v %v", landed, err)
		}
	})
}

func TestStoreAway(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		a, stopA := start(t, dir("a"), "nibz", &st)
		defer stopA()
		b, stopB := start(t, dir("b"), "spencer", &st)
		a.AddHost(t.Context(), host("printer", "10.11.0.77"))
		settle()
		st.SetDown(true)
		settle()
		wantAddr(t, b, "printer", "10.11.0.77")
		if s := b.State(); s.State != "unreachable" || s.Err == "" {
			t.Errorf("state %+v", s)
		}
		stopB()
		b, stopB = start(t, dir("b"), "spencer", &st) // a reboot without any store
		defer stopB()
		settle()
		wantAddr(t, b, "printer", "10.11.0.77")
		landed, err := b.AddHost(t.Context(), host("scanner", "10.11.0.78"))
		if landed || err != nil {
			t.Fatal(landed, err)
		}
		if w := b.State().Waiting; len(w) != 1 || !strings.HasPrefix(w[0], "scanner") {
			t.Errorf("waiting: %v", w)
		}
		st.SetDown(false)
		settle()
		wantAddr(t, a, "scanner", "10.11.0.78")
		if w := b.State().Waiting; len(w) != 0 {
			t.Errorf("still waiting: %v", w)
		}
	})
}

func TestGap(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		a, stopA := start(t, dir("a"), "nibz", &st)
		defer stopA()
		b, stopB := start(t, dir("b"), "spencer", &st)
		defer stopB()
		a.AddHost(t.Context(), host("one", "10.11.0.70"))
		a.AddHost(t.Context(), host("two", "10.11.0.71"))
		settle()
		st.SetDown(true)
		settle()
		// While b is away one host goes, one comes, and the history is compacted: the deletion is never replayed.
		st.SetDown(false)
		a.RemoveHost(t.Context(), "one")
		a.AddHost(t.Context(), host("three", "10.11.0.72"))
		st.Compact()
		settle()
		for _, r := range []*Resolver{a, b} {
			wantAddr(t, r, "one", "")
			wantAddr(t, r, "two", "10.11.0.71")
			wantAddr(t, r, "three", "10.11.0.72")
		}
	})
}

// TestHostileMember plays a member with full access to the store.
func TestHostileMember(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		victim, stopV := start(t, dir("v"), "nibz", &st)
		defer stopV()
		reader, stopR := start(t, dir("r"), "spencer", &st)
		defer stopR()
		victim.AddHost(t.Context(), host("nas.nibz", "10.11.0.80"))
		settle()
		old, _ := st.Get(t.Context(), "nibz/hosts/nas.nibz")
		victim.AddHost(t.Context(), host("nas.nibz", "10.11.0.81"))
		settle()
		put := func(key string, b []byte) {
			t.Helper()
			if _, err := st.Commit(t.Context(), nil, []store.Op{{Key: key, Value: b}}); err != nil {
				t.Fatal(err)
			}
		}
		evil := func(key, name, addr string, signer member) []byte {
			b, err := store.Seal(key, store.Value{Seq: 1 << 60, Name: name, Addrs: []netip.Addr{netip.MustParseAddr(addr)}}, signer)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		put("nibz/hosts/nas.nibz", evil("nibz/hosts/nas.nibz", "nas.nibz", "10.11.6.6", "bkero"))         // signed by another
		put("nibz/hosts/web.nibz", evil("bkero/hosts/web.nibz", "web.nibz", "10.11.6.6", "nibz"))         // moved from another key
		put("bkero/hosts/x.nibz", evil("bkero/hosts/x.nibz", "x.nibz", "10.11.6.6", "bkero"))             // below another's name
		put("bkero/hosts/spencer", evil("bkero/hosts/spencer", "spencer", "10.11.6.6", "bkero"))          // a node's name
		put("bkero/hosts/wpad", evil("bkero/hosts/wpad", "wpad", "10.11.6.6", "bkero"))                   // a name that programs trust
		put("bkero/hosts/google.com", evil("bkero/hosts/google.com", "google.com", "10.11.6.6", "bkero")) // the world's
		put("bkero/hosts/bank", evil("bkero/hosts/bank", "bank", "192.0.2.66", "bkero"))                  // outside the mesh
		put("bkero/hosts/thief", evil("bkero/hosts/thief", "thief", "10.11.0.1", "bkero"))                // spencer's address
		put("bkero/hosts/junk", []byte("junk"))
		crowd := store.Value{Seq: 1 << 60, Name: "crowd", Addrs: []netip.Addr{netip.MustParseAddr("10.11.6.7")}} // no record has room for it
		for i := range 500 {
			crowd.Aliases = append(crowd.Aliases, fmt.Sprintf("crowd%d.bkero", i))
		}
		b, err := store.Seal("bkero/hosts/crowd", crowd, member("bkero"))
		if err != nil {
			t.Fatal(err)
		}
		put("bkero/hosts/crowd", b)
		settle()
		put("nibz/hosts/nas.nibz", old.Value) // an older value, put back
		<-time.After(time.Millisecond)
		synctest.Wait()
		wantAddr(t, reader, "nas.nibz", "10.11.0.81")
		settle()
		for _, n := range []string{"web.nibz", "x.nibz", "wpad", "google.com", "bank", "thief", "junk"} {
			wantAddr(t, reader, n, "")
		}
		wantAddr(t, reader, "nas.nibz", "10.11.0.81")
		wantAddr(t, reader, "spencer", "10.11.0.1")
		if h, _ := reader.View().Lookup("crowd"); h == nil || len(h.Aliases) == 0 || len(h.Aliases) > 100 {
			t.Errorf("a crowd of names: %v", h)
		}
		// A deletion is repaired by the owner.
		st.Commit(t.Context(), nil, []store.Op{{Key: "nibz/hosts/nas.nibz"}})
		settle()
		wantAddr(t, reader, "nas.nibz", "10.11.0.81")
	})
}

func TestClaimsRace(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		var rs []*Resolver
		for _, n := range everybody {
			r, stop := start(t, dir(n), n, &st)
			defer stop()
			rs = append(rs, r)
		}
		settle()
		var mu sync.Mutex
		got := map[netip.Addr]string{}
		var wg sync.WaitGroup
		for i, r := range rs {
			for j := range 10 {
				wg.Go(func() {
					name := fmt.Sprintf("new%d-%d", i, j)
					a, err := r.ClaimNode(t.Context(), name, netip.Addr{}, time.Now().Add(time.Hour))
					mu.Lock()
					defer mu.Unlock()
					if err != nil || got[a] != "" {
						t.Errorf("%s got %s, which %q has: %v", name, a, got[a], err)
					}
					got[a] = name
				})
			}
		}
		wg.Wait()
		if len(got) != 30 || got[netip.MustParseAddr("10.11.0.4")] == "" {
			t.Errorf("%d addresses: %v", len(got), got)
		}
		// One name, two inviters.
		_, err1 := rs[0].ClaimNode(t.Context(), "same", netip.Addr{}, time.Now().Add(time.Hour))
		_, err2 := rs[1].ClaimNode(t.Context(), "same", netip.Addr{}, time.Now().Add(time.Hour))
		if err1 != nil || !errors.Is(err2, ErrTaken) {
			t.Error(err1, err2)
		}
		<-time.After(2 * time.Hour) // an invitation that nobody used gives its address back
		if a, err := rs[2].ClaimNode(t.Context(), "later", netip.MustParseAddr("10.11.0.4"), time.Now().Add(time.Hour)); err != nil {
			t.Error(a, err)
		}
	})
}

func TestDamagedDisk(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		d := dir("a")
		a, stop := start(t, d, "nibz", &st)
		a.AddHost(t.Context(), host("printer", "10.11.0.77"))
		settle()
		stop()
		os.WriteFile(filepath.Join(d, "names.json"), []byte("{"), 0o600)
		os.WriteFile(filepath.Join(d, "own.json"), []byte("{"), 0o600)
		a, stop = start(t, d, "nibz", &st)
		defer stop()
		settle()
		wantAddr(t, a, "printer", "10.11.0.77") // back from the store, and not deleted there
		if _, err := os.Stat(filepath.Join(d, "own.json.bad")); err != nil {
			t.Error(err)
		}
		if landed, err := a.RemoveHost(t.Context(), "printer"); !landed || err != nil {
			t.Error(landed, err)
		}
	})
}

func FuzzValue(f *testing.F) {
	b, _ := store.Seal("bkero/hosts/x", store.Value{Seq: 1, Name: "x", Addrs: []netip.Addr{netip.MustParseAddr("10.11.0.9")}}, member("bkero"))
	f.Add("bkero/hosts/x", b)
	f.Fuzz(func(t *testing.T, key string, b []byte) {
		v, err := store.Open(key, b, everybody)
		if err == nil && key != "bkero/hosts/x" {
			t.Fatalf("%q accepted under %q", v.Owner, key)
		}
	})
}

// refusing is a store that can be read, and changed only while it is willing.
type refusing struct {
	storetest.Memory
	unwilling atomic.Bool
}

func (s *refusing) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (int64, error) {
	if s.unwilling.Load() {
		return 0, errors.New("no permission")
	}
	return s.Memory.Commit(ctx, conds, ops)
}

// What a store refuses that is there otherwise (no permission, no room) lands when it refuses no more.
func TestRefusedForAWhile(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st refusing
		a, stop := start(t, dir("a"), "nibz", &st)
		defer stop()
		settle()
		for _, change := range []func() (bool, error){
			func() (bool, error) { return a.AddHost(t.Context(), host("printer", "10.11.0.77")) },
			func() (bool, error) { return a.RemoveHost(t.Context(), "printer") },
		} {
			st.unwilling.Store(true)
			if landed, err := change(); landed || err != nil {
				t.Fatal(landed, err)
			}
			settle()
			_, before, _ := st.Load(t.Context())
			st.unwilling.Store(false)
			settle()
			if _, after, _ := st.Load(t.Context()); after == before || len(a.State().Waiting) > 0 {
				t.Errorf("it has not landed: %v", a.State().Waiting)
			}
		}
	})
}
