// SPDX-License-Identifier: MIT

package vpn_test

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"mesh.internal/mesh/vpn"
	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/stream"
	"mesh.internal/mesh/vpn/tcp"
)

// overTLS is a mesh of three. From and to c no UDP gets while it is blocked; c can reach a over TLS.
func overTLS(t *testing.T) (a, b, c *node, blocked *atomic.Bool, evicter *atomic.Pointer[vpn.Node]) {
	m := newMesh(t)
	blocked, evicter = new(atomic.Bool), new(atomic.Pointer[vpn.Node])
	blocked.Store(true)
	behind := netip.MustParseAddr("192.0.2.3")
	m.net.Lose(func(from, to netip.AddrPort) bool {
		return blocked.Load() && (from.Addr() == behind || to.Addr() == behind)
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.config = func(c *vpn.Config) {
		c.Identity.Evicted = func(x identity.Node) bool { n := evicter.Load(); return n != nil && n.Evicted(x) }
		c.Dial = func(ctx context.Context, _, addr string) (net.Conn, error) {
			if addr != "192.0.2.1:7655" {
				return nil, net.ErrClosed
			}
			return new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
		}
	}
	a, b, c = m.node(1), m.node(2), m.node(3)
	acc := &tcp.Acceptor{Log: slog.New(slog.DiscardHandler), Protocols: map[string]tcp.Protocol{stream.Protocol: {
		TLS: a.Streams().TLS(), Serve: func(_ context.Context, c *tls.Conn) { a.Streams().Serve(c) }}}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { acc.Serve(ctx, ln); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	for _, n := range []*node{b, c} {
		a.introduce(t, n)
		n.introduce(t, a)
	}
	return a, b, c, blocked, evicter
}

// TestUDPBlocked has a node from which and to which no UDP gets: it reaches one over TLS, and others through that one;
// when UDP works again, TLS is left.
func TestUDPBlocked(t *testing.T) {
	a, b, c, blocked, _ := overTLS(t)
	t.Logf("over TLS after %s", ping(t, c, a, 10*time.Second))
	ping(t, a, c, 5*time.Second)
	if w := c.way(t, a); !w.Stream {
		t.Errorf("the way is %+v", w)
	}
	c.wait(t, 3)
	b.wait(t, 3)
	ping(t, c, b, 10*time.Second)
	ping(t, b, c, 10*time.Second)
	if w := b.way(t, c); len(w.Via) != 1 {
		t.Errorf("the way of the other is %+v", w)
	}
	blocked.Store(false)
	limit := time.After(20 * time.Second)
	for !c.way(t, a).Endpoint.IsValid() || len(c.Streams().Links()) > 0 {
		select {
		case <-limit:
			t.Fatalf("TLS is not left: %+v", c.way(t, a))
		default:
			ping(t, c, a, time.Second)
		}
	}
	blocked.Store(true)
	t.Logf("over TLS again after %s", ping(t, c, a, 20*time.Second))
}

// TestStreamEvicted evicts a node that is reached over TLS: its stream ends, and it gets none any more.
func TestStreamEvicted(t *testing.T) {
	a, _, c, _, evicter := overTLS(t)
	ping(t, c, a, 10*time.Second)
	evicter.Store(a.Node)
	if _, err := a.Evict("n3", ""); err != nil {
		t.Fatal(err)
	}
	limit := time.After(10 * time.Second)
	for len(a.Streams().Links()) > 0 {
		select {
		case <-limit:
			t.Fatalf("it keeps its stream: %+v", a.Streams().Links())
		case <-time.After(10 * time.Millisecond):
		}
	}
	if err := c.Streams().Send("n1", [][]byte{{1}}); err == nil {
		<-time.After(3 * time.Second) // it may have been on its way out
		if err := c.Streams().Send("n1", [][]byte{{1}}); err == nil {
			t.Error("it has a stream again")
		}
	}
}
