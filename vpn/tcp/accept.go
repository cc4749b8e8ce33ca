// SPDX-License-Identifier: MIT

package tcp

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

// How much strangers may have at once. Who is over a limit is hung up on, and may come again.
const (
	maxConns     = 256              // handshakes and conversations, in all
	maxPerAddr   = 16               // of them from one IPv4 address or IPv6 /64: a household, or a carrier's NAT
	maxHandshake = 10 * time.Second // for a TLS handshake
)

// Protocol is what is spoken over a connection.
type Protocol struct {
	TLS *tls.Config // NextProtos is the acceptor's to set

	// Serve has c, whose handshake is done and which has no deadline, and closes it before or after it returns. Until it
	// returns, c counts as a stranger's. It must return when ctx ends.
	Serve func(ctx context.Context, c *tls.Conn)
}

// Acceptor takes TLS connections and hands each to the protocol that the client names by ALPN.
type Acceptor struct {
	Protocols map[string]Protocol // "" has clients that name none; others are refused by TLS
	Log       *slog.Logger
}

// Serve takes connections from l until ctx ends. It closes l and returns when all its handshakes and Protocol.Serves have.
func (a *Acceptor) Serve(ctx context.Context, l net.Listener) {
	cfg := a.config()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	crowd := crowd{from: map[netip.Prefix]int{}}
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			if c != nil {
				c.Close()
			}
			return
		}
		if err != nil { // as when descriptors have run out
			a.Log.Warn("connections are not accepted", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			continue
		}
		from := household(c.RemoteAddr())
		if !crowd.enter(from) {
			c.Close()
			a.Log.Debug("a connection was refused: there are too many", "endpoint", c.RemoteAddr().String())
			continue
		}
		wg.Go(func() {
			defer crowd.leave(from)
			if err := a.serve(ctx, tls.Server(c, cfg)); err != nil { // scanners
				c.Close()
				a.Log.Debug("a connection came to nothing", "endpoint", c.RemoteAddr().String(), "err", err)
			}
		})
	}
}

func (a *Acceptor) serve(ctx context.Context, c *tls.Conn) error {
	c.SetDeadline(time.Now().Add(maxHandshake))
	if err := c.HandshakeContext(ctx); err != nil {
		return err
	}
	c.SetDeadline(time.Time{})
	a.Protocols[c.ConnectionState().NegotiatedProtocol].Serve(ctx, c)
	return nil
}

// config chooses a protocol's configuration by what the client names.
func (a *Acceptor) config() *tls.Config {
	configs := map[string]*tls.Config{}
	for name, p := range a.Protocols {
		configs[name] = p.TLS.Clone()
		configs[name].SessionTicketsDisabled = true // a new handshake each time: nothing to steal, nothing that outlives an eviction
		if name != "" {
			configs[name].NextProtos = []string{name}
		}
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if len(h.SupportedProtos) == 0 && configs[""] != nil {
			return configs[""], nil
		}
		for _, name := range h.SupportedProtos {
			if c := configs[name]; c != nil && name != "" {
				return c, nil
			}
		}
		return nil, fmt.Errorf("the client speaks none of our protocols: %.80q", h.SupportedProtos)
	}}
}

// household is whom connections from an address are counted for.
func household(a net.Addr) netip.Prefix {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Prefix{} // not of TCP: all of them together
	}
	ip, bits := ap.Addr().Unmap().WithZone(""), 64
	if ip.Is4() {
		bits = 32
	}
	return netip.PrefixFrom(ip, bits).Masked()
}

// crowd counts connections.
type crowd struct {
	mu   sync.Mutex
	all  int
	from map[netip.Prefix]int
}

func (c *crowd) enter(p netip.Prefix) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all >= maxConns || c.from[p] >= maxPerAddr {
		return false
	}
	c.all++
	c.from[p]++
	return true
}

func (c *crowd) leave(p netip.Prefix) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
	if c.from[p]--; c.from[p] == 0 {
		delete(c.from, p)
	}
}
