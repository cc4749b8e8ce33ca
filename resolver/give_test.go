// SPDX-License-Identifier: MIT

package resolver

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mesh.internal/mesh/resolver/store"
	"mesh.internal/mesh/resolver/store/storetest"
)

func wantOwner(t *testing.T, r *Resolver, name, owner string) {
	t.Helper()
	h, _ := r.View().Lookup(name)
	if h == nil && owner != "" || h != nil && h.Owner != owner {
		t.Errorf("on %s: %s is %+v, want %q's", r.cfg.Signer.Name(), name, h, owner)
	}
}

// keys are those of the store below a prefix.
func keys(t *testing.T, st store.Store, prefix string) (out []string) {
	t.Helper()
	kvs, _, err := st.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range kvs {
		if strings.HasPrefix(kv.Key, prefix) {
			out = append(out, kv.Key)
		}
	}
	return out
}

// TestKeep keeps a name without a host, with one, and after it; and has others want it.
func TestKeep(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		a, stopA := start(t, dir("a"), "nibz", &st)
		b, stopB := start(t, dir("b"), "bkero", &st)
		defer stopB()
		for _, name := range []string{"spencer", "nas.nibz", "wpad", "No"} {
			if _, err := a.KeepName(t.Context(), name); err == nil {
				t.Errorf("%s is kept", name)
			}
		}
		if landed, err := a.KeepName(t.Context(), "printer"); !landed || err != nil {
			t.Fatal(landed, err)
		}
		settle()
		refused := func(when string) {
			t.Helper()
			_, err1 := b.AddHost(t.Context(), host("printer", "10.11.0.78"))
			_, err2 := b.KeepName(t.Context(), "printer")
			if !errors.Is(err1, ErrTaken) || !errors.Is(err2, ErrTaken) {
				t.Errorf("%s: %v, %v", when, err1, err2)
			}
		}
		refused("without a host")
		a.AddHost(t.Context(), host("printer", "10.11.0.77"))
		refused("with a host")
		if _, still, err := a.ReleaseName(t.Context(), "printer"); err != nil || still != "printer" {
			t.Errorf("released: %q, %v", still, err)
		}
		refused("released, with a host")
		a.KeepName(t.Context(), "printer")
		a.RemoveHost(t.Context(), "printer")
		settle()
		refused("after the host")
		stopA()
		a, stopA = start(t, dir("a"), "nibz", &st)
		settle()
		if k := a.Kept(); len(k) != 1 || k[0] != [2]string{"printer", ""} {
			t.Errorf("after a restart it keeps %v", k)
		}
		stopA()
		os.Remove(filepath.Join(dir("a"), "own.json")) // a new disk
		a, stopA = start(t, dir("a"), "nibz", &st)
		defer stopA()
		settle()
		if k := a.Kept(); len(k) != 1 {
			t.Errorf("with a new disk it keeps %v", k)
		}
		if _, still, err := a.ReleaseName(t.Context(), "printer"); err != nil || still != "" {
			t.Errorf("released: %q, %v", still, err)
		}
		if _, _, err := a.ReleaseName(t.Context(), "printer"); err == nil {
			t.Error("released twice")
		}
		settle()
		if landed, err := b.AddHost(t.Context(), host("printer", "10.11.0.78")); !landed || err != nil {
			t.Errorf("a name that was given up: %v %v", landed, err)
		}
	})
}

// TestGive gives a host to a node that is off, which takes it when it comes. On every reader, at every revision, the name
// has one owner and the host its address.
func TestGive(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		a, stopA := start(t, dir("a"), "nibz", &st)
		defer stopA()
		reader, stopR := start(t, dir("r"), "spencer", &st)
		defer stopR()
		h := host("printer", "10.11.0.77")
		h.Aliases, h.Meta = []string{"laser"}, map[string]string{"location": "cellar"}
		a.AddHost(t.Context(), h)
		a.KeepName(t.Context(), "printer")
		settle()
		seen := map[string]bool{}
		watching := make(chan struct{})
		stop := make(chan struct{})
		go func() {
			defer close(watching)
			for {
				c := reader.Changed()
				for _, n := range []string{"printer", "laser"} {
					if h, _ := reader.View().Lookup(n); h == nil {
						seen[n+" nobody"] = true
					} else {
						seen[n+" "+h.Owner+" "+h.Addrs[0].String()+" "+h.Meta["location"]] = true
					}
				}
				select {
				case <-c:
				case <-stop:
					return
				}
			}
		}()
		for _, c := range []struct{ name, to, err string }{
			{"printer", "nobody", "no node nobody"}, {"laser", "bkero", "not this node's"}, {"scanner", "bkero", "not this node's"}, {"printer", "nibz", "already"}, {"x.nibz", "bkero", "one label"},
		} {
			if _, err := a.GiveName(t.Context(), c.name, c.to); err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("give %s %s: %v", c.name, c.to, err)
			}
		}
		landed, err := a.GiveName(t.Context(), "printer", "bkero")
		if !landed || err != nil {
			t.Fatal(landed, err)
		}
		settle()
		wantOwner(t, reader, "laser", "bkero")
		wantOwner(t, a, "printer", "bkero")
		if _, err := a.RemoveHost(t.Context(), "printer"); err == nil || !strings.Contains(err.Error(), "was given to bkero") {
			t.Errorf("removed what was given: %v", err)
		}
		if _, err := reader.AddHost(t.Context(), host("laser", "10.11.0.90")); !errors.Is(err, ErrTaken) {
			t.Errorf("an alias of what was given: %v", err)
		}
		if _, err := a.GiveName(t.Context(), "printer", "nibz"); err != nil {
			t.Errorf("taken back: %v", err)
		}
		settle()
		wantOwner(t, reader, "printer", "nibz")
		a.GiveName(t.Context(), "printer", "bkero")
		settle()

		b, stopB := start(t, dir("b"), "bkero", &st) // at last
		settle()
		wantOwner(t, reader, "printer", "bkero")
		for _, k := range keys(t, &st, "nibz/") {
			t.Errorf("the giver has left %s", k)
		}
		if got := keys(t, &st, "bkero/"); !slices.Equal(got, []string{"bkero/hosts/printer"}) {
			t.Errorf("the receiver has %v", got)
		}
		if _, err := a.GiveName(t.Context(), "printer", "nibz"); err == nil {
			t.Error("taken back from who has taken it")
		}
		if _, err := b.ChangeHost(t.Context(), "printer", func(h Host) (Host, error) {
			h.Addrs = host("", "10.11.0.79").Addrs
			return h, nil
		}); err != nil {
			t.Error(err)
		}
		settle()
		wantAddr(t, reader, "laser", "10.11.0.79")
		close(stop)
		<-watching
		want := map[string]bool{}
		for _, n := range []string{"printer", "laser"} {
			for _, s := range []string{" nibz 10.11.0.77 cellar", " bkero 10.11.0.77 cellar", " bkero 10.11.0.79 cellar"} {
				want[n+s] = true
			}
		}
		if !maps.Equal(seen, want) {
			t.Errorf("readers saw %v", slices.Sorted(maps.Keys(seen)))
		}
		// It goes on: back again, and the receiver of that is not given what was there before.
		b.GiveName(t.Context(), "printer", "nibz")
		settle()
		wantOwner(t, reader, "printer", "nibz")
		wantAddr(t, reader, "printer", "10.11.0.79")
		if _, err := a.RemoveHost(t.Context(), "printer"); err != nil {
			t.Error(err)
		}
		settle()
		wantOwner(t, reader, "printer", "")
		stopB()
		b, stopB = start(t, dir("b"), "bkero", &st)
		defer stopB()
		settle()
		wantOwner(t, reader, "printer", "")
		if left := keys(t, &st, "_claims/"); len(left) != 0 {
			t.Errorf("claims are left: %v", left)
		}
		_ = b
	})
}

// TestGiveAway gives while the store is away, a name without a host, to one who was evicted, and what cannot go.
func TestGiveAway(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		a, stopA := start(t, dir("a"), "nibz", &st)
		defer stopA()
		b, stopB := start(t, dir("b"), "bkero", &st)
		defer stopB()
		a.SetSelf([]netip.Addr{netip.MustParseAddr("10.11.0.3")}, []byte("record"))
		a.KeepName(t.Context(), "shared")
		a.AddHost(t.Context(), Host{Name: "tied", Addrs: host("", "10.11.0.80").Addrs, Aliases: []string{"x.nibz"}})
		a.AddHost(t.Context(), host("mine", "10.11.0.3"))
		settle()
		for name, want := range map[string]string{"tied": "lies below", "mine": "own address"} {
			if _, err := a.GiveName(t.Context(), name, "bkero"); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v", name, err)
			}
		}
		st.SetDown(true)
		settle()
		if landed, err := a.GiveName(t.Context(), "shared", "bkero"); landed || err != nil {
			t.Errorf("with the store away: %v %v", landed, err)
		}
		if w := a.State().Waiting; len(w) != 1 || !strings.HasPrefix(w[0], "shared (kept)") {
			t.Errorf("waiting: %v", w)
		}
		st.SetDown(false)
		settle()
		if k := b.Kept(); len(k) != 1 || k[0][0] != "shared" {
			t.Errorf("the receiver keeps %v", k)
		}
		if k := a.Kept(); len(k) != 0 {
			t.Errorf("the giver keeps %v", k)
		}
		stopB()
		b.SetNodes(nil)
		a.AddHost(t.Context(), host("late", "10.11.0.81"))
		a.GiveName(t.Context(), "late", "bkero")
		settle()
		wantOwner(t, a, "late", "bkero")
		a.SetNodes(nodes("nibz", "spencer")) // bkero was evicted
		settle()
		wantOwner(t, a, "late", "")
		if _, err := a.GiveName(t.Context(), "late", "nibz"); err != nil {
			t.Error(err)
		}
		settle()
		wantOwner(t, a, "late", "nibz")
	})
}

// TestHostileGive plays a member, bkero, with full access to the store, who wants names that are not its.
func TestHostileGive(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		a, stopA := start(t, dir("a"), "nibz", &st)
		defer stopA()
		reader, stopR := start(t, dir("r"), "spencer", &st)
		defer stopR()
		a.AddHost(t.Context(), host("printer", "10.11.0.77"))
		a.KeepName(t.Context(), "kept")
		settle()
		claimKey := store.NameClaimKey("printer")
		seal := func(key string, v store.Value, signer member) []byte {
			b, err := store.Seal(key, v, signer)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		put := func(key string, b []byte) {
			if _, err := st.Commit(t.Context(), nil, []store.Op{{Key: key, Value: b}}); err != nil {
				t.Fatal(err)
			}
		}
		evil := host("", "10.11.6.6").Addrs
		all := func(owner, addr string) {
			t.Helper()
			settle()
			for _, r := range []*Resolver{a, reader} {
				wantOwner(t, r, "printer", owner)
				wantAddr(t, r, "printer", addr)
				wantOwner(t, r, "kept", "")
			}
		}
		// A gift of what it does not have, a claim that it puts in the place of another's, one that gives to itself, a host
		// with a name that another keeps.
		put("bkero/hosts/printer", seal("bkero/hosts/printer", store.Value{Seq: 1 << 60, Name: "printer", Addrs: evil, To: "spencer"}, "bkero"))
		put(claimKey, seal(claimKey, store.Value{Seq: 1 << 60, Name: "printer", To: "spencer"}, "bkero"))
		all("nibz", "10.11.0.77")
		put("bkero/hosts/printer", seal("bkero/hosts/printer", store.Value{Seq: 1<<60 + 1, Name: "printer", Addrs: evil}, "bkero"))
		put("bkero/hosts/kept", seal("bkero/hosts/kept", store.Value{Seq: 1 << 60, Name: "kept", Addrs: evil}, "bkero"))
		put(claimKey, seal(claimKey, store.Value{Seq: 1<<60 + 2, Name: "printer", To: "bkero"}, "bkero"))
		all("nibz", "10.11.0.77")
		if c, err := st.Get(t.Context(), claimKey); err != nil || !strings.Contains(string(c.Value), `"owner":"nibz"`) {
			t.Errorf("the claim was not put back: %s %v", c.Value, err)
		}
		young, stopY := start(t, dir("y"), "spencer", &st) // who has seen nothing of it
		settle()
		wantOwner(t, young, "printer", "nibz")
		stopY()
		if k := reader.Kept(); len(k) != 0 {
			t.Errorf("a reader has taken %v", k)
		}

		// What was said before, put back: a claim of when it was not given, a gift of when it was.
		before, _ := st.Get(t.Context(), claimKey)
		old, _ := st.Get(t.Context(), "nibz/hosts/printer")
		stopR()
		a.GiveName(t.Context(), "printer", "spencer") // who is off
		settle()
		gift, _ := st.Get(t.Context(), claimKey)
		given, _ := st.Get(t.Context(), "nibz/hosts/printer")
		put(claimKey, before.Value)
		put("nibz/hosts/printer", old.Value)
		settle()
		wantOwner(t, a, "printer", "spencer")
		reader, stopR = start(t, dir("r"), "spencer", &st)
		defer stopR()
		all("spencer", "10.11.0.77")
		if keys := keys(t, &st, "spencer/"); len(keys) != 1 {
			t.Errorf("spencer has %v", keys)
		}
		put("nibz/hosts/printer", given.Value)
		put(claimKey, gift.Value)
		all("spencer", "10.11.0.77")
		reader.RemoveHost(t.Context(), "printer")
		settle()
		put("nibz/hosts/printer", given.Value)
		put(claimKey, gift.Value)
		settle()
		if keys := keys(t, &st, "spencer/"); len(keys) != 0 {
			t.Errorf("spencer has taken the same gift twice: %v", keys)
		}
		<-time.After(time.Second)
		synctest.Wait()
	})
}

// TestGiftsWithoutEnd is a member that gives another more than it can keep, and what it cannot have.
func TestGiftsWithoutEnd(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		b, stopB := start(t, dir("b"), "nibz", &st)
		defer stopB()
		gift := func(name string, addrs ...netip.Addr) {
			v := store.Value{Seq: 7, Name: name, To: "nibz", Addrs: addrs}
			key, claimKey := store.KeptKey("bkero", name), store.NameClaimKey(name)
			if len(addrs) > 0 {
				key = store.HostKey("bkero", name)
			}
			x, err1 := store.Seal(key, v, member("bkero"))
			y, err2 := store.Seal(claimKey, store.Value{Seq: 7, Name: name, To: "nibz"}, member("bkero"))
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			st.Commit(t.Context(), nil, []store.Op{{Key: key, Value: x}, {Key: claimKey, Value: y}})
		}
		gift("wpad")
		gift("outside", netip.MustParseAddr("192.0.2.1"))
		gift("x.bkero")
		settle()
		if k := b.Kept(); len(k) != 0 || len(keys(t, &st, "nibz/")) != 0 {
			t.Errorf("taken: %v", k)
		}
		for i := range mostTaken + 50 {
			gift(fmt.Sprintf("g%d", i))
		}
		settle()
		if n := len(b.Kept()); n != mostTaken-3 {
			t.Errorf("%d names were taken", n)
		}
		c, stopC := start(t, dir("c"), "spencer", &st)
		defer stopC()
		c.KeepName(t.Context(), "fine")
		if _, err := c.GiveName(t.Context(), "fine", "nibz"); err != nil {
			t.Fatal(err)
		}
		settle()
		if k := b.Kept(); !slices.Contains(k, [2]string{"fine", ""}) {
			t.Error("what another gives is not taken any more")
		}
	})
}
