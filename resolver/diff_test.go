// SPDX-License-Identifier: MIT

package resolver

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// TestDiff holds the walk along two sorted lists against maps, on random views.
func TestDiff(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	random := func() *View {
		var statics []Static
		for i := range 12 {
			if r.IntN(2) == 0 {
				continue
			}
			h := Host{Name: fmt.Sprintf("h%d", i), Owner: "nibz", Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 11, 1, byte(1 + r.IntN(3))})}}
			switch r.IntN(8) {
			case 0:
				h.Aliases = []string{h.Name + "a"}
			case 1:
				h.Meta = map[string]string{"a": "b"}
			case 2:
				h.Owner = "bkero"
			}
			statics = append(statics, Static{Host: h})
		}
		return Build(Parts{Zone: "mesh.internal", Prefixes: prefixes, Nodes: nodes(everybody...), Hosts: statics, Revision: 1})
	}
	text := func(v *View) map[string]string {
		out := map[string]string{}
		for _, h := range v.Hosts() {
			out[h.Name] = fmt.Sprint(*h)
		}
		return out
	}
	for range 300 {
		a, b := random(), random()
		var got, want []string
		for before, after := range Diff(a, b) {
			s := "- +"
			switch {
			case before == nil:
				s = "+" + after.Name
			case after == nil:
				s = "-" + before.Name
			case before.Name == after.Name:
				s = "*" + after.Name
			}
			got = append(got, s)
		}
		x, y := text(a), text(b)
		for n, was := range x {
			if is, ok := y[n]; !ok {
				want = append(want, "-"+n)
			} else if is != was {
				want = append(want, "*"+n)
			}
		}
		for n := range y {
			if _, ok := x[n]; !ok {
				want = append(want, "+"+n)
			}
		}
		byName := func(a, b string) int { return strings.Compare(a[1:], b[1:]) }
		if !slices.IsSortedFunc(got, byName) {
			t.Fatalf("not sorted: %v", got)
		}
		slices.SortFunc(want, byName)
		if !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
	for range Diff(random(), Build(Parts{Zone: "mesh.internal", Prefixes: prefixes})) {
		break // whoever reads may stop
	}
}
