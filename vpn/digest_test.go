// SPDX-License-Identifier: MIT

package vpn

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// book is a node's statements without the node.
func book(n int) *digest {
	d := &digest{}
	for i := range n {
		d.put(newStatement(kindRecord, fmt.Sprintf("node-%d", i), version{1, uint64(i)}, fmt.Appendf(nil, "record %d", i)))
	}
	return d
}

func (d *digest) alter(i int) {
	d.put(newStatement(kindRecord, fmt.Sprintf("node-%d", i), version{2, uint64(i)}, fmt.Appendf(nil, "new record %d", i)))
}

// wire is what a message has on an IPv4 link: IP and UDP headers, WireGuard's, and padding to sixteen bytes.
func wire(t testing.TB, m message) int {
	b, err := encMode.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	inner := controlHead + len(b)
	if inner > maxControl {
		t.Fatalf("a control packet of %d bytes", inner)
	}
	return 20 + 8 + 32 + (inner+15)/16*16
}

// cost is what a comparison took.
type cost struct{ messages, bytes, pushes, rounds int }

// settle lets two compare until they are equal, and loses the part lose of the messages.
func settle(t testing.TB, a, b *digest, lose float64) (c cost) {
	type letter struct {
		to, from *digest
		m        message
	}
	for sum(a.all) != sum(b.all) || c.rounds == 0 {
		if c.rounds++; c.rounds > 100 {
			t.Fatal("they do not become equal")
		}
		queue := []letter{{b, a, a.whole()}}
		for len(queue) > 0 {
			l := queue[0]
			queue = queue[1:]
			c.messages++
			c.bytes += wire(t, l.m)
			if rand.Float64() < lose {
				continue
			}
			var say []message
			var push, want []uint64
			if l.m.Sums != nil {
				say, push = l.to.compare(l.m.Sums)
			}
			if l.m.List != nil {
				push, want = l.to.compareList(l.m.List)
			}
			if len(want) > 0 {
				say = append(say, message{Want: want})
			}
			push = append(push, l.m.Want...)
			for _, m := range say {
				queue = append(queue, letter{l.from, l.to, m})
			}
			for _, at := range push {
				s, ok := l.to.get(at)
				if !ok || rand.Float64() < lose {
					continue
				}
				c.pushes++
				if old, ok := l.from.get(at); !ok || old.version.less(s.version) {
					l.from.put(s)
				}
			}
		}
	}
	return c
}

// TestDigest compares two nodes of several sizes with some differences and says what that takes on the wire, pushes
// aside. What differs is found, and nothing else is pushed.
func TestDigest(t *testing.T) {
	for _, n := range []int{10, 100, 1000, 10000} {
		for _, differences := range []int{0, 1, 10} {
			a, b := book(n), book(n)
			for i := range differences {
				if i%2 == 0 { // at either side
					a.alter(i)
				} else {
					b.alter(i)
				}
			}
			c := settle(t, a, b, 0)
			t.Logf("%5d known, %2d differ: %3d messages, %6d bytes", n, differences, c.messages, c.bytes)
			if c.pushes != differences || c.rounds != 1 {
				t.Errorf("%d pushes in %d rounds, want %d in 1", c.pushes, c.rounds, differences)
			}
			if differences == 0 && (c.messages != 1 || c.bytes > 130) {
				t.Errorf("where nothing differs it takes %d messages, %d bytes", c.messages, c.bytes)
			}
			if differences == 1 && c.messages > 6 {
				t.Errorf("one difference among %d takes %d messages", n, c.messages)
			}
		}
	}
}

// TestDigestStrangers lets nodes meet that know nothing, or nothing in common, over good links and bad ones.
func TestDigestStrangers(t *testing.T) {
	for _, lose := range []float64{0, 0.3} {
		for _, known := range [][2]int{{1, 1000}, {0, 1}, {0, 0}, {1000, 0}} {
			a, b := book(known[0]), book(known[1])
			c := settle(t, a, b, lose)
			t.Logf("%4d and %4d known, %.0f %% lost: %4d messages, %6d bytes, %4d pushes, %d rounds", known[0], known[1], 100*lose, c.messages, c.bytes, c.pushes, c.rounds)
			if len(a.all) != max(known[0], known[1]) {
				t.Errorf("%d known at the end", len(a.all))
			}
		}
		a, b := &digest{}, book(1000)
		for i := range 1000 {
			a.put(newStatement(kindTombstone, fmt.Sprintf("node-%d", i), version{1, 0}, fmt.Appendf(nil, "tombstone %d", i)))
		}
		c := settle(t, a, b, lose)
		t.Logf("1000 here and 1000 others there, %.0f %% lost: %4d messages, %6d bytes, %4d pushes, %d rounds", 100*lose, c.messages, c.bytes, c.pushes, c.rounds)
		if len(a.all) != 2000 || len(b.all) != 2000 {
			t.Errorf("%d and %d known", len(a.all), len(b.all))
		}
	}
}

// TestDigestHostile gives a digest what a hostile member might send.
func TestDigestHostile(t *testing.T) {
	d := book(1000)
	for _, s := range []sums{{}, {Span: span{Bits: 3}, Sums: []uint64{1}}, {Span: span{Bits: 64}, Sums: []uint64{1}}, {Span: span{Bits: 255}, Sums: []uint64{1}},
		{Span: span{Prefix: 1, Bits: 4}, Sums: []uint64{1}}, {Sums: make([]uint64, 15)}, {Span: span{Bits: maxBits}, Sums: make([]uint64, fan)}} {
		if say, push := d.compare(&s); len(say)+len(push) != 0 {
			t.Errorf("%+v is answered with %d messages and %d pushes", s, len(say), len(push))
		}
	}
	if say, push := d.compare(&sums{Sums: []uint64{1}}); len(say) != 1 || len(push) != 0 {
		t.Errorf("%d messages, %d pushes", len(say), len(push))
	}
	if push, want := d.compareList(&list{Items: make([]entry, maxEntries+1)}); len(push)+len(want) != 0 {
		t.Error("a list that is too long is answered")
	}
	if _, want := d.compareList(&list{Span: span{}.part(2), Items: []entry{{At: 1 << 60, Serial: 9}}}); len(want) != 0 {
		t.Error("what is outside a list's span is asked for")
	}
}

func BenchmarkDigest(b *testing.B) {
	d := book(10000)
	s := sums{Sums: []uint64{1}}
	for b.Loop() {
		d.compare(&s)
	}
}

func TestDigestHas(t *testing.T) {
	d := book(3)
	if at, ok := d.has([]byte("record 1")); !ok || at != place(kindRecord, "node-1") {
		t.Error("a known form is not found")
	}
	d.alter(1)
	if _, ok := d.has([]byte("record 1")); ok {
		t.Error("what was replaced is still there")
	}
	d.drop(place(kindRecord, "node-1"))
	if _, ok := d.has([]byte("new record 1")); ok || len(d.all) != 2 || len(d.raws) != 2 {
		t.Error("what was dropped is still there")
	}
}
