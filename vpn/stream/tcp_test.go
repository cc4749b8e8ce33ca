// SPDX-License-Identifier: MIT

package stream

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mesh.internal/mesh/vpn/tcp"
	"mesh.internal/mesh/vpn/tcp/tcptest"
)

// pair runs two nodes on loopback, the first of which dials through a proxy, and returns when they have a link.
func pair(t testing.TB, proxy string, receive func(pkts [][]byte)) (a, b *Streams) {
	t.Helper()
	ca := newCA(t)
	log := slog.New(slog.DiscardHandler)
	up := make(chan bool, 10)
	run := func(name string, dial tcp.Dial) *Streams {
		s := New(Config{Identity: newIdentity(t, ca, name), Dial: dial, Log: log,
			Receive: func(_ string, pkts [][]byte) { receive(pkts) },
			Changed: func(_ string, is bool) { up <- is }})
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { s.Run(ctx) })
		t.Cleanup(func() { cancel(); wg.Wait() })
		return s
	}
	dial, err := tcp.Through(proxy)
	if err != nil {
		t.Fatal(err)
	}
	a, b = run("bkero", dial), run("spencer", nil)
	l, err := tcp.Listen(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	acceptor := tcp.Acceptor{Log: log, Protocols: map[string]tcp.Protocol{
		Protocol: {TLS: b.TLS(), Serve: func(_ context.Context, c *tls.Conn) { b.Serve(c) }}}}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { acceptor.Serve(ctx, l) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	a.Want("spencer", []string{net.JoinHostPort("localhost", port)}, true)
	for range 2 {
		select {
		case <-up:
		case <-time.After(20 * time.Second):
			t.Fatalf("no link: %+v", a.Links())
		}
	}
	return a, b
}

// TestThroughProxies makes links as the kernel and real proxies carry them.
func TestThroughProxies(t *testing.T) {
	for name, proxy := range map[string]string{
		"none":  "",
		"HTTP":  "http://me:secret@" + tcptest.HTTP(t, "me", "secret", nil),
		"SOCKS": "socks5://me:secret@" + tcptest.SOCKS(t, "me", "secret", nil),
	} {
		t.Run(name, func(t *testing.T) {
			var got atomic.Int64
			all := make(chan struct{})
			a, b := pair(t, proxy, func(pkts [][]byte) {
				if got.Add(int64(len(pkts))) == 20 {
					close(all)
				}
			})
			a.Send("spencer", [][]byte{make([]byte, 1400), make([]byte, MaxDatagram)})
			for range 18 {
				b.Send("bkero", [][]byte{make([]byte, 1400)})
			}
			select {
			case <-all:
			case <-time.After(20 * time.Second):
				t.Fatalf("%d datagrams of 20 arrived", got.Load())
			}
		})
	}
}

// TestKernelQueue has a receiver that stops: the kernel must not hide a queue of megabytes from ours.
func TestKernelQueue(t *testing.T) {
	l, err := tcp.Listen(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := tcp.Direct(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for name, from := range map[string]net.Conn{"dialled": c, "accepted": s} {
		from.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := io.Copy(from, zeros{})
		if err == nil || n > 1<<20 {
			t.Errorf("%s: %d bytes went into the kernel, %v", name, n, err)
		}
		t.Logf("%s: %d bytes", name, n)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// BenchmarkLink carries batches of 32 datagrams of 1,420 bytes over loopback, as fast as they get through.
func BenchmarkLink(b *testing.B) {
	var got atomic.Int64
	var mu sync.Mutex
	moved := sync.NewCond(&mu)
	a, _ := pair(b, "", func(pkts [][]byte) {
		mu.Lock()
		defer mu.Unlock()
		got.Add(int64(len(pkts)))
		moved.Signal()
	})
	bufs := make([][]byte, 32)
	for i := range bufs {
		bufs[i] = make([]byte, 1420)
	}
	b.SetBytes(32 * 1420)
	b.ReportAllocs()
	sent, dropped := int64(0), int64(0)
	for got.Load() < 32*int64(b.N) {
		a.Send("spencer", bufs)
		sent += 32
		dropped = int64(a.Links()[0].Dropped)
		mu.Lock()
		for sent-dropped-got.Load() > 64 {
			moved.Wait()
		}
		mu.Unlock()
	}
}
