// SPDX-License-Identifier: MIT

// Package tcp makes and takes a node's TCP connections: for joining, and for the links that carry packets where UDP is
// blocked (vpn/stream).
//
// Dial finds names through the Go resolver, never through NSS, which may be ours, and goes through an HTTP or SOCKS
// proxy where it is told to. An Acceptor takes TLS connections at one port, picks what serves each by ALPN (RFC 7301),
// and keeps strangers few: see the constants of accept.go.
//
// On every connection TCP_NODELAY is set (Go does that) and the kernel keeps at most 64 KiB that it has not sent yet
// (TCP_NOTSENT_LOWAT, tcp(7)), so that what waits does so where it can still be dropped.
//
// All functions are safe for concurrent use. Goroutines end before the call that started them returns.
package tcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"syscall"
	"time"
)

// Listen listens on all addresses. Its error says what to do where the port is taken.
func Listen(ctx context.Context, port int) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", ":"+strconv.Itoa(port))
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("TCP port %d is in use: end the program that has it, or choose another (port = … in mesh.toml): %w", port, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listening on TCP port %d: %w", port, err)
	}
	return tuned{l}, nil
}

// tuned tunes what is accepted, which does not have it from the listener's socket.
type tuned struct{ net.Listener }

func (l tuned) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tc, ok := c.(syscall.Conn); ok {
		if raw, err := tc.SyscallConn(); err == nil {
			tune("", "", raw)
		}
	}
	return c, err
}

// Race calls try for 0 to n-1, each stagger after the one before or at once when all earlier ones have failed. It returns
// the first success and whose it was; the others' contexts end, and what they still bring is closed. If none succeeds it
// returns all their errors.
func Race[T io.Closer](ctx context.Context, n int, stagger time.Duration, try func(ctx context.Context, i int) (T, error)) (won T, who int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		i    int
		conn T
		err  error
	}
	results := make(chan result, n)
	next := time.NewTimer(0)
	defer next.Stop()
	started, ended, found := 0, 0, false
	var errs []error
	for ended < started || started < n && !found {
		if started < n && !found && started == ended {
			next.Reset(0)
		}
		select {
		case <-next.C:
			if i := started; i < n && !found {
				started++
				go func() {
					c, err := try(ctx, i)
					results <- result{i, c, err}
				}()
				next.Reset(stagger)
			}
		case r := <-results:
			ended++
			switch {
			case r.err != nil:
				errs = append(errs, r.err)
			case found:
				r.conn.Close()
			default:
				found, won, who = true, r.conn, r.i
				cancel()
			}
		}
		if ctx.Err() != nil && !found && ended == started {
			errs = append(errs, ctx.Err())
			break
		}
	}
	switch {
	case n == 0:
		return won, 0, errors.New("no address is known")
	case !found:
		return won, 0, errors.Join(errs...)
	}
	return won, who, nil
}
