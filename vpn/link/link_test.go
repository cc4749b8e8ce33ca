// SPDX-License-Identifier: MIT

package link

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"net/netip"
	"testing"
	"time"
)

var (
	addrA = netip.MustParseAddrPort("192.0.2.1:7655")
	addrB = netip.MustParseAddrPort("192.0.2.2:7655")
)

// trip is a path and the time it lives in.
type trip struct {
	t       *testing.T
	p       *path
	now     time.Time
	pending []answer
}

// answer is a pong on its way.
type answer struct {
	at   time.Time
	from Way
	f    probe
}

func newTrip(t *testing.T, addrs ...netip.AddrPort) *trip {
	p := newPath(1412)
	var ways []Way
	for _, a := range addrs {
		ways = append(ways, Way{Addr: a})
	}
	p.setKnown(ways)
	return &trip{t: t, p: p, now: time.Unix(1000, 0)}
}

// run lets time pass for d: alive are the addresses at which the peer answers, after so long.
func (tr *trip) run(d time.Duration, alive map[netip.AddrPort]time.Duration) (pings int) {
	send := func(outs []out) {
		for _, o := range outs {
			if o.p.kind != kindPing {
				continue
			}
			pings++
			if rtt, ok := alive[o.to.Addr]; ok {
				tr.pending = append(tr.pending, answer{tr.now.Add(rtt), o.to, probe{kind: kindPong, txid: o.p.txid, run: 1}})
			}
		}
	}
	for end := tr.now.Add(d); tr.now.Before(end); tr.now = tr.now.Add(5 * time.Millisecond) {
		for len(tr.pending) > 0 && !tr.pending[0].at.After(tr.now) {
			outs, _, _ := tr.p.handle(tr.pending[0].f, tr.pending[0].from, tr.now)
			send(outs)
			tr.pending = tr.pending[1:]
		}
		outs, _ := tr.p.tick(tr.now)
		send(outs)
	}
	return pings
}

func (tr *trip) best() netip.AddrPort {
	if tr.p.best == nil {
		return netip.AddrPort{}
	}
	return tr.p.best.way.Addr
}

func (tr *trip) want(best netip.AddrPort) {
	tr.t.Helper()
	if got := tr.best(); got != best {
		tr.t.Errorf("the address in use is %s, want %s", got, best)
	}
}

func TestPathFindsItsWay(t *testing.T) {
	tr := newTrip(t, addrA, addrB)
	if n := tr.run(time.Minute, nil); n != 0 {
		t.Errorf("%d pings although nothing is to be sent", n)
	}
	tr.p.lastSend = tr.now
	tr.run(time.Second, map[netip.AddrPort]time.Duration{addrB: 20 * time.Millisecond})
	tr.want(addrB)
}

func TestPathGoesRoundWhatDies(t *testing.T) {
	both := map[netip.AddrPort]time.Duration{addrA: 10 * time.Millisecond, addrB: 10 * time.Millisecond}
	tr := newTrip(t, addrA, addrB)
	tr.p.keep = true
	tr.run(time.Second, both)
	first, other := tr.best(), addrA
	if first == addrA {
		other = addrB
	}
	tr.p.lastSend = tr.now
	for range 20 {
		tr.p.heard(tr.now)
		tr.run(50*time.Millisecond, both)
		tr.p.lastSend = tr.now
	}
	tr.want(first) // and no flapping between two that are equally near
	begin := tr.now
	for tr.best() == first && tr.now.Sub(begin) < 5*time.Second {
		tr.p.lastSend = tr.now
		tr.run(10*time.Millisecond, map[netip.AddrPort]time.Duration{other: 10 * time.Millisecond})
	}
	if d := tr.now.Sub(begin); d > time.Second {
		t.Errorf("the dead address was left after %s", d)
	}
	tr.want(other)
}

// A slow peer's answers come later than the next ping: they count.
func TestPathSlow(t *testing.T) {
	tr := newTrip(t, addrA)
	tr.p.keep = true
	tr.run(5*time.Second, map[netip.AddrPort]time.Duration{addrA: 900 * time.Millisecond})
	tr.want(addrA)
	if rtt := tr.p.cands[Way{Addr: addrA}].rtt; rtt < 800*time.Millisecond || rtt > 1000*time.Millisecond {
		t.Errorf("round trip %s", rtt)
	}
}

// Neither what the peer once said nor an answer from elsewhere draws traffic to an address.
func TestPathReplay(t *testing.T) {
	evil := netip.MustParseAddrPort("203.0.113.66:1")
	tr := newTrip(t, addrA)
	tr.p.lastSend = tr.now
	outs, _ := tr.p.tick(tr.now)
	pong := probe{kind: kindPong, txid: outs[0].p.txid, run: 1}
	tr.p.handle(pong, Way{Addr: evil}, tr.now)
	tr.want(netip.AddrPort{})
	tr.p.handle(pong, Way{Addr: addrA}, tr.now)
	tr.want(addrA)
	old := probe{kind: kindPing, txid: 7, want: true, run: 2}
	outs, wants, anew := tr.p.handle(old, Way{Addr: evil}, tr.now)
	if wants || anew || len(outs) == 0 || outs[0] != (out{Way{Addr: evil}, probe{kind: kindPong, txid: 7, seen: evil}}) {
		t.Errorf("a replayed ping: %v, wants %v, anew %v", outs, wants, anew)
	}
	if _, wants, anew := tr.p.handle(pong, Way{Addr: addrA}, tr.now); wants || anew {
		t.Error("an answer counted twice")
	}
	tr.want(addrA)
}

func TestPathForgetsStrangers(t *testing.T) {
	tr := newTrip(t, addrA)
	for i := range 100 {
		tr.p.handle(probe{kind: kindPing}, Way{Addr: netip.AddrPortFrom(addrB.Addr(), uint16(i+1))}, tr.now)
	}
	if n := len(tr.p.cands); n != maxDirect || tr.p.cands[Way{Addr: addrA}] == nil {
		t.Errorf("%d candidates", n)
	}
	tr.run(seenLasts+time.Second, nil)
	if n := len(tr.p.cands); n != 1 {
		t.Errorf("%d candidates after a time", n)
	}
}

func TestRestartIsTold(t *testing.T) {
	tr := newTrip(t, addrA)
	tr.p.keep = true
	ask := func(run uint32, want bool) (bool, bool) {
		tr.now = tr.now.Add(keepEvery + time.Second)
		outs, _ := tr.p.tick(tr.now)
		_, wants, anew := tr.p.handle(probe{kind: kindPong, txid: outs[0].p.txid, run: run, want: want}, Way{Addr: addrA}, tr.now)
		return wants, anew
	}
	for _, c := range []struct {
		run         uint32
		want, isNew bool
	}{{5, false, false}, {5, true, false}, {6, false, true}, {6, false, false}} {
		if wants, anew := ask(c.run, c.want); wants != c.want || anew != c.isNew {
			t.Errorf("run %d: wants %v, anew %v", c.run, wants, anew)
		}
	}
}

func halves(t testing.TB) (send, recv half) {
	a, err1 := ecdh.X25519().GenerateKey(rand.Reader)
	b, err2 := ecdh.X25519().GenerateKey(rand.Reader)
	send, _, err3 := newHalves(a, b.PublicKey())
	_, recv, err4 := newHalves(b, a.PublicKey())
	for _, err := range []error{err1, err2, err3, err4} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return send, recv
}

func TestFrame(t *testing.T) {
	send, recv := halves(t)
	want := probe{kind: kindPong, txid: 1 << 60, moved: true, want: true, keep: true, run: 77, grant: 1 << 50, seen: addrA, size: 1400}
	b := send.seal(want)
	if got, ok := recv.open(b); !ok || got != want || frameID(b) != recv.id || len(b) != 1400 {
		t.Errorf("%+v came back as %+v, %v", want, got, ok)
	}
	for i := range b {
		c := bytes.Clone(b)
		c[i] ^= 1
		if _, ok := recv.open(c); ok && i >= headSize {
			t.Errorf("a frame with byte %d changed was opened", i)
		}
	}
}

func FuzzOpen(f *testing.F) {
	send, recv := halves(f)
	good := send.seal(probe{kind: kindPing, txid: 1})
	f.Add(good)
	f.Add(good[:headSize])
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, ok := recv.open(b); ok && !bytes.Equal(b, good) {
			t.Fatalf("%x was opened", b)
		}
	})
}

// Who asks again and again is asked back now and then, however quickly answers come.
func TestPathCalm(t *testing.T) {
	tr := newTrip(t, addrA)
	tr.p.keep = true
	tr.run(time.Second, map[netip.AddrPort]time.Duration{addrA: time.Millisecond})
	pings := 0
	for i := range 200 {
		tr.now = tr.now.Add(time.Millisecond)
		outs, _, _ := tr.p.handle(probe{kind: kindPing, txid: uint64(i), want: true}, Way{Addr: addrA}, tr.now)
		for _, o := range outs {
			if o.p.kind == kindPing {
				pings++
				tr.p.handle(probe{kind: kindPong, txid: o.p.txid, run: 1}, o.to, tr.now)
			}
		}
	}
	if pings > 2 {
		t.Errorf("%d pings in answer to 200 within 0.2 s", pings)
	}
}

// A word now and then, as to the store, is not a conversation: the way in use is watched, and others are left alone.
func TestPathNowAndThen(t *testing.T) {
	alive := map[netip.AddrPort]time.Duration{}
	var addrs []netip.AddrPort
	for i := range 4 {
		a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 7655)
		addrs, alive[a] = append(addrs, a), 10*time.Millisecond
	}
	tr := newTrip(t, addrs...)
	tr.p.keep = true
	tr.p.lastSend = tr.now
	tr.run(10*time.Second, alive)
	pings := 0
	for range 60 {
		for _, after := range []time.Duration{10 * time.Millisecond, 9990 * time.Millisecond} { // a question, and to acknowledge the answer
			tr.p.lastSend = tr.now
			pings += tr.run(after, alive)
		}
	}
	if pings > 60*3 {
		t.Errorf("%d pings in ten minutes in which something was sent 60 times", pings)
	}
	for range 100 {
		tr.p.lastSend = tr.now
		pings += tr.run(100*time.Millisecond, alive)
	}
	delete(alive, tr.best())
	dead := tr.best()
	tr.p.lastSend = tr.now
	tr.run(700*time.Millisecond, alive)
	if tr.best() == dead {
		t.Error("the last thing that was sent was not watched")
	}
}

// A peer that does not answer any more costs little time, whatever was going on.
func TestPathSilent(t *testing.T) {
	tr := newTrip(t, addrA)
	tr.p.keep = true
	outs, _ := tr.p.tick(tr.now)
	tr.p.handle(probe{kind: kindPong, txid: outs[0].p.txid, run: 1}, outs[0].to, tr.now)
	ticks := 0
	for end := tr.now.Add(10 * time.Minute); tr.now.Before(end) && ticks < 1000; ticks++ {
		_, next := tr.p.tick(tr.now)
		if next.IsZero() {
			break
		}
		tr.now = tr.now.Add(max(next.Sub(tr.now), 5*time.Millisecond)) // as Link.Run does
	}
	if ticks > 200 {
		t.Errorf("%d ticks in %s", ticks, tr.now.Sub(time.Unix(1000, 0)))
	}
}

// TestBegins asks for a thousand handshakes at once: they are begun over some seconds.
func TestBegins(t *testing.T) {
	var b begins
	now, begun := time.Unix(1000, 0), 0
	for range int(time.Second / beginWait) {
		for range 1000 {
			if b.take(now) {
				begun++
			}
		}
		now = now.Add(beginWait)
	}
	if begun < beginRate || begun > beginRate+beginMost {
		t.Errorf("%d were begun in a second", begun)
	}
}
