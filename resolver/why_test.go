// SPDX-License-Identifier: MIT

package resolver

import (
	"net/netip"
	"strings"
	"testing"

	"mesh.internal/mesh/resolver/store"
	"mesh.internal/mesh/resolver/store/storetest"
)

// TestTrace asks why of a name that others wanted too, with the store there, away, and never seen.
func TestTrace(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		a, stopA := start(t, dir("a"), "nibz", &st)
		defer stopA()
		r, stopR := start(t, dir("r"), "spencer", &st)
		h := host("printer", "10.11.0.77")
		h.Aliases = []string{"laser"}
		a.AddHost(t.Context(), h)
		settle()
		put := func(key string, v store.Value) {
			t.Helper()
			b, err := store.Seal(key, v, member("bkero"))
			if err != nil {
				t.Fatal(err)
			}
			st.Commit(t.Context(), nil, []store.Op{{Key: key, Value: b}})
		}
		addr := []netip.Addr{netip.MustParseAddr("10.11.6.6")}
		put("bkero/hosts/printer", store.Value{Seq: 1, Name: "printer", Addrs: addr})
		put("bkero/hosts/laser", store.Value{Seq: 1, Name: "other", Addrs: addr})
		put("bkero/hosts/twin", store.Value{Seq: 1, Name: "twin", Addrs: h.Addrs})
		settle()
		x := r.Trace("LASER.mesh.internal.")
		if x.Name != "laser" || x.Host == nil || x.Host.Name != "printer" || x.Said == nil || x.Said.Key != "nibz/hosts/printer" || x.Said.Owner != "nibz" || !x.Followed ||
			len(x.Claims) != 2 || x.Claims[0].Key != "_claims/names/laser" || x.Claims[0].Owner != "nibz" || x.Claims[0].Err != nil {
			t.Errorf("laser: %+v", x)
		}
		if len(x.Lost) != 1 || x.Lost[0].Owner != "bkero" || len(x.Refused) != 1 || x.Refused[0].Key != "bkero/hosts/laser" || x.Refused[0].Modified == 0 || !strings.Contains(x.Refused[0].Err.Error(), "another name") {
			t.Errorf("lost %+v, refused %+v", x.Lost, x.Refused)
		}
		if x := r.Trace("10.11.0.77"); x.Host == nil || x.Host.Name != "printer" || len(x.Sharing) != 1 || x.Sharing[0] != "twin.mesh.internal" || len(x.Claims) != 2 || x.Claims[0].Key != "_claims/addrs/10.11.0.77" {
			t.Errorf("the address: %+v", x)
		}
		if x := r.Trace("bkero"); x.Host == nil || !x.Host.Node || x.Said != nil {
			t.Errorf("a node: %+v", x)
		}
		for asked, never := range map[string]bool{"nobody": false, "wpad": true, "a b": true, "": true} {
			if x := r.Trace(asked); x.Host != nil || x.Known || (x.Never != nil) != never {
				t.Errorf("%q: %+v", asked, x)
			}
		}
		// A later value that is not taken stays refused until there is a good one.
		put("nibz/hosts/printer", store.Value{Seq: 1 << 60, Name: "printer", Addrs: addr})
		settle()
		if x := r.Trace("printer"); len(x.Refused) != 0 || x.Host.Addrs[0] != h.Addrs[0] {
			t.Errorf("after its owner has put it back: %+v", x)
		}
		st.SetDown(true)
		settle()
		if x := r.Trace("printer"); x.State.State != "unreachable" || !x.Followed {
			t.Errorf("with the store away: %+v", x.State)
		}
		if _, err := r.AddHost(t.Context(), host("scanner", "10.11.0.90")); err != nil {
			t.Fatal(err)
		}
		if x := r.Trace("scanner"); x.Host != nil || x.Wanted == nil || x.Wanted.Owner != "spencer" || x.Waiting == "" {
			t.Errorf("what waits: %+v", x)
		}
		stopR()
		r, stopR = start(t, dir("r"), "spencer", &st)
		defer stopR()
		settle()
		if x := r.Trace("printer"); x.Followed || x.Said == nil || x.Host == nil {
			t.Errorf("from the disk: %+v", x)
		}
	})
}
