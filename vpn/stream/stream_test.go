// SPDX-License-Identifier: MIT

package stream

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mesh.internal/mesh/vpn/identity"
)

func newCA(t testing.TB) *identity.CA {
	t.Helper()
	ca, err := identity.NewCA("mesh")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func newIdentity(t testing.TB, ca *identity.CA, name string) *identity.Identity {
	t.Helper()
	k, wg, err := identity.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	c, err := ca.Issue(name, "mesh.internal", []netip.Addr{netip.MustParseAddr("10.11.0.1")}, &k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.New(ca, []*x509.Certificate{c}, k, wg)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// wire is one end of a connection in memory, which can be spoilt.
type wire struct {
	net.Conn
	net   *network
	delay time.Duration // of a write
}

func (w wire) Write(b []byte) (int, error) {
	if w.net.hole.Load() {
		return len(b), nil
	}
	if d := w.net.perByte.Load(); d > 0 {
		<-time.After(time.Duration(d) * time.Duration(len(b)))
	}
	<-time.After(w.delay)
	return w.Conn.Write(b)
}

// network joins nodes in memory: an address is a node's name with the port 1.
type network struct {
	hole    atomic.Bool  // what is written is lost
	perByte atomic.Int64 // nanoseconds

	mu      sync.Mutex
	delay   func() time.Duration // of a dial
	serve   map[string]func(net.Conn)
	conns   []net.Conn
	dialled []time.Time
}

func newNetwork() *network {
	return &network{serve: map[string]func(net.Conn){}, delay: func() time.Duration { return 0 }}
}

func (n *network) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	host, _, _ := net.SplitHostPort(addr)
	n.mu.Lock()
	n.dialled = append(n.dialled, time.Now())
	serve, delay := n.serve[host], n.delay()
	n.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if serve == nil {
		return nil, errors.New("connection refused")
	}
	ours, theirs := net.Pipe()
	n.mu.Lock()
	n.conns = append(n.conns, ours)
	n.mu.Unlock()
	go serve(wire{theirs, n, delay})
	return wire{ours, n, delay}, nil
}

// cut breaks all connections.
func (n *network) cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.conns {
		c.Close()
	}
	n.conns = nil
}

// node is a member under test.
type node struct {
	*Streams
	id *identity.Identity

	mu      sync.Mutex
	got     [][]byte
	changes []string
	receive func() // holds up the reader
}

// start runs a node until the test has ended.
func (n *network) start(t *testing.T, id *identity.Identity) *node {
	x := &node{id: id}
	cfg := Config{Identity: id, Dial: n.dial, Log: slog.New(slog.DiscardHandler),
		Receive: func(from string, pkts [][]byte) {
			x.mu.Lock()
			for _, p := range pkts {
				x.got = append(x.got, bytes.Clone(p))
			}
			f := x.receive
			x.mu.Unlock()
			if f != nil {
				f()
			}
		},
		Changed: func(name string, up bool) {
			x.mu.Lock()
			defer x.mu.Unlock()
			x.changes = append(x.changes, fmt.Sprintf("%s %v", name, up))
		}}
	x.Streams = New(cfg)
	n.mu.Lock()
	n.serve[id.Node.Name] = x.accept
	n.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { x.Run(ctx); close(ended) }()
	t.Cleanup(func() { cancel(); <-ended })
	synctest.Wait()
	return x
}

// accept is what an acceptor does.
func (x *node) accept(c net.Conn) {
	tc := tls.Server(c, x.TLS())
	c.SetDeadline(time.Now().Add(10 * time.Second))
	defer c.SetDeadline(time.Time{})
	if tc.Handshake() != nil {
		c.Close()
		return
	}
	x.Serve(tc)
}

func (x *node) received() [][]byte {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.got)
}

func (x *node) said() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.changes)
}

// counts returns how many connections are links and how many may become some.
func (x *node) counts() (links, awaited int) {
	x.Streams.mu.Lock()
	defer x.Streams.mu.Unlock()
	return x.links, x.awaited
}

func (x *node) up(name string) (Status, bool) {
	for _, s := range x.Links() {
		if s.Name == name {
			return s, s.Up
		}
	}
	return Status{}, false
}

// bubble runs a test in virtual time, with a mesh of two.
func bubble(t *testing.T, f func(t *testing.T, n *network, ca *identity.CA, a, b *node)) {
	synctest.Test(t, func(t *testing.T) {
		n, ca := newNetwork(), newCA(t)
		f(t, n, ca, n.start(t, newIdentity(t, ca, "bkero")), n.start(t, newIdentity(t, ca, "spencer")))
	})
}

func wait(d time.Duration) { <-time.After(d); synctest.Wait() }

func TestDatagrams(t *testing.T) {
	bubble(t, func(t *testing.T, n *network, _ *identity.CA, a, b *node) {
		if err := a.Send("spencer", [][]byte{{1}}); err != ErrNoLink {
			t.Errorf("without a link: %v", err)
		}
		a.Want("spencer", []string{"nowhere:1", "spencer:1"}, true)
		wait(time.Second)
		var want [][]byte
		for _, size := range []int{1, 2, 3, 1400, 16 << 10, 16<<10 + 1, 40000, MaxDatagram} {
			p := make([]byte, size)
			for i := range p {
				p[i] = byte(size + i)
			}
			want = append(want, p)
		}
		for _, x := range []struct {
			from, to *node
			name     string
		}{{a, b, "spencer"}, {b, a, "bkero"}} {
			if err := x.from.Send(x.name, append(want[:len(want):len(want)], nil, make([]byte, MaxDatagram+1))); err != nil {
				t.Fatal(err)
			}
			wait(time.Second)
			if got := x.to.received(); !slices.EqualFunc(got, want, bytes.Equal) {
				t.Errorf("to %s came %d datagrams, want %d", x.name, len(got), len(want))
			}
		}
		if s, up := a.up("spencer"); !up || !s.Dialled || !s.Wanted || s.Dropped != 2 || s.RX != s.TX || s.RX == 0 {
			t.Errorf("%+v", s)
		}
		wait(10 * time.Minute) // pings keep it
		a.Want("spencer", nil, false)
		wait(time.Second)
		if len(a.Links()) != 0 || len(b.Links()) != 0 {
			t.Errorf("left: %+v %+v", a.Links(), b.Links())
		}
		if want := []string{"spencer true", "spencer false"}; !slices.Equal(a.said(), want) {
			t.Errorf("said %v", a.said())
		}
	})
}

// TestCrossing lets both dial at about the same time: what was sent arrives, there is a link all the time, and one stays.
func TestCrossing(t *testing.T) {
	for seed := range uint64(40) {
		bubble(t, func(t *testing.T, n *network, _ *identity.CA, a, b *node) {
			r := rand.New(rand.NewPCG(seed, 0))
			dials := rand.New(rand.NewPCG(seed, 1)) // n.mu guards it
			n.delay = func() time.Duration { return time.Duration(dials.IntN(5)) * time.Millisecond }
			n.perByte.Store(int64(r.IntN(3) * 1000))
			sent := map[*node]uint64{}
			burst := func(from *node, name string) {
				p := binary.BigEndian.AppendUint64(make([]byte, 0, 100), sent[from])
				if from.Send(name, [][]byte{p}) == nil {
					sent[from]++
				}
			}
			a.Want("spencer", []string{"spencer:1"}, true)
			wait(time.Duration(r.IntN(4)) * time.Millisecond)
			b.Want("bkero", []string{"bkero:1"}, true)
			for range 2000 {
				burst(a, "spencer")
				burst(b, "bkero")
				<-time.After(time.Duration(r.IntN(200)) * time.Microsecond)
			}
			wait(time.Minute)
			for _, x := range []struct{ from, to *node }{{a, b}, {b, a}} {
				got := map[uint64]bool{}
				for _, p := range x.to.received() {
					got[binary.BigEndian.Uint64(p)] = true
				}
				if uint64(len(got)) != sent[x.from] || sent[x.from] < 500 {
					t.Errorf("seed %d: of %d datagrams %d arrived", seed, sent[x.from], len(got))
				}
				if said := x.from.said(); len(said) != 1 {
					t.Errorf("seed %d: said %v", seed, said)
				}
				if links, _ := x.from.counts(); links != 1 {
					t.Errorf("seed %d: %d connections are left", seed, links)
				}
			}
			sa, _ := a.up("spencer")
			sb, _ := b.up("bkero")
			if !sa.Dialled || sb.Dialled {
				t.Errorf("seed %d: the link of the larger name stayed: %+v %+v", seed, sa, sb)
			}
		})
	}
}

func TestRetries(t *testing.T) {
	bubble(t, func(t *testing.T, n *network, _ *identity.CA, a, _ *node) {
		n.mu.Lock()
		delete(n.serve, "spencer")
		n.mu.Unlock()
		a.Want("spencer", []string{"spencer:1"}, true)
		wait(time.Hour)
		at := n.dialled
		var gaps []time.Duration
		for i := 1; i < len(at); i++ {
			gaps = append(gaps, at[i].Sub(at[i-1]))
		}
		if len(gaps) < 60 || len(gaps) > 100 || gaps[0] >= 2*time.Second || slices.Min(gaps) < time.Second || slices.Max(gaps) > time.Minute ||
			gaps[4] < 16*time.Second || slices.Min(gaps[8:]) == slices.Max(gaps[8:]) {
			t.Errorf("%d gaps: %v", len(gaps), gaps)
		}
		if s, _ := a.up("spencer"); s.Err == nil || !s.Next.After(time.Now()) {
			t.Errorf("%+v", s)
		}
		before := len(at)
		a.Want("spencer", []string{"spencer:1"}, true)
		wait(0)
		if len(n.dialled) != before {
			t.Error("saying the same again made it try")
		}
		a.Want("spencer", []string{"spencer:1", "spencer:2"}, true)
		wait(0)
		if len(n.dialled) == before {
			t.Error("a new address was not tried at once")
		}
	})
}

// TestCut breaks the connection: the link comes back at once, and again.
func TestCut(t *testing.T) {
	bubble(t, func(t *testing.T, n *network, _ *identity.CA, a, b *node) {
		a.Want("spencer", []string{"spencer:1"}, true)
		wait(time.Minute)
		for i := range 3 {
			n.cut()
			wait(time.Second)
			if _, up := a.up("spencer"); !up {
				t.Fatalf("cut %d: no link after 1 s", i+1)
			}
			wait(time.Minute)
		}
		if len(b.said()) != 7 {
			t.Errorf("spencer said %v", b.said())
		}
		n.mu.Lock()
		n.serve["spencer"] = func(c net.Conn) { b.accept(c); <-time.After(100 * time.Millisecond); c.Close() }
		n.dialled = nil
		n.mu.Unlock()
		n.cut()
		wait(time.Minute)
		if len(n.dialled) > 12 {
			t.Errorf("a link that never lives was dialled %d times in a minute", len(n.dialled))
		}
	})
}

// TestDead lets everything vanish that is written.
func TestDead(t *testing.T) {
	bubble(t, func(t *testing.T, n *network, _ *identity.CA, a, b *node) {
		a.Want("spencer", []string{"spencer:1"}, true)
		for _, sendAfter := range []time.Duration{0, 100 * time.Millisecond, 5 * time.Second} {
			n.hole.Store(false)
			wait(3 * time.Minute) // retries come back
			for range 10 {
				a.Send("spencer", [][]byte{{1}})
				b.Send("bkero", [][]byte{{1}})
				wait(10 * time.Millisecond)
			}
			if _, up := a.up("spencer"); !up {
				t.Fatal("no link")
			}
			wait(sendAfter)
			n.hole.Store(true)
			begin := time.Now()
			a.Send("spencer", [][]byte{{2}})
			for {
				wait(10 * time.Millisecond)
				if _, up := a.up("spencer"); !up {
					break
				}
			}
			if took := time.Since(begin); took < deadAfter-200*time.Millisecond || took > deadAfter+100*time.Millisecond {
				t.Errorf("sent %v after the last: dead after %v", sendAfter, took)
			}
		}
		n.hole.Store(false)
		wait(3 * time.Minute)
		n.hole.Store(true)
		wait(idle + deadAfter + time.Second)
		if _, up := b.up("bkero"); up {
			t.Error("with nothing to send it is not noticed at all")
		}
	})
}

// TestSlow sends more than the network carries: what is too much is dropped, and the link lives.
func TestSlow(t *testing.T) {
	bubble(t, func(t *testing.T, n *network, _ *identity.CA, a, b *node) {
		a.Want("spencer", []string{"spencer:1"}, true)
		wait(time.Second)
		n.perByte.Store(int64(time.Second / 20000)) // 20 kB/s: 256 KiB take 13 s
		pkt := make([]byte, 1400)
		for range 600 {
			begin := time.Now()
			for range 10 {
				if err := a.Send("spencer", [][]byte{pkt}); err != nil {
					t.Fatal(err)
				}
			}
			if time.Since(begin) > 0 {
				t.Fatal("Send waited")
			}
			wait(100 * time.Millisecond)
		}
		s, _ := a.up("spencer")
		if got := len(b.received()); s.Dropped < 4000 || got < 700 || len(a.said()) != 1 {
			t.Errorf("%d arrived, %d dropped, said %v", got, s.Dropped, a.said())
		}
		n.perByte.Store(0)
	})
}

// TestStuck has a receiver that does not take its datagrams: the sender neither waits nor keeps more than it may.
func TestStuck(t *testing.T) {
	bubble(t, func(t *testing.T, n *network, _ *identity.CA, a, b *node) {
		free := make(chan struct{})
		b.mu.Lock()
		b.receive = func() { <-free }
		b.mu.Unlock()
		a.Want("spencer", []string{"spencer:1"}, true)
		wait(time.Second)
		var last time.Time
		for range 1000 {
			if a.Send("spencer", [][]byte{make([]byte, 1400)}) == nil {
				last = time.Now()
			}
			a.Streams.mu.Lock()
			if l := a.peers["spencer"].last; l != nil {
				l.mu.Lock()
				if cap(l.queue) > 2*maxQueue || len(l.queue)+l.writing > maxQueue+room {
					t.Errorf("%d bytes queued", len(l.queue)+l.writing)
				}
				l.mu.Unlock()
			}
			a.Streams.mu.Unlock()
			wait(5 * time.Millisecond)
			if len(a.said()) > 1 {
				break
			}
		}
		if said := a.said(); len(said) < 2 || time.Since(last) > time.Second {
			t.Errorf("the link to one that is stuck goes on: %v", said)
		}
		close(free)
		a.Want("spencer", nil, false)
		wait(time.Minute)
	})
}

func TestHostile(t *testing.T) {
	try := func(name string, f func(t *testing.T, n *network, ca *identity.CA, a, b *node)) {
		t.Run(name, func(t *testing.T) { bubble(t, f) })
	}
	no := func(t *testing.T, x *node, name string) {
		t.Helper()
		wait(time.Minute)
		if _, up := x.up(name); up || len(x.said()) > 0 {
			t.Errorf("there is a link to %s: said %v", name, x.said())
		}
	}
	try("another mesh dials", func(t *testing.T, n *network, _ *identity.CA, _, b *node) {
		x := n.start(t, newIdentity(t, newCA(t), "nibz"))
		x.Want("spencer", []string{"spencer:1"}, true)
		no(t, x, "spencer")
		no(t, b, "nibz")
	})
	try("another mesh answers", func(t *testing.T, n *network, _ *identity.CA, a, _ *node) {
		n.start(t, newIdentity(t, newCA(t), "spencer")) // takes its place in the network
		a.Want("spencer", []string{"spencer:1"}, true)
		no(t, a, "spencer")
	})
	try("a member pretends to be another", func(t *testing.T, n *network, ca *identity.CA, a, _ *node) {
		nibz := n.start(t, newIdentity(t, ca, "nibz"))
		n.mu.Lock()
		n.serve["spencer"] = nibz.accept
		n.mu.Unlock()
		a.Want("spencer", []string{"spencer:1"}, true)
		no(t, a, "spencer")
		no(t, nibz, "bkero")
	})
	try("without a certificate", func(t *testing.T, n *network, _ *identity.CA, _, b *node) {
		c, _ := n.dial(t.Context(), "tcp", "spencer:1")
		tc := tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{Protocol}})
		tc.Handshake()
		tc.Write(appendControl(nil, kindPing))
		if _, err := tc.Read(make([]byte, 1)); err == nil {
			t.Error("a stranger was answered")
		}
		c.Close()
		no(t, b, "")
	})
	try("evicted", func(t *testing.T, n *network, ca *identity.CA, a, _ *node) {
		var evicted atomic.Bool
		id := newIdentity(t, ca, "nibz")
		id.Evicted = func(i identity.Node) bool { return evicted.Load() && i.Name == "bkero" }
		x := n.start(t, id)
		a.Want("nibz", []string{"nibz:1"}, true)
		wait(time.Second)
		if _, up := x.up("bkero"); !up {
			t.Fatal("no link")
		}
		evicted.Store(true)
		x.Review()
		wait(time.Minute)
		if _, up := x.up("bkero"); up || len(x.said()) != 2 {
			t.Errorf("said %v", x.said())
		}
	})
	// speak does what a member's program might.
	speak := func(t *testing.T, n *network, b *node, id *identity.Identity, frames ...[]byte) *tls.Conn {
		c, _ := n.dial(t.Context(), "tcp", "spencer:1")
		cfg := id.TLS()
		cfg.ServerName, cfg.NextProtos = "spencer", []string{Protocol}
		tc := tls.Client(c, cfg)
		if err := tc.Handshake(); err != nil {
			t.Fatal(err)
		}
		go func() {
			for _, f := range frames {
				tc.Write(f)
			}
		}()
		t.Cleanup(func() { c.Close() })
		return tc
	}
	ping := appendControl(nil, kindPing)
	try("says nothing", func(t *testing.T, n *network, ca *identity.CA, _, b *node) {
		id := newIdentity(t, ca, "nibz")
		for range 2 * maxAwaited {
			speak(t, n, b, id)
		}
		synctest.Wait()
		if _, awaited := b.counts(); awaited != maxAwaited {
			t.Errorf("%d are awaited", awaited)
		}
		no(t, b, "nibz")
		if _, awaited := b.counts(); awaited != 0 {
			t.Errorf("%d are awaited after a minute", awaited)
		}
	})
	try("garbage", func(t *testing.T, n *network, ca *identity.CA, _, b *node) {
		tc := speak(t, n, b, newIdentity(t, ca, "nibz"), ping, []byte{0, 0, 3})
		go func() {
			for buf := make([]byte, 100); ; {
				if _, err := tc.Read(buf); err != nil {
					return
				}
			}
		}()
		wait(time.Second)
		if want := []string{"nibz true", "nibz false"}; !slices.Equal(b.said(), want) {
			t.Errorf("said %v", b.said())
		}
	})
	try("pings and does not read", func(t *testing.T, n *network, ca *identity.CA, _, b *node) {
		speak(t, n, b, newIdentity(t, ca, "nibz"), bytes.Repeat(ping, 1000), bytes.Repeat(ping, 1000))
		wait(time.Minute)
		if _, up := b.up("nibz"); up || len(b.said()) != 2 {
			t.Errorf("said %v", b.said())
		}
	})
	try("itself", func(t *testing.T, n *network, ca *identity.CA, a, b *node) {
		b.Want("spencer", []string{"spencer:1"}, true)
		x := n.start(t, b.id) // a copy of its disk, which has taken its address
		no(t, b, "spencer")
		tc := speak(t, n, b, b.id, ping)
		if _, err := tc.Read(make([]byte, 1)); err == nil {
			t.Error("it was answered")
		}
		no(t, x, "spencer")
	})
}

// TestSendAllocates demands that steady sending makes no garbage.
func TestSendAllocates(t *testing.T) {
	l := newLink("x", nil, true)
	defer l.watch.Stop()
	pkts := [][]byte{make([]byte, 1400), make([]byte, 1400), make([]byte, 100)}
	if n := testing.AllocsPerRun(1000, func() {
		l.send(pkts)
		l.mu.Lock()
		l.take(time.Now())
		l.writing = 0
		l.mu.Unlock()
	}); n != 0 {
		t.Errorf("%v allocations for each batch", n)
	}
}
