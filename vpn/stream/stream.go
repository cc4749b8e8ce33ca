// SPDX-License-Identifier: MIT

// Package stream carries datagrams between two members over a TLS 1.3 connection, for networks that let no UDP through.
// The datagrams are WireGuard's sealed packets and the link's probes: what they mean, and when a link is wanted, is for
// the caller to know.
//
// # Wire format
//
// Both sides show the certificate that makes them members (identity.TLS); ALPN is "mesh-link/1". The name indicated
// (SNI) is the dialled host's, if it is a name, never the node's. Then both send frames, one after another:
//
//	0   length of the datagram, 2 bytes, big endian, 1 to 65535
//	2   datagram
//
//	0   two zero bytes
//	2   kind: 1 ping, 2 pong; anything else ends the link
//
// The dialler's first frame is a ping: it has chosen this connection among those it has tried. The other side admits it
// with a pong, and the dialler says with another that it has seen that.
// Frames that wait are written together, in TLS records of up to 16 KiB (RFC 8446 section 5.1).
//
// # Alive or dead
//
// Sending never waits: a link queues 256 KiB and drops what is newest. A link on which nothing was heard for 2 s after
// something was sent is dead. To be heard, a side that only receives sends a pong every 500 ms, and answers pings, which
// come after 500 ms of silence; with nothing to send, after 20 s. TCP_USER_TIMEOUT (tcp(7)) would tell of the TCP
// connection only, which may end at a proxy, and does not see a program that has stopped reading.
//
// # Crossing
//
// Of two connections that two members open to each other, the one dialled by the member whose name is smaller stays.
// When both sides have it, the other member closes the other one: it writes what waits, then reads to the end. Until
// then both carry, and a node sends on the one that came last. A member that dials again replaces what it dialled before.
//
// # Limits
//
// 256 links in all, 10 s to open one, 64 members at once that have not sent their ping; per link two buffers that hold
// 256 KiB together and one of 32 to 64 KiB for reading. Retries are 1 to 60 s apart.
//
// New starts nothing. Run owns all goroutines, those of connections given to Serve too, and returns when they have ended.
// Methods are safe for concurrent use.
package stream

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/tcp"
)

// Protocol is a link's name in ALPN.
const Protocol = "mesh-link/1"

const (
	maxLinks     = 256
	maxAwaited   = 64               // accepted connections that have not sent their ping
	openLimit    = 10 * time.Second // for all that comes before a link is up: TCP, a proxy, TLS, ping and pong
	tryNext      = time.Second      // between the beginnings of two addresses
	firstRetry   = time.Second
	lastRetry    = 40 * time.Second // half as much again by chance
	livedEnough  = 10 * time.Second // a link that has lived so long is dialled again at once
	betweenTries = time.Second      // whatever else happens
)

// ErrNoLink is Send's when there is no link to the node.
var ErrNoLink = errors.New("there is no TLS link to that node")

// Config is what Streams need. Its functions may call all methods but Run.
type Config struct {
	Identity *identity.Identity
	Dial     tcp.Dial                         // nil: tcp.Direct
	Receive  func(from string, pkts [][]byte) // datagrams, valid only during the call, which holds up that link alone
	Changed  func(name string, up bool)       // nil, or called when a node's first link is up and its last one gone, in turn
	Log      *slog.Logger
}

// Streams are this node's links. Make them with New.
type Streams struct {
	cfg  Config
	self string
	tls  *tls.Config

	wg sync.WaitGroup // Run's

	telling sync.Mutex // held while Changed runs; taken before mu

	mu      sync.Mutex      // guards the fields below; taken before a link's
	ctx     context.Context // nil unless Run runs
	peers   map[string]*peer
	links   int
	awaited int
}

// peer is a node to which a link is or is wanted.
//
//	        ┌──────────── Want(on) ──────────▶ pursued ── next has come ──▶ dialling
//	unknown ┤                                     ▲                            │ ping, pong
//	        └── Serve: ping, pong ──▶ linked ─────┴── link ended ── linked ◀───┘
type peer struct {
	name    string
	wanted  bool
	pursued bool // a goroutine is in pursue
	addrs   []string
	in, out *link              // that the peer and that we have dialled
	last    *link              // the one of these that came last: for sending
	poke    chan struct{}      // capacity 1: something has changed
	abandon context.CancelFunc // ends a try that has not sent its ping
	told    bool               // what Changed was last called with
	tries   int                // since a link was up for long
	tried   time.Time
	next    time.Time // when the next try may begin
	err     error     // of the last try or link
}

// New returns Streams without links.
func New(cfg Config) *Streams {
	if cfg.Dial == nil {
		cfg.Dial = tcp.Direct
	}
	s := &Streams{cfg: cfg, self: cfg.Identity.Node.Name, tls: cfg.Identity.TLS(), peers: map[string]*peer{}}
	s.tls.NextProtos = []string{Protocol}
	s.tls.SessionTicketsDisabled = true
	s.tls.DynamicRecordSizingDisabled = true // a batch is one record as often as possible
	return s
}

// TLS is the configuration with which connections for Serve are accepted.
func (s *Streams) TLS() *tls.Config { return s.tls.Clone() }

// Run lets links be until ctx ends; then all are closed.
func (s *Streams) Run(ctx context.Context) {
	s.mu.Lock()
	s.ctx = ctx
	for _, p := range s.peers {
		s.pursueLocked(p)
	}
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	s.ctx = nil
	s.mu.Unlock()
	s.wg.Wait()
}

// Want says whether a link to the node name shall be kept, and at which "host:port" it is dialled: in this order, one a
// second later than the one before, the first that is up stays. It may be repeated with other addresses, which are tried
// at once. Without on, the link that this node has dialled is closed; one that the other side wants stays.
func (s *Streams) Want(name string, addrs []string, on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name == s.self || !on && s.peers[name] == nil {
		return
	}
	p := s.peerLocked(name)
	if on && (!p.wanted || !slices.Equal(p.addrs, addrs)) {
		p.tries, p.next = 0, time.Time{}
	}
	p.wanted, p.addrs = on, slices.Clone(addrs)
	if on {
		s.pursueLocked(p)
	} else {
		if p.abandon != nil {
			p.abandon()
		}
		s.settleLocked(p)
	}
	p.wake()
	s.tidyLocked(p)
}

// Send sends copies of datagrams to the node name, or some, or none: like a network, it does not wait.
func (s *Streams) Send(name string, bufs [][]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[name]
	for p != nil && p.last != nil {
		if p.last.send(bufs) {
			return nil
		}
		p.drop(p.last)
	}
	return ErrNoLink
}

// Review closes the links of members that were evicted (identity.Identity.Evicted).
func (s *Streams) Review() {
	s.mu.Lock()
	var all []*link
	for _, p := range s.peers {
		for _, l := range []*link{p.in, p.out} {
			if l != nil {
				all = append(all, l)
			}
		}
	}
	s.mu.Unlock()
	for _, l := range all {
		if _, err := s.member(l.conn.ConnectionState()); err != nil {
			l.cut(err)
		}
	}
}

// Status is how things stand with a node to which a link is or is wanted.
type Status struct {
	Name    string
	Wanted  bool
	Up      bool
	Remote  string    // address of the connection's other end, a proxy's perhaps; "" without a link
	Dialled bool      // by this node
	Since   time.Time // of the link
	Next    time.Time // when it is tried again, if there is none
	RX, TX  uint64    // bytes of datagrams over this link
	Dropped uint64    // datagrams that found its queue full
	Err     error     // why the last try or link ended
}

// Links returns how things stand, sorted by name.
func (s *Streams) Links() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Status
	for name, p := range s.peers {
		st := Status{Name: name, Wanted: p.wanted, Err: p.err}
		if l := p.last; l != nil {
			l.mu.Lock()
			st.Up, st.Remote, st.Dialled, st.Since = true, l.conn.RemoteAddr().String(), l.dialled, l.since
			st.RX, st.TX, st.Dropped = l.rx, l.tx, l.dropped
			l.mu.Unlock()
		} else if p.wanted {
			st.Next = p.next
		}
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b Status) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Serve takes an accepted connection, whose handshake with TLS's configuration is done, and returns at once.
func (s *Streams) Serve(c *tls.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx == nil || s.awaited >= maxAwaited {
		c.NetConn().Close()
		return
	}
	s.awaited++
	ctx := s.ctx
	s.wg.Go(func() {
		stop := context.AfterFunc(ctx, func() { c.NetConn().Close() })
		defer stop()
		defer c.NetConn().Close()
		l, err := s.admit(c)
		s.mu.Lock()
		s.awaited--
		s.mu.Unlock()
		if err == nil {
			err = s.attach(l)
		}
		if err == nil {
			s.carry(l)
		} else {
			s.cfg.Log.Debug("an accepted TLS link came to nothing", "endpoint", c.RemoteAddr().String(), "err", err)
		}
	})
}

// admit waits for an accepted connection's ping.
func (s *Streams) admit(c *tls.Conn) (*link, error) {
	if p := c.ConnectionState().NegotiatedProtocol; p != Protocol {
		return nil, fmt.Errorf("the protocol is %q, want %q", p, Protocol)
	}
	n, err := s.member(c.ConnectionState())
	if err != nil {
		return nil, err
	}
	if err := await(c, kindPing); err != nil {
		return nil, fmt.Errorf("%s did not use the connection: %w", n.Name, err)
	}
	return newLink(n.Name, c, false), nil
}

// await reads a first control frame, and nothing behind it.
func await(c *tls.Conn, kind byte) error {
	c.SetReadDeadline(time.Now().Add(openLimit))
	b := make([]byte, controlSize)
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if want := appendControl(nil, kind); !bytes.Equal(b, want) {
		return fmt.Errorf("it begins with %x, want %x", b, want)
	}
	c.SetReadDeadline(time.Time{})
	return nil
}

// member returns whose certificate the other side has shown.
func (s *Streams) member(cs tls.ConnectionState) (identity.Node, error) {
	n, err := s.cfg.Identity.CA.Verify(cs.PeerCertificates)
	if err == nil && n.Name == s.self {
		err = errors.New("the other side has this node's own name")
	}
	if evicted := s.cfg.Identity.Evicted; err == nil && evicted != nil && evicted(n) {
		err = fmt.Errorf("%s was evicted from the mesh", n.Name)
	}
	return n, err
}

// attach makes l one of the links; carry must follow.
func (s *Streams) attach(l *link) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.links >= maxLinks {
		l.cut(errRetired)
		return fmt.Errorf("there are %d links already", maxLinks)
	}
	s.links++
	p := s.peerLocked(l.name)
	slot := &p.in
	if l.dialled {
		slot = &p.out
	}
	if *slot != nil {
		(*slot).retire(errRetired)
	}
	*slot, p.last = l, l
	l.peer = p
	s.settleLocked(p)
	p.wake()
	return nil
}

// settleLocked gives up the link to p, or the try to have one, that is not the one to stay.
func (s *Streams) settleLocked(p *peer) {
	unwanted := !p.wanted
	if p.in != nil && s.self > p.name {
		if p.abandon != nil {
			p.abandon()
		}
		unwanted = unwanted || p.in.used // both sides can send on it
	}
	if p.out != nil && unwanted {
		p.out.retire(errRetired)
		p.drop(p.out)
	}
}

// carry runs a link to its end.
func (s *Streams) carry(l *link) {
	p := l.peer
	s.cfg.Log.Debug("a TLS link is up", "peer", p.name, "endpoint", l.conn.RemoteAddr().String())
	s.tell(p)
	err := l.carry(s.cfg.Receive, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		l.used = true
		s.settleLocked(p)
	})
	s.cfg.Log.Debug("a TLS link has ended", "peer", p.name, "err", err)
	s.mu.Lock()
	s.links--
	p.drop(l)
	if p.err = fmt.Errorf("the link ended: %w", err); l.dialled && p.in == nil {
		if p.tries++; time.Since(l.since) >= livedEnough {
			p.tries = 0
		}
		p.next = time.Now().Add(backoff(p.tries))
	}
	p.wake()
	s.mu.Unlock()
	s.tell(p)
}

// tell calls Changed if there is something to say.
func (s *Streams) tell(p *peer) {
	s.telling.Lock()
	defer s.telling.Unlock()
	s.mu.Lock()
	up := p.last != nil
	changed := up != p.told
	p.told = up
	s.tidyLocked(p)
	s.mu.Unlock()
	if changed && s.cfg.Changed != nil {
		s.cfg.Changed(p.name, up)
	}
}

func (s *Streams) peerLocked(name string) *peer {
	p := s.peers[name]
	if p == nil {
		p = &peer{name: name, poke: make(chan struct{}, 1)}
		s.peers[name] = p
	}
	return p
}

// tidyLocked forgets a peer of which there is nothing to know.
func (s *Streams) tidyLocked(p *peer) {
	if !p.wanted && !p.pursued && p.in == nil && p.out == nil && !p.told && s.peers[p.name] == p {
		delete(s.peers, p.name)
	}
}

// drop lets nothing more be sent on l. Streams.mu is held.
func (p *peer) drop(l *link) {
	if p.in == l {
		p.in = nil
	}
	if p.out == l {
		p.out = nil
	}
	if p.last == l {
		p.last = cmp.Or(p.in, p.out)
	}
}

func (p *peer) wake() {
	select {
	case p.poke <- struct{}{}:
	default:
	}
}
