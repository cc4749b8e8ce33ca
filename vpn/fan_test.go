// SPDX-License-Identifier: MIT

package vpn

import (
	"fmt"
	"testing"

	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/link"
)

// hubMesh is a mesh of so many nodes that all have n0 as a neighbour; links are those among the others, told by both.
func hubMesh(count int, links func(i int) []int) (records map[string]*identity.Record, members map[string]*member, byID map[link.ID]string) {
	records, members, byID = map[string]*identity.Record{}, map[string]*member{}, map[link.ID]string{}
	id := func(i int) link.ID { return link.ID{1, byte(i >> 8), byte(i)} }
	for i := range count {
		r := &identity.Record{}
		if i > 0 {
			for _, j := range append([]int{0}, links(i)...) {
				r.Links = append(r.Links, identity.Link{To: id(j)})
			}
		}
		name := fmt.Sprintf("n%d", i)
		records[name], members[name], byID[id(i)] = r, &member{id: id(i)}, name
	}
	return records, members, byID
}

// ring links 1…count-1 to the two before and the two behind, among those of the same group of size.
func ring(count, size int) func(i int) []int {
	return func(i int) (out []int) {
		first := (i-1)/size*size + 1
		n := min(size, count-first)
		for _, d := range []int{-2, -1, 1, 2} {
			if j := first + ((i-first+d)%n+n)%n; j != i {
				out = append(out, j)
			}
		}
		return out
	}
}

func TestCrowd(t *testing.T) {
	for _, c := range []struct {
		name  string
		count int
		links func(i int) []int
		want  float64 // pushes of a statement by n0, on average
	}{
		{"few", crowded + 1, ring(crowded+1, crowded), crowded},
		{"one part", 1001, ring(1001, 1000), fanout},
		{"two parts", 1001, ring(1001, 500), 2 * fanout},
		{"many small parts", 1001, ring(1001, 5), 1000},
		{"a star", 1001, func(int) []int { return nil }, 1000},
		{"one other each", 1001, func(i int) []int { return []int{(i - 1) ^ 1 + 1} }, 1000},
	} {
		records, members, byID := hubMesh(c.count, c.links)
		crowd := newCrowd("n0", nil, degrees(records), records, members, byID)
		pushes := 0
		const times = 400
		for range times {
			for i := 1; i < c.count; i++ {
				if crowd.may(fmt.Sprintf("n%d", i)) {
					pushes++
				}
			}
		}
		if got := float64(pushes) / times; got < c.want*0.9 || got > c.want*1.1 {
			t.Errorf("%s: %.1f pushes, not %.1f", c.name, got, c.want)
		}
		if x := newCrowd("n1", nil, degrees(records), records, members, byID); x != nil {
			t.Errorf("%s: n1 is crowded: %v", c.name, x.size)
		}
	}
	// A node that is gone tells of its links for ever: they connect nobody.
	records, members, byID := hubMesh(41, ring(41, 20))
	records["n1"].Links = append(records["n1"].Links, identity.Link{To: members["n21"].id})
	if x := newCrowd("n0", nil, degrees(records), records, members, byID); len(x.size) != 2 {
		t.Errorf("there are %d parts, not two", len(x.size))
	}
}

// TestFan has a node among a thousand push to some, and one of the thousand seldom to it.
func TestFan(t *testing.T) {
	n, _ := testNode(t, "n0")
	n.records, n.members, n.byID = hubMesh(1001, ring(1001, 1000))
	var near []string
	for i := 1; i <= 1000; i++ {
		near = append(near, fmt.Sprintf("n%d", i))
	}
	total := 0
	for range 100 {
		total += len(n.fan(near))
	}
	if total < 70*fanout || total > 130*fanout {
		t.Errorf("%d pushes of 100 statements", total)
	}
	n.self, n.crowds.of = "n5", nil
	total = 0
	for range 1000 {
		for _, name := range n.fan([]string{"n0", "n3", "n4", "n6", "n7"}) {
			if name == "n0" {
				total++
			}
		}
	}
	if total > 3*fanout {
		t.Errorf("one of a thousand pushes %d of 1000 statements to it", total)
	}
}
