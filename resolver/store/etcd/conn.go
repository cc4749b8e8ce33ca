// SPDX-License-Identifier: MIT

package etcd

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
)

// links makes the connections to a cluster, and remembers why those that failed did: gRPC has no more than a text of it.
type links struct {
	cfg  Config
	made atomic.Int64 // connections on which a server has said something
	met  atomic.Int64 // made when the servers' versions were last asked

	mu       sync.Mutex       // guards troubles
	troubles map[string]error // by address: why there is no connection now
}

// manyTroubles bounds what is remembered, since the addresses behind a name may change without end.
const manyTroubles = 16

func (l *links) note(addr string, err error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, net.ErrClosed) {
		return // our own doing
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		delete(l.troubles, addr)
		return
	}
	if l.troubles == nil || len(l.troubles) >= manyTroubles {
		l.troubles = map[string]error{}
	}
	l.troubles[addr] = err
}

// trouble says, of every address that is not connected, why.
func (l *links) trouble() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []string
	for addr, err := range l.troubles {
		all = append(all, l.cfg.whyNot(addr, err, time.Now()))
	}
	slices.Sort(all)
	return strings.Join(all, "; ")
}

// options are those of gRPC.
func (l *links) options() []grpc.DialOption {
	out := []grpc.DialOption{
		grpc.WithContextDialer(l.dial),
		// gRPC's own waits grow to two minutes: too long for a store that is back, or for somebody who has just put a certificate right.
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 3 * time.Second,
			Backoff: backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second}}),
	}
	if l.cfg.secure() {
		out = append(out, grpc.WithTransportCredentials(handshakes{l}))
	}
	return out
}

// dial connects directly: a proxy in the environment is for the Internet, and the store is on the mesh or near it.
func (l *links) dial(ctx context.Context, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	l.note(addr, err)
	if err != nil || l.cfg.secure() {
		return conn, err
	}
	return newLink(conn, l), nil
}

// handshakes are gRPC's credentials with the files of the moment.
type handshakes struct{ l *links }

// ClientHandshake implements credentials.TransportCredentials.
func (h handshakes) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	addr := raw.RemoteAddr().String()
	cfg, err := h.l.cfg.Files.tls(h.l.cfg.TLS)
	if err != nil {
		h.l.note(addr, err)
		return nil, nil, err
	}
	conn, info, err := credentials.NewTLS(cfg).ClientHandshake(ctx, authority, raw)
	if err != nil {
		h.l.note(addr, err)
		return nil, nil, err
	}
	return newLink(conn, h.l), info, nil
}

// ServerHandshake implements credentials.TransportCredentials.
func (handshakes) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are a client's")
}

// Info implements credentials.TransportCredentials.
func (handshakes) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (h handshakes) Clone() credentials.TransportCredentials { return h }

// OverrideServerName implements credentials.TransportCredentials.
func (handshakes) OverrideServerName(string) error { return nil }

// link is a connection of which the first words are watched: with TLS 1.3 a client learns only from them whether the
// server has taken its certificate.
type link struct {
	net.Conn
	l     *links
	heard bool          // used by gRPC's one reader
	first chan struct{} // closed when the server has said something, or will not
	once  sync.Once
}

func newLink(c net.Conn, l *links) *link { return &link{Conn: c, l: l, first: make(chan struct{})} }

// lastWords is how long a server that has hung up is listened to: why it did may be on the way.
const lastWords = 100 * time.Millisecond

// Write implements net.Conn. gRPC closes a connection that cannot be written, before its reader may have seen why.
func (c *link) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil {
		select {
		case <-c.first:
		case <-time.After(lastWords):
		}
	}
	return n, err
}

// Read implements net.Conn.
func (c *link) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.heard {
		return n, err
	}
	defer c.once.Do(func() { close(c.first) }) // after the note
	if c.heard = n > 0; c.heard {
		c.l.made.Add(1)
		c.l.note(c.RemoteAddr().String(), nil)
	} else if err != nil {
		c.l.note(c.RemoteAddr().String(), err)
	}
	return n, err
}
