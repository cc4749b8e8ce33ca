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
	"mesh.internal/mesh/vpn/stream"
	"mesh.internal/mesh/vpn/tcp"
)

// TestUDPBlocked has a node from which and to which no UDP gets: it reaches one over TLS, and others through that one;
// when UDP works again, TLS is left.
func TestUDPBlocked(t *testing.T) {
	m := newMesh(t)
	var blocked atomic.Bool
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
		c.Dial = func(ctx context.Context, _, addr string) (net.Conn, error) {
			if addr != "192.0.2.1:7655" {
				return nil, net.ErrClosed
			}
			return new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
		}
	}
	a, b, c := m.node(1), m.node(2), m.node(3)
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
}
