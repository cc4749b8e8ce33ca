// SPDX-License-Identifier: MIT

package tcp_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mesh.internal/mesh/vpn/tcp"
	"mesh.internal/mesh/vpn/tcp/tcptest"
)

// listen serves each connection at a loopback address until the test has ended.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); serve(c) }()
		}
	}()
	return l.Addr().String()
}

func TestProxies(t *testing.T) {
	echo := listen(t, func(c net.Conn) { io.Copy(c, c) })
	var mu sync.Mutex
	var asked []string
	ask := func(addr string) { mu.Lock(); defer mu.Unlock(); asked = append(asked, addr) }
	closed := listen(t, func(net.Conn) {})
	page := listen(t, func(c net.Conn) { c.Write([]byte("HTTP/1.1 200 OK\r\n\r\n<html>log in first")) })
	endless := listen(t, func(c net.Conn) {
		for {
			if _, err := c.Write(bytes.Repeat([]byte("x"), 1000)); err != nil {
				return
			}
		}
	})
	_, port, _ := net.SplitHostPort(echo)
	const secret = "s3cret"
	for _, c := range []struct{ name, proxy, target, err string }{
		{"none", "", echo, ""},
		{"HTTP", "http://" + tcptest.HTTP(t, "", "", ask), echo, ""},
		{"HTTP, a name", "http://" + tcptest.HTTP(t, "", "", ask), "localhost:" + port, ""},
		{"HTTP with a password", "http://me:" + secret + "@" + tcptest.HTTP(t, "me", secret, ask), echo, ""},
		{"HTTP without the password", "http://" + tcptest.HTTP(t, "me", secret, ask), echo, "wants a user and a password"},
		{"HTTP with another password", "http://me:" + secret + "x@" + tcptest.HTTP(t, "me", secret, ask), echo, "does not accept this user"},
		{"HTTP, nobody there", "http://" + tcptest.HTTP(t, "", "", ask), "127.0.0.1:1", "HTTP status 502"},
		{"SOCKS", "socks5://" + tcptest.SOCKS(t, "", "", ask), echo, ""},
		{"SOCKS, a name", "socks5://" + tcptest.SOCKS(t, "", "", ask), "localhost:" + port, ""},
		{"SOCKS with a password", "socks5://me:" + secret + "@" + tcptest.SOCKS(t, "me", secret, ask), echo, ""},
		{"SOCKS with another password", "socks5://me:" + secret + "x@" + tcptest.SOCKS(t, "me", secret, ask), echo, "authentication failed"},
		{"SOCKS, nobody there", "socks5://" + tcptest.SOCKS(t, "", "", ask), "127.0.0.1:1", "refused"},
		{"no proxy there", "http://me:" + secret + "@127.0.0.1:1", echo, "the proxy cannot be reached"},
		{"one that hangs up", "http://" + closed, echo, "the answer of the proxy"},
		{"one that says more", "http://" + page, echo, "sent more than its answer"},
		{"one without end", "http://" + endless, echo, "the answer of the proxy"},
		{"another scheme", "gopher://me:" + secret + "@127.0.0.1:1", echo, "another scheme"},
		{"no URL", "http://me:" + secret + "@127.0.0.1:port", echo, "not a URL"},
		{"no host", "http://", echo, "not a URL"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			dial, err := tcp.Through(c.proxy)
			var conn net.Conn
			if err == nil {
				conn, err = dial(ctx, "tcp", c.target)
			}
			if err != nil {
				if c.err == "" || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), secret) {
					t.Fatalf("%v, want %q", err, c.err)
				}
				return
			}
			defer conn.Close()
			if c.err != "" {
				t.Fatalf("no error, want %q", c.err)
			}
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			conn.Write([]byte("hello"))
			b := make([]byte, 5)
			if _, err := io.ReadFull(conn, b); err != nil || string(b) != "hello" {
				t.Fatalf("%q, %v", b, err)
			}
		})
	}
	if len(asked) != 8 || asked[1] != "localhost:"+port {
		t.Errorf("the proxies were asked for %v", asked)
	}
	t.Run("given up", func(t *testing.T) {
		silent := listen(t, func(c net.Conn) { io.Copy(io.Discard, c) })
		for _, scheme := range []string{"http", "socks5"} {
			dial, err := tcp.Through(scheme + "://" + silent)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			if _, err := dial(ctx, "tcp", echo); err == nil {
				t.Errorf("%s: a silent proxy connects", scheme)
			}
			cancel()
		}
	})
	t.Run("environment", func(t *testing.T) {
		t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
		t.Setenv("NO_PROXY", "192.0.2.1")
		dial, err := tcp.Through(tcp.FromEnvironment)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dial(t.Context(), "tcp", "192.0.2.2:1"); err == nil || !strings.Contains(err.Error(), "the proxy cannot be reached") {
			t.Error(err)
		}
	})
}

type closer struct{ closed *atomic.Int32 }

func (c closer) Close() error { c.closed.Add(1); return nil }

func TestRace(t *testing.T) {
	fail := func(context.Context) error { return errors.New("refused") }
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	after := func(d time.Duration) func(context.Context) error {
		return func(ctx context.Context) error {
			<-time.After(d) // does not notice that it is not wanted
			return nil
		}
	}
	for name, c := range map[string]struct {
		tries  []func(context.Context) error
		who    int // -1: nobody
		took   time.Duration
		closed int32
	}{
		"first":         {[]func(context.Context) error{after(0), after(0)}, 0, 0, 0},
		"second":        {[]func(context.Context) error{hang, after(0)}, 1, time.Second, 0},
		"after refusal": {[]func(context.Context) error{fail, fail, after(0)}, 2, 0, 0},
		"two":           {[]func(context.Context) error{after(1500 * time.Millisecond), after(time.Second)}, 0, 2 * time.Second, 1},
		"nobody":        {[]func(context.Context) error{fail, fail}, -1, 0, 0},
		"too long":      {[]func(context.Context) error{hang, hang, hang}, -1, time.Minute, 0},
		"none":          {nil, -1, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				var closed atomic.Int32
				begin := time.Now()
				_, who, err := tcp.Race(ctx, len(c.tries), time.Second, func(ctx context.Context, i int) (closer, error) {
					return closer{&closed}, c.tries[i](ctx)
				})
				if err != nil {
					who = -1
				}
				if took := time.Since(begin); who != c.who || took != c.took || closed.Load() != c.closed {
					t.Errorf("%d won after %v, %d closed, %v", who, took, closed.Load(), err)
				}
			})
		})
	}
}

func TestAcceptor(t *testing.T) {
	srv := tlsConfig(t)
	var served sync.Map
	serve := func(name string) tcp.Protocol {
		return tcp.Protocol{TLS: srv, Serve: func(ctx context.Context, c *tls.Conn) {
			defer c.Close()
			if _, twice := served.LoadOrStore(c.RemoteAddr().String(), name); twice {
				t.Error("served twice")
			}
			fmt.Fprint(c, name+"\n")
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			io.Copy(io.Discard, c)
		}}
	}
	a := &tcp.Acceptor{Log: slog.New(slog.DiscardHandler), Protocols: map[string]tcp.Protocol{"": serve("none"), "x/1": serve("x"), "y/1": serve("y")}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { a.Serve(ctx, l); close(ended) }()
	ask := func(protos ...string) (string, net.Conn) {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		tc := tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: protos})
		b := make([]byte, 20)
		n, err := tc.Read(b)
		if err != nil {
			return "refused", c
		}
		return strings.TrimSpace(string(b[:n])), c
	}
	for want, protos := range map[string][]string{"none": nil, "x": {"x/1"}, "y": {"y/1", "x/1"}, "refused": {"z/1"}} {
		if got, c := ask(protos...); got != want {
			t.Errorf("%v is served by %q", protos, got)
		} else {
			c.Close()
		}
	}
	// One address may hold 16 connections, and then none more until one goes.
	var last net.Conn
	for n := 0; ; n++ {
		got, c := ask("x/1")
		if got == "refused" {
			if n < 13 { // those above may not have gone yet
				t.Errorf("%d connections were too many", n)
			}
			break
		}
		if last = c; n > 16 {
			t.Fatal("no limit")
		}
	}
	last.Close()
	for begin := time.Now(); ; {
		if got, _ := ask("x/1"); got == "x" {
			break
		}
		if time.Since(begin) > 10*time.Second {
			t.Fatal("a place is never free again")
		}
	}
	cancel()
	<-ended
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("it still listens")
	}
}

func TestListen(t *testing.T) {
	l, err := tcp.Listen(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := tcp.Listen(t.Context(), l.Addr().(*net.TCPAddr).Port); err == nil || !strings.Contains(err.Error(), "is in use: end the program") {
		t.Error(err)
	}
}
