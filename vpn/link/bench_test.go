// SPDX-License-Identifier: MIT

package link

import (
	"crypto/ecdh"
	"crypto/rand"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

const (
	batchOf  = 45   // packets that one TSO segment of TCP becomes
	fullSize = 1412 // bytes of a sealed one
)

// discard is a Bind that sends nothing, and receives a batch as often as it is asked.
type discard struct {
	conn.Bind
	receive conn.ReceiveFunc
	sent    int
}

func (d *discard) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	return []conn.ReceiveFunc{d.receive}, port, nil
}

func (d *discard) Send(bufs [][]byte, _ conn.Endpoint) error {
	d.sent += len(bufs)
	return nil
}

// benchLink is a link with two peers that are reached directly and have granted something.
func benchLink(tb testing.TB, bind conn.Bind) (l *Link, peers [2]*Peer) {
	key := func() *ecdh.PrivateKey {
		k, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			tb.Fatal(err)
		}
		return k
	}
	l = New(bind, key(), fullSize)
	for i := range peers {
		p, err := l.Peer(string(rune('a'+i)), key().PublicKey())
		if err != nil {
			tb.Fatal(err)
		}
		p.direct.Store(&route{ep: &conn.StdNetEndpoint{AddrPort: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 7655)}})
		p.granted.Store(7)
		peers[i] = p
	}
	return l, peers
}

// buffers are as the engine has them: with room behind the packets.
func buffers() (bufs [][]byte) {
	for range batchOf {
		bufs = append(bufs, make([]byte, fullSize, 1<<16-1))
	}
	return bufs
}

// relayBatch returns a function that has a node take a batch and send it on to another, with or without a rate.
func relayBatch(tb testing.TB, rate int64) (once func(), bind *discard) {
	bind = &discard{}
	l, peers := benchLink(tb, bind)
	l.SetRelay(true, rate)
	trailer := Route{l.id}.trailer(peers[0].id, peers[1].id)
	(step{b: trailer, n: 2, done: 0}).advance(peers[0].id, l.grants.of(peers[0], time.Now())) // as the origin sends it
	bufs := buffers()
	for i, b := range bufs {
		b[0], b[1] = 4, relayMark
		bufs[i] = append(b, trailer...)[:cap(b)]
	}
	var from conn.Endpoint = peers[0].direct.Load().ep
	bind.receive = func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		for i := range bufs {
			copy(bufs[i][fullSize:], trailer)
			sizes[i], eps[i] = fullSize+len(trailer), from
		}
		return len(bufs), nil
	}
	fns, _, err := l.Open(0)
	if err != nil {
		tb.Fatal(err)
	}
	sizes, eps := make([]int, batchOf), make([]conn.Endpoint, batchOf)
	return func() { fns[0](bufs, sizes, eps) }, bind
}

// sendBatch returns a function that sends a batch through a relay.
func sendBatch(tb testing.TB) (once func(), bind *discard) {
	bind = &discard{}
	l, peers := benchLink(tb, bind)
	l.Changed = func(*Peer) {}
	w := Way{Via: Route{peers[0].id}}
	peers[1].best.Store(&route{way: w, first: peers[0], trailer: w.Via.trailer(l.id, peers[1].id)})
	bufs := buffers()
	for _, b := range bufs {
		b[0] = 4
	}
	batch := make([][]byte, batchOf)
	return func() {
		copy(batch, bufs)
		l.Send(batch, peers[1])
	}, bind
}

// TestNoGarbage checks that neither relaying nor sending through a relay allocates, which at 200,000 packets a second
// would be felt.
func TestNoGarbage(t *testing.T) {
	relay, relayed := relayBatch(t, 0)
	limited, within := relayBatch(t, 1<<40)
	send, sent := sendBatch(t)
	for _, c := range []struct {
		name string
		once func()
		bind *discard
	}{{"relaying", relay, relayed}, {"relaying at a rate", limited, within}, {"sending through a relay", send, sent}} {
		const runs = 10
		allocs := testing.AllocsPerRun(runs, c.once)
		if c.bind.sent != (runs+1)*batchOf { // AllocsPerRun begins with one more
			t.Errorf("%s: %d packets were sent, not %d", c.name, c.bind.sent, (runs+1)*batchOf)
		}
		if allocs >= 1 {
			t.Errorf("%s: %v allocations a batch of %d", c.name, allocs, batchOf)
		}
	}
}

func BenchmarkRelay(b *testing.B) {
	for _, c := range []struct {
		name string
		rate int64
	}{{"unlimited", 0}, {"limited", 1 << 40}} {
		b.Run(c.name, func(b *testing.B) {
			once, _ := relayBatch(b, c.rate)
			perPacket(b, once)
		})
	}
}

func BenchmarkSend(b *testing.B) {
	once, _ := sendBatch(b)
	perPacket(b, once)
}

func perPacket(b *testing.B, once func()) {
	b.ReportAllocs()
	for b.Loop() {
		once()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/batchOf, "ns/packet")
}
