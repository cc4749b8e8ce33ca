// SPDX-License-Identifier: MIT

package link

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

func TestTrailerOnItsWay(t *testing.T) {
	ids := []ID{{1}, {2}, {3}, {4}, {5}}
	for relays := 1; relays <= maxRelays; relays++ {
		nodes := ids[:relays+2] // origin, relays, destination
		var r Route
		copy(r[:], nodes[1:relays+1])
		b := append([]byte{4, relayMark, 0, 0, 'x'}, r.trailer(nodes[0], nodes[len(nodes)-1])...)
		size := len(b)
		if r.Len() != relays || r.trailerSize() != size-5 {
			t.Fatalf("%d relays: %v has %d bytes of trailer, want %d", relays, r, size-5, r.trailerSize())
		}
		for hop := 1; hop < len(nodes); hop++ {
			s, ok := parseStep(b)
			if !ok || s.slot(s.done-1) != nodes[hop-1] || s.last() != (hop == len(nodes)-1) {
				t.Fatalf("%d relays, at node %d: %+v, %v", relays, hop, s, ok)
			}
			if !s.last() {
				if next := s.slot(s.done); next != nodes[hop+1] {
					t.Fatalf("%d relays: node %d sends on to %v", relays, hop, next)
				}
				s.advance(nodes[hop], 7)
				if s.grant() != 7 || len(b) != size {
					t.Fatalf("%d relays: node %d sends grant %d in %d bytes", relays, hop, s.grant(), len(b))
				}
			}
		}
		s, _ := parseStep(b)
		origin, back := s.back()
		if origin != nodes[0] || back != r.reversed() {
			t.Errorf("%d relays: came from %v, back by %v, want %v", relays, origin, back, r.reversed())
		}
	}
}

func FuzzStep(f *testing.F) {
	f.Add([]byte{4, relayMark, 0, 0, 0x21})
	f.Add(append([]byte{4, relayMark, 0, 0}, Route{{1}, {2}}.trailer(ID{9}, ID{8})...))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, ok := parseStep(b)
		if !ok {
			return
		}
		before, n := bytes.Clone(b[:len(b)-len(s.b)]), s.done
		if s.last() {
			s.back()
			return
		}
		s.advance(ID{7}, 1)
		if s, ok = parseStep(b); !ok || s.done != n+1 || !bytes.Equal(before, b[:len(before)]) {
			t.Fatal("a step spoilt the packet, or was none")
		}
	})
}

func TestGrantsGoByThemselves(t *testing.T) {
	g := grants{by: map[uint64]*Peer{}}
	p := &Peer{}
	now := time.Unix(1000, 0)
	first := g.of(p, now)
	if g.holder(first) != p || first == 0 || g.of(p, now) != first {
		t.Fatal("a grant does not name its holder")
	}
	now = now.Add(grantLasts + time.Second)
	second := g.of(p, now)
	if second == first || g.holder(first) != p || g.holder(second) != p {
		t.Error("a grant is void while its holder may not have the next")
	}
	g.of(p, now.Add(grantLasts+time.Second))
	if g.holder(first) != nil {
		t.Error("an old grant holds for good")
	}
	g.forget(p)
	if len(g.by) != 0 {
		t.Errorf("%d grants of a node that was forgotten", len(g.by))
	}
}

func TestAllowance(t *testing.T) {
	var a allowance
	now := time.Unix(1000, 0)
	passed := 0
	for range 10000 { // 10 s at four times the rate
		if a.take(1000, 250e3, now) {
			passed += 1000
		}
		now = now.Add(time.Millisecond)
	}
	if passed < 2.4e6 || passed > 2.8e6 {
		t.Errorf("%d bytes passed in 10 s at 250 kB/s", passed)
	}
}

var (
	viaB  = Way{Via: Route{{2}}}
	viaCD = Way{Via: Route{{3}, {4}}}
)

// world says what happens to a ping on a way.
type world func(o out) (rtt time.Duration, ok bool)

// live lets time pass while something is sent all the time.
func (tr *trip) live(d time.Duration, w world) {
	for end := tr.now.Add(d); tr.now.Before(end); tr.now = tr.now.Add(5 * time.Millisecond) {
		tr.p.lastSend = tr.now
		for len(tr.pending) > 0 && !tr.pending[0].at.After(tr.now) {
			tr.p.handle(tr.pending[0].f, tr.pending[0].from, tr.now)
			tr.pending = tr.pending[1:]
		}
		outs, _ := tr.p.tick(tr.now)
		for _, o := range outs {
			if rtt, ok := w(o); ok && o.p.kind == kindPing {
				tr.pending = append(tr.pending, answer{tr.now.Add(rtt), o.to, probe{kind: kindPong, txid: o.p.txid, run: 1}})
			}
		}
		slices.SortStableFunc(tr.pending, func(a, b answer) int { return a.at.Compare(b.at) })
	}
}

func (tr *trip) wantWay(w Way) {
	tr.t.Helper()
	if tr.p.best == nil || tr.p.best.way != w {
		tr.t.Errorf("the way in use is %v, want %v", tr.p.best, w)
	}
}

func TestPathFromRelayToDirectAndBack(t *testing.T) {
	tr := newTrip(t)
	tr.p.setKnown([]Way{{Addr: addrA}, viaB, viaCD})
	up := map[Way]time.Duration{viaB: 20 * time.Millisecond, viaCD: 60 * time.Millisecond}
	w := func(o out) (time.Duration, bool) { rtt, ok := up[o.to]; return rtt, ok }
	tr.live(time.Second, w)
	tr.wantWay(viaB)
	up[Way{Addr: addrA}] = 15 * time.Millisecond // punched
	tr.live(5*time.Second, w)
	tr.wantWay(Way{Addr: addrA})
	delete(up, Way{Addr: addrA})
	begin := tr.now
	for tr.p.best.way.udp() && tr.now.Sub(begin) < 5*time.Second {
		tr.live(10*time.Millisecond, w)
	}
	if d := tr.now.Sub(begin); d > 800*time.Millisecond {
		t.Errorf("the cut was gone round after %s", d)
	}
	tr.wantWay(viaB)
	delete(up, viaB)
	begin = tr.now
	for tr.p.best.way == viaB && tr.now.Sub(begin) < 5*time.Second {
		tr.live(10*time.Millisecond, w)
	}
	if d := tr.now.Sub(begin); d > 800*time.Millisecond {
		t.Errorf("the relay that died was left after %s", d)
	}
	tr.wantWay(viaCD)
	up[Way{Addr: addrA}] = 15 * time.Millisecond
	tr.live(20*time.Second, w)
	tr.wantWay(Way{Addr: addrA})
}

// A link that comes and goes is not taken up again each time.
func TestPathDoesNotFlap(t *testing.T) {
	tr := newTrip(t)
	tr.p.setKnown([]Way{{Addr: addrA}, viaB})
	bad := false
	w := func(o out) (time.Duration, bool) { return 20 * time.Millisecond, !bad || o.to == viaB }
	tr.live(2*time.Second, w)
	changes, last := 0, tr.p.best
	for i := range 60 { // a second good, a second bad
		bad = i%2 == 1
		tr.live(time.Second, w)
		if tr.p.best != last {
			changes, last = changes+1, tr.p.best
		}
	}
	if changes > 8 {
		t.Errorf("the way changed %d times in a minute", changes)
	}
	bad = false
	tr.live(2*time.Minute, w) // it is trusted again by and by
	tr.wantWay(Way{Addr: addrA})
}

// Ways of which all are slow now and then, as on a busy machine or a full radio channel, are not changed each time.
func TestPathBelievesNoSpike(t *testing.T) {
	for _, ways := range [][]Way{{{Addr: addrA}, viaB, viaCD}, {viaB, {Via: Route{{5}}}, viaCD}} {
		tr := newTrip(t)
		tr.p.setKnown(ways)
		r := rand.New(rand.NewPCG(1, 2))
		w := func(Way) (rtt time.Duration) {
			if rtt = 3 * time.Millisecond; r.IntN(5) == 0 {
				rtt += time.Duration(20+r.IntN(100)) * time.Millisecond
			}
			return rtt
		}
		tr.live(2*time.Second, func(o out) (time.Duration, bool) { return w(o.to), true })
		changes, last := 0, tr.p.best
		for range 24000 { // two minutes
			tr.live(5*time.Millisecond, func(o out) (time.Duration, bool) { return w(o.to), true })
			if tr.p.best != last {
				changes, last = changes+1, tr.p.best
			}
		}
		if changes > 4 {
			t.Errorf("of %v, the way changed %d times in two minutes", ways, changes)
		}
	}
}

// A path never asks to be called in the past, which Run would take for lateness of its own, forgive everybody for, and
// ping anew: not even where the peer dies while the MTU is being measured.
func TestPathLooksAhead(t *testing.T) {
	tr := newTrip(t)
	tr.p.setKnown([]Way{{Addr: addrA}, viaB})
	tr.live(200*time.Millisecond, func(o out) (time.Duration, bool) { return 20 * time.Millisecond, o.p.size == 0 })
	if tr.p.best == nil || tr.p.best.ask == 0 {
		t.Fatal("nothing is being measured")
	}
	for end := tr.now.Add(30 * time.Second); tr.now.Before(end); tr.now = tr.now.Add(5 * time.Millisecond) {
		tr.p.lastSend = tr.now
		if _, next := tr.p.tick(tr.now); !next.After(tr.now) {
			t.Fatalf("at %s it asks for %s", tr.now, tr.now.Sub(next))
		}
	}
}

// A clean detour beats a direct way that loses much.
func TestPathLossy(t *testing.T) {
	tr := newTrip(t)
	tr.p.setKnown([]Way{{Addr: addrA}, viaB})
	n := 0
	w := func(o out) (time.Duration, bool) {
		n++
		return 20 * time.Millisecond, o.to == viaB || n%4 != 0
	}
	tr.live(30*time.Second, w)
	tr.wantWay(viaB)
}

func TestPathMTU(t *testing.T) {
	tr := newTrip(t)
	tr.p.setKnown([]Way{{Addr: addrA}})
	limit := 1400
	w := func(o out) (time.Duration, bool) { return 20 * time.Millisecond, o.p.size <= limit }
	tr.live(5*time.Second, w)
	if m := tr.p.mtu(); m != 1392 {
		t.Errorf("the path takes %d, found %d", limit, m)
	}
	limit = 1300
	tr.live(8*time.Second, w)
	if m := tr.p.mtu(); m != 1292 {
		t.Errorf("after it shrank the path takes %d, found %d", limit, m)
	}
	limit = 1500
	tr.live(mtuRaise+10*time.Second, w)
	if m := tr.p.mtu(); m != 1412 {
		t.Errorf("after it grew the path takes %d, found %d", limit, m)
	}
	if tr.p.best.missed > 0 || tr.p.best.loss > 0.04 {
		t.Errorf("large pings count as loss: missed %d, loss %.2f", tr.p.best.missed, tr.p.best.loss)
	}
}

// What is measured of a way through relays counts the trailer once.
func TestPathMTURelayed(t *testing.T) {
	tr := newTrip(t)
	tr.p.setKnown([]Way{viaB})
	tr.live(5*time.Second, func(o out) (time.Duration, bool) {
		return 20 * time.Millisecond, o.p.size+o.to.Via.trailerSize() <= 1372
	})
	if m := tr.p.mtu(); m != 1372-viaB.Via.trailerSize() {
		t.Errorf("the path takes 1372 with a trailer, found %d without", m)
	}
}

// A node that slept does not think that the others did.
func TestPathLate(t *testing.T) {
	tr := newTrip(t)
	tr.p.setKnown([]Way{{Addr: addrA}, viaB})
	w := func(o out) (time.Duration, bool) { return 20 * time.Millisecond, true }
	tr.live(2*time.Second, w)
	for range 5 {
		tr.now = tr.now.Add(10 * time.Second)
		tr.p.late(tr.now)
		tr.live(50*time.Millisecond, w)
		tr.wantWay(Way{Addr: addrA})
	}
}

func TestRouteIsComparable(t *testing.T) {
	a, b := Way{Via: Route{{1}, {2}}}, Way{Via: Route{{1}, {2}}}
	if a != b || a == (Way{Via: Route{{2}, {1}}}) || a.Via.reversed() != (Route{{2}, {1}}) {
		t.Error("routes do not compare by their relays")
	}
	if binary.Size(Route{}) != maxRelays*idSize {
		t.Error("a route is larger than its IDs")
	}
	if udp := (Way{Addr: netip.MustParseAddrPort("192.0.2.1:1")}); !udp.udp() || udp.relayed() || a.udp() || !a.relayed() {
		t.Error("ways do not know what they are")
	}
}

// The answer to a handshake goes also through relays that have not answered yet: lost, it would come again after 5 s.
func TestResponseThroughRelay(t *testing.T) {
	s := &sink{}
	l := New(s, key(t), 1412)
	relay, err1 := l.Peer("relay", key(t).PublicKey())
	p, err2 := l.Peer("far", key(t).PublicKey())
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	relay.direct.Store(&route{ep: &conn.StdNetEndpoint{AddrPort: addrA}})
	relay.granted.Store(7)
	p.Set([]netip.AddrPort{addrB}, []Route{{relay.id}}, false)
	msg := append([]byte{response, 0, 0, 0}, make([]byte, 88)...)
	if err := l.Send([][]byte{msg}, p); err != nil {
		t.Fatal(err)
	}
	direct, relayed := 0, 0
	for _, b := range s.sent {
		switch {
		case bytes.Equal(b, msg):
			direct++
		case b[0] == response && b[1] == relayMark:
			relayed++
		}
	}
	if direct != 1 || relayed != 1 {
		t.Errorf("the answer was sent %d times directly and %d times through the relay", direct, relayed)
	}
}
