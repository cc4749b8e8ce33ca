// SPDX-License-Identifier: MIT

package queue

import (
	"encoding/binary"
	"testing"
	"time"

	"mesh.internal/mesh/vpn/ip"
)

// bench is a queue with a clock.
type bench struct {
	*Queue[int]
	t   testing.TB
	now time.Time
}

func newBench(t testing.TB) *bench {
	return &bench{Queue: New[int](), t: t, now: time.Unix(1000, 0)}
}

// send queues an IPv4 UDP packet of a flow. mark is in its payload.
func (b *bench) send(peer *Peer[int], flow uint16, size int, mark uint32) {
	p := b.Packet(size)
	p.Data = p.Buf()[:size]
	clear(p.Data[:32])
	p.Data[0], p.Data[9] = 0x45, 17
	binary.BigEndian.PutUint32(p.Data[16:], uint32(peer.Value))
	binary.BigEndian.PutUint16(p.Data[20:], flow)
	binary.BigEndian.PutUint32(p.Data[28:], mark)
	b.Push(p, peer, b.now)
}

func mark(p *Packet[int]) uint32 { return binary.BigEndian.Uint32(p.Data[28:]) }

func always(*Peer[int]) bool { return true }

// next returns the next packet, whichever way, and frees it.
func (b *bench) next() (m uint32, sparse, ok bool) {
	p := b.Sparse(b.now)
	if sparse = p != nil; !sparse {
		if p = b.Bulk(b.now, always); p == nil {
			return 0, false, false
		}
	}
	m = mark(p)
	b.Free(p)
	return m, sparse, true
}

func TestSparseFirst(t *testing.T) {
	b := newBench(t)
	a, c := &Peer[int]{Value: 1}, &Peer[int]{Value: 2}
	for i := range 20 {
		b.send(a, 1, 60000, uint32(i))
	}
	b.send(a, 2, 100, 100)
	b.send(c, 1, 100, 101)
	for _, want := range []uint32{100, 101, 0} {
		if m, sparse, _ := b.next(); m != want || sparse != (want >= 100) {
			t.Fatalf("%d came, not %d", m, want)
		}
	}
	// Who sends on without a pause has a turn as the others have.
	b.send(a, 2, 100, 102)
	if p := b.Sparse(b.now); p != nil {
		t.Errorf("%d came before the others again", mark(p))
	}
	for _, want := range []uint32{102, 1} {
		if m, _, _ := b.next(); m != want {
			t.Errorf("%d came, not %d", m, want)
		}
	}
	// A flow keeps its order, whatever its packets' sizes.
	b.send(a, 3, 60000, 200)
	b.send(a, 3, 100, 201)
	var order []uint32
	for {
		m, _, ok := b.next()
		if !ok {
			break
		}
		if m >= 200 {
			order = append(order, m)
		}
	}
	if len(order) != 2 || order[0] != 200 {
		t.Errorf("the order is %v", order)
	}
}

func TestFairness(t *testing.T) {
	b := newBench(t)
	peers := []*Peer[int]{{Value: 0}, {Value: 1}, {Value: 2}}
	// The first peer has ten flows, the second one, the third one of small packets.
	got := make([]int, 3)
	flows := map[uint32]int{}
	full := func(i, flow, size int) { b.send(peers[i], uint16(flow), size, uint32(i)<<16|uint32(flow)) }
	for range 4 {
		for f := range 10 {
			full(0, f, 60000)
		}
	}
	for range 20 {
		full(1, 0, 60000)
	}
	for range 600 {
		full(2, 0, 1300)
	}
	for got[0]+got[1]+got[2] < 30*60000 {
		p := b.Sparse(b.now)
		if p == nil {
			p = b.Bulk(b.now, always)
		}
		got[p.Peer.Value] += len(p.Data)
		flows[mark(p)]++
		b.Free(p)
	}
	for i, n := range got {
		if n < 8*60000 || n > 12*60000 {
			t.Errorf("peer %d got %d bytes of %v", i, n, got)
		}
	}
	for f := range uint32(10) {
		if flows[f] < 1 || flows[f] > 2 {
			t.Errorf("of the first peer's flows one got %d turns: %v", flows[f], flows)
		}
	}
	// A peer without room does not keep the others from sending, and loses nothing.
	for range 5 {
		if p := b.Bulk(b.now, func(p *Peer[int]) bool { return p.Value == 2 }); p == nil || p.Peer != peers[2] {
			t.Fatal("the peer that has room does not send")
		}
	}
	if p := b.Bulk(b.now, func(*Peer[int]) bool { return false }); p != nil {
		t.Error("a peer without room sends")
	}
}

// TestStandingQueue has a sender whose queue stands at 5 ms: CoDel drops packets, more and more often.
func TestStandingQueue(t *testing.T) {
	b := newBench(t)
	peer := &Peer[int]{}
	count := func(wait, total time.Duration) uint64 {
		before := b.Dropped.Late.Load()
		for range total / time.Millisecond {
			for b.send(peer, 1, 60000, 0); b.bytes < int(wait/time.Millisecond)*MaxPacket; b.send(peer, 1, 60000, 0) {
			}
			b.next()
			b.now = b.now.Add(time.Millisecond)
		}
		for _, _, ok := b.next(); ok; _, _, ok = b.next() {
		}
		return b.Dropped.Late.Load() - before
	}
	if n := count(0, 500*time.Millisecond); n != 0 {
		t.Errorf("%d packets of an empty queue were dropped", n)
	}
	if n := count(5*time.Millisecond, 10*time.Millisecond); n != 0 {
		t.Errorf("%d packets of a burst were dropped", n)
	}
	first := count(5*time.Millisecond, 50*time.Millisecond)
	second := count(5*time.Millisecond, 250*time.Millisecond)
	if first < 1 || first > 12 || second < 5*first {
		t.Errorf("%d and %d packets were dropped in 50 and 250 ms", first, second)
	}
}

// TestDropOfSuperPacket checks that of a super-packet one packet is dropped.
func TestDropOfSuperPacket(t *testing.T) {
	b := newBench(t)
	peer := &Peer[int]{}
	for range 30 {
		p := b.Packet(60000)
		p.Data = p.Buf()[:60000]
		p.GSO = ip.GSO{Size: 1000}
		b.Push(p, peer, b.now)
	}
	skipped, whole := 0, 0
	for range 30 {
		b.now = b.now.Add(2 * time.Millisecond)
		switch p := b.Bulk(b.now, always); p.Next {
		case 0:
			whole++
		case 1:
			skipped++
		default:
			t.Fatalf("%d packets were dropped at once", p.Next)
		}
	}
	if skipped == 0 || whole < 2*skipped || uint64(skipped) != b.Dropped.Late.Load() {
		t.Errorf("%d super-packets are whole, %d lack a packet, %d were dropped", whole, skipped, b.Dropped.Late.Load())
	}
}

func TestOverflow(t *testing.T) {
	b := newBench(t)
	peer := &Peer[int]{}
	for range 5 {
		b.send(peer, 2, 1500, 7)
	}
	for i := range 10000 {
		b.send(peer, 1, 1500, uint32(i)+100)
	}
	if b.bytes > maxBytes || b.Dropped.Full.Load() == 0 {
		t.Errorf("%d bytes wait", b.bytes)
	}
	small, last := 0, uint32(0)
	for m, _, ok := b.next(); ok; m, _, ok = b.next() {
		if m == 7 {
			small++
		} else if last = max(last, m); m < last {
			t.Fatal("out of order")
		}
	}
	if small != 5 || last != 10099 {
		t.Errorf("%d packets of the small flow and of the other those up to %d came through", small, last)
	}
	if !b.Empty() || b.bytes != 0 {
		t.Error("the queue is not empty")
	}
}

func TestNoAllocation(t *testing.T) {
	b := newBench(t)
	peer := &Peer[int]{}
	if n := testing.AllocsPerRun(1000, func() {
		b.send(peer, 1, 60000, 0)
		b.send(peer, 2, 100, 0)
		b.next()
		b.next()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzQueue checks that every packet comes out once, in its flow's order, or is counted as dropped.
func FuzzQueue(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 250, 251, 252})
	f.Add([]byte{9, 9, 9, 9, 9, 240, 240, 255, 9, 240})
	f.Fuzz(func(t *testing.T, ops []byte) {
		b := newBench(t)
		var peers [3]Peer[int]
		for i := range peers {
			peers[i].Value = i
		}
		sent, got := uint64(0), uint64(0)
		var last [3][4]uint32
		take := func(p *Packet[int]) bool {
			if p == nil {
				return false
			}
			got++
			i, f := p.Peer.Value, binary.BigEndian.Uint16(p.Data[20:])
			if m := mark(p); m <= last[i][f] {
				t.Fatalf("packet %d came after %d", m, last[i][f])
			} else {
				last[i][f] = m
			}
			b.Free(p)
			return true
		}
		for _, op := range ops {
			switch {
			case op >= 250:
				b.now = b.now.Add(time.Duration(op-249) * time.Millisecond)
			case op >= 220:
				take(b.Bulk(b.now, func(p *Peer[int]) bool { return op%3 != byte(p.Value) }))
			case op >= 190:
				take(b.Sparse(b.now))
			default:
				sent++
				b.send(&peers[op%3], uint16(op/3%4), []int{100, 1300, 5000, 65000}[op/12%4], uint32(sent))
			}
		}
		for take(b.Sparse(b.now)) || take(b.Bulk(b.now, always)) {
		}
		if sent != got+b.Dropped.Late.Load()+b.Dropped.Full.Load() || !b.Empty() {
			t.Fatalf("%d went in, %d came out, %d and %d were dropped", sent, got, b.Dropped.Late.Load(), b.Dropped.Full.Load())
		}
	})
}

func TestLimit(t *testing.T) {
	now := time.Unix(1000, 0)
	woken := 0
	l := &Limit{Bytes: 100, Wake: func() { woken++ }}
	var a, b, lost Flight
	room := func(f *Flight, want bool) {
		t.Helper()
		if got := l.Room(f, now); got != want {
			t.Errorf("room: %v", got)
		}
	}
	room(&a, true)
	l.In(&a, 60, now)
	room(&a, true)
	l.In(&a, 60, now)
	room(&a, false)
	room(&b, true) // a is not known to have a session: b does not wait for it
	l.Out(&a, 10, now)
	if woken != 0 {
		t.Error("woken without room")
	}
	room(&b, true) // as it does not know of itself
	l.In(&b, 10, now)
	l.Out(&b, 10, now)
	room(&b, false) // both are known now
	l.Out(&a, 60, now)
	if woken != 1 {
		t.Errorf("woken %d times", woken)
	}
	room(&b, true)
	l.Out(&a, 60, now) // more than went in
	l.In(&a, 100, now)
	room(&a, false)

	// What the engine has dropped is forgotten, and the peer's next losses are its own.
	now = now.Add(Expire - 1)
	room(&b, false)
	now = now.Add(1)
	room(&b, true)
	room(&a, true)
	l.In(&a, 100, now)
	room(&a, false)
	room(&b, true)

	// A peer that never answers does not slow down another.
	for range 1000 {
		now = now.Add(time.Millisecond)
		if l.Room(&lost, now) {
			l.In(&lost, 90, now)
		}
		room(&b, true)
		l.In(&b, 100, now)
		room(&b, false)
		l.Out(&b, 100, now)
	}
	if l.total != 0 || len(l.active) != 0 {
		t.Errorf("%d bytes of %d peers stay", l.total, len(l.active))
	}
}
