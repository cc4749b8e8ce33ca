// SPDX-License-Identifier: MIT

package vpn

import (
	"slices"
	"testing"
	"time"

	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/link"
)

// drawn is a map: "a b 10" is a link of a to b that costs 10 ms, as a's record tells. s is this node.
func drawn(noRelay string, links ...[3]any) *routes {
	records := map[link.ID]*identity.Record{}
	own := map[link.ID]time.Duration{}
	id := func(s any) link.ID { return link.ID{s.(string)[0]} }
	for _, l := range links {
		for _, s := range l[:2] {
			if records[id(s)] == nil {
				records[id(s)] = &identity.Record{Said: identity.Said{NoRelay: s.(string) == noRelay}}
			}
		}
		cost := time.Duration(l[2].(int)) * time.Millisecond
		if l[0] == "s" {
			own[id(l[1])] = cost
			continue
		}
		r := records[id(l[0])]
		r.Links = append(r.Links, identity.Link{To: id(l[1]), Cost: cost})
	}
	return newRoutes(id("s"), records, own)
}

func TestRoutes(t *testing.T) {
	for _, c := range []struct {
		name, to, noRelay string
		links             [][3]any
		want              []string
	}{
		{"one relay", "c", "", [][3]any{{"s", "b", 5}, {"b", "c", 5}}, []string{"b"}},
		{"told by the other end", "c", "", [][3]any{{"s", "b", 5}, {"c", "b", 5}}, []string{"b"}},
		{"the shorter first, then one that begins elsewhere", "d", "", [][3]any{{"s", "b", 50}, {"s", "c", 5}, {"b", "d", 5}, {"c", "d", 5}}, []string{"c", "b"}},
		{"several", "e", "", [][3]any{{"s", "b", 1}, {"b", "c", 1}, {"c", "d", 1}, {"d", "e", 1}}, []string{"bcd"}},
		{"not more than can be", "f", "", [][3]any{{"s", "b", 1}, {"b", "c", 1}, {"c", "d", 1}, {"d", "e", 1}, {"e", "f", 1}}, []string{"b"}},
		{"the detour is shorter", "d", "", [][3]any{{"s", "b", 1}, {"b", "d", 500}, {"b", "c", 1}, {"c", "d", 1}}, []string{"bc"}},
		{"who does not want to", "c", "b", [][3]any{{"s", "b", 5}, {"b", "c", 5}, {"s", "d", 50}, {"d", "c", 50}}, []string{"d"}},
		{"neighbours may know", "x", "", [][3]any{{"s", "b", 5}, {"s", "c", 1}, {"x", "y", 1}}, []string{"c", "b"}},
		{"direct only", "b", "", [][3]any{{"s", "b", 5}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, r := range drawn(c.noRelay, c.links...).to(link.ID{c.to[0]}) {
				s := ""
				for _, id := range r[:r.Len()] {
					s += string(id[:1])
				}
				got = append(got, s)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("routes %q, want %q", got, c.want)
			}
		})
	}
}

func BenchmarkRoutes(b *testing.B) {
	records := map[link.ID]*identity.Record{}
	for i := range 1000 {
		r := &identity.Record{}
		for j := range identity.MaxLinks {
			k := (i*7 + j*131 + 1) % 1000
			r.Links = append(r.Links, identity.Link{To: link.ID{byte(k), byte(k >> 8), 1}, Cost: time.Duration(j+1) * time.Millisecond})
		}
		records[link.ID{byte(i), byte(i >> 8), 1}] = r
	}
	own := map[link.ID]time.Duration{{1, 0, 1}: time.Millisecond, {2, 0, 1}: time.Millisecond, {3, 0, 1}: time.Millisecond}
	for b.Loop() {
		r := newRoutes(link.ID{0, 0, 1}, records, own)
		r.to(link.ID{200, 3, 1})
	}
}

// TestLinksOfBefore starts a node anew: as long as it finds no other links than before, it says nothing.
func TestLinksOfBefore(t *testing.T) {
	before := []identity.Link{{To: [6]byte{1}, Cost: 20 * time.Millisecond}, {To: [6]byte{2}, Cost: 30 * time.Millisecond}}
	for _, c := range []struct {
		now  []identity.Link
		same bool
	}{
		{nil, true},
		{[]identity.Link{{To: [6]byte{2}, Cost: 31 * time.Millisecond}}, true},
		{[]identity.Link{{To: [6]byte{2}, Cost: 30 * time.Millisecond}, {To: [6]byte{1}, Cost: 25 * time.Millisecond}}, true},
		{[]identity.Link{{To: [6]byte{3}, Cost: 30 * time.Millisecond}}, false},
	} {
		if got := steady(before, merge(c.now, before)); slices.Equal(got, before) != c.same {
			t.Errorf("of %v and %v it tells %v", c.now, before, got)
		}
	}
}
