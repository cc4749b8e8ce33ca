// SPDX-License-Identifier: MIT

package vpntest

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// TCP is as much of it as programs notice: bytes arrive whole and in order, after the time that datagrams would take, later
// where datagrams would be lost, and not at all while nothing gets through or after one end has changed its address or a
// NAT box on the way has been restarted. NAT boxes let it out also where they block UDP.

const (
	tcpWindow = 256 << 10              // bytes on the way; Write waits when there are more
	tcpAgain  = 200 * time.Millisecond // until lost bytes are sent again (RFC 6298's least), doubling up to
	tcpRarely = 3 * time.Second        // this
)

// path is a way through the network at one moment.
type path struct {
	from, to *Host
	src      netip.AddrPort // as to sees it
	dst      netip.AddrPort // as from has it
	local    netip.Addr     // as from has it
	nats     []*NAT
	epochs   []int
	link     Link // all delays on the way, and what is lost
}

// ends are the addresses by which Net.Lose knows the two ends.
func (p *path) ends(back bool) (from, to netip.AddrPort) {
	from, to = netip.AddrPortFrom(p.local, p.src.Port()), p.dst
	if back {
		from, to = to, from
	}
	return from, to
}

// walk follows a way from a host to an address that listens to strangers. net.mu is held.
func (n *Net) walk(from *Host, to netip.AddrPort, udp bool) *path {
	a := from.way(to.Addr())
	if a == nil {
		return nil
	}
	p := &path{from: from, local: a.addr, src: netip.AddrPortFrom(a.addr, 0), dst: to}
	pass := 1.0
	add := func(l Link) bool {
		p.link.Delay += l.Delay
		pass *= 1 - l.Loss
		p.link.Loss = 1 - pass
		return !l.Down
	}
	if !add(a.link) {
		return nil
	}
	seg := a.seg
	for seg.at[to.Addr()] == nil {
		if seg.nat == nil || udp && seg.nat.Kind.NoUDP || seg.prefix.Contains(to.Addr()) || !add(seg.nat.out.link) {
			return nil
		}
		p.nats, p.epochs = append(p.nats, seg.nat), append(p.epochs, seg.nat.epoch)
		p.src = netip.AddrPortFrom(seg.nat.out.addr, 0)
		seg = seg.nat.out.seg
	}
	for {
		t := seg.at[to.Addr()]
		if t == nil || !add(t.link) {
			return nil
		}
		if t.host != nil {
			p.to = t.host
			return p
		}
		inner, ok := t.nat.forward[to.Port()]
		if !ok || udp && t.nat.Kind.NoUDP {
			return nil
		}
		p.nats, p.epochs = append(p.nats, t.nat), append(p.epochs, t.nat.epoch)
		seg, to = t.nat.Inside, inner
	}
}

// Listener is a TCP socket that listens. It implements net.Listener.
type Listener struct {
	host   *Host
	port   uint16
	in     chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// Listen listens at a port of all of the host's addresses.
func (h *Host) Listen(port uint16) *Listener {
	l := &Listener{host: h, port: port, in: make(chan net.Conn, 16), closed: make(chan struct{})}
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.listens[port] = l
	return l
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.in:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *Listener) Close() error {
	l.host.net.mu.Lock()
	if l.host.listens[l.port] == l {
		delete(l.host.listens, l.port)
	}
	l.host.net.mu.Unlock()
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr {
	return tcpAddr(netip.AddrPortFrom(netip.IPv4Unspecified(), l.port))
}

func tcpAddr(a netip.AddrPort) net.Addr { return net.TCPAddrFromAddrPort(a) }

// Dial connects to an IP address and port; network is ignored.
func (h *Host) Dial(ctx context.Context, _, addr string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	n := h.net
	for wait := tcpAgain * 5; ; wait *= 2 { // a lost SYN is sent again after a second, RFC 6298 section 2
		n.mu.Lock()
		if h.way(to.Addr()) == nil {
			n.mu.Unlock()
			return nil, syscall.ENETUNREACH
		}
		p := n.walk(h, to, false)
		var l *Listener
		if p != nil && n.lost != nil && n.lost(p.ends(false)) {
			p = nil
		}
		if p != nil && !n.pairs[flow{h.id, p.to.id}].Down && !n.pairs[flow{p.to.id, h.id}].Down {
			l = p.to.listens[to.Port()]
			wait = 2 * p.link.Delay
		} else {
			p = nil
		}
		if p != nil && p.src.Port() == 0 {
			h.tcpPort++
			p.src = netip.AddrPortFrom(p.src.Addr(), 32768+h.tcpPort%28000)
		}
		n.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-timer.C:
		}
		switch {
		case p == nil:
			continue
		case l == nil:
			return nil, syscall.ECONNREFUSED
		}
		there, back := newHalf(n, p, false), newHalf(n, p, true)
		local := netip.AddrPortFrom(p.local, p.src.Port())
		select {
		case l.in <- &tcpConn{read: there, write: back, local: to, remote: p.src}:
			return &tcpConn{read: back, write: there, local: local, remote: to}, nil
		case <-l.closed:
			return nil, syscall.ECONNREFUSED
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// half is one direction of a connection.
type half struct {
	net  *Net
	path *path
	back bool // from the one that was dialled

	mu       sync.Mutex // taken before the net's
	wake     chan struct{}
	way      []chunk // on its way
	pending  int     // bytes in it
	tries    int
	arrived  []byte
	eof      bool // has arrived
	closed   bool // by the writer
	gone     bool // by the reader
	readBy   time.Time
	writeBy  time.Time
	alarming bool
}

type chunk struct {
	b  []byte // nil: the end
	at time.Time
}

func newHalf(n *Net, p *path, back bool) *half {
	return &half{net: n, path: p, back: back, wake: make(chan struct{})}
}

// changed wakes whoever waits. mu is held.
func (h *half) changed() {
	close(h.wake)
	h.wake = make(chan struct{})
}

// passes reports whether bytes get through now, and are not lost.
func (h *half) passes() bool {
	n, p := h.net, h.path
	n.mu.Lock()
	defer n.mu.Unlock()
	from, to := p.from, p.to
	if h.back {
		from, to = to, from
	}
	up := func(host *Host) bool {
		return slices.ContainsFunc(host.at, func(a *attachment) bool { return !a.link.Down })
	}
	if n.lost != nil && n.lost(p.ends(h.back)) {
		return false
	}
	if n.pairs[flow{from.id, to.id}].Down || !up(from) || !up(to) || !slices.ContainsFunc(p.from.at, func(a *attachment) bool { return a.addr == p.local }) {
		return false
	}
	for i, nat := range p.nats {
		if nat.epoch != p.epochs[i] || nat.out.link.Down {
			return false
		}
	}
	return p.link.Loss == 0 || n.roller(flow{-from.id, -to.id}).Float64() >= p.link.Loss
}

// arm lets the first chunk on the way arrive in its time. mu is held.
func (h *half) arm() {
	if len(h.way) == 0 || h.alarming {
		return
	}
	h.alarming = true
	time.AfterFunc(time.Until(h.way[0].at), h.arrive)
}

func (h *half) arrive() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.alarming = false
	if h.gone {
		h.way, h.pending = nil, 0
		h.changed()
		return
	}
	for now := time.Now(); len(h.way) > 0 && !h.way[0].at.After(now); {
		if !h.passes() {
			h.way[0].at = now.Add(min(tcpAgain<<min(h.tries, 8), tcpRarely))
			h.tries++
			break
		}
		h.tries = 0
		c := h.way[0]
		h.way = h.way[1:]
		h.pending -= len(c.b)
		h.arrived = append(h.arrived, c.b...)
		h.eof = h.eof || c.b == nil
		h.changed()
	}
	h.arm()
}

// send puts a chunk on its way. mu is held.
func (h *half) send(b []byte) {
	h.way = append(h.way, chunk{b, time.Now().Add(h.path.link.Delay)})
	h.pending += len(b)
	h.arm()
}

// wait waits for a change until a deadline. mu is held, and is again when it returns.
func (h *half) wait(by time.Time) error {
	wake := h.wake
	h.mu.Unlock()
	defer h.mu.Lock()
	var late <-chan time.Time
	if !by.IsZero() {
		t := time.NewTimer(time.Until(by))
		defer t.Stop()
		late = t.C
	}
	select {
	case <-wake:
		return nil
	case <-late:
		return os.ErrDeadlineExceeded
	}
}

// tcpConn implements net.Conn.
type tcpConn struct {
	read, write   *half
	local, remote netip.AddrPort
}

// Read implements net.Conn.
func (c *tcpConn) Read(b []byte) (int, error) {
	h := c.read
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.gone:
			return 0, net.ErrClosed
		case !h.readBy.IsZero() && !time.Now().Before(h.readBy):
			return 0, os.ErrDeadlineExceeded
		case len(h.arrived) > 0:
			n := copy(b, h.arrived)
			h.arrived = h.arrived[n:]
			return n, nil
		case h.eof:
			return 0, io.EOF
		}
		h.wait(h.readBy)
	}
}

// Write implements net.Conn.
func (c *tcpConn) Write(b []byte) (n int, err error) {
	h := c.write
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(b) > 0 {
		switch {
		case h.closed:
			return n, net.ErrClosed
		case h.gone:
			return n, syscall.ECONNRESET
		case !h.writeBy.IsZero() && !time.Now().Before(h.writeBy):
			return n, os.ErrDeadlineExceeded
		case h.pending >= tcpWindow:
			h.wait(h.writeBy)
			continue
		}
		part := b[:min(len(b), tcpWindow-h.pending)]
		h.send(slices.Clone(part))
		n += len(part)
		b = b[len(part):]
	}
	return n, nil
}

// Close implements net.Conn. What was written still arrives.
func (c *tcpConn) Close() error {
	c.write.mu.Lock()
	if !c.write.closed {
		c.write.closed = true
		c.write.send(nil)
		c.write.changed()
	}
	c.write.mu.Unlock()
	c.read.mu.Lock()
	c.read.gone = true
	c.read.changed()
	c.read.mu.Unlock()
	return nil
}

// LocalAddr implements net.Conn.
func (c *tcpConn) LocalAddr() net.Addr { return tcpAddr(c.local) }

// RemoteAddr implements net.Conn.
func (c *tcpConn) RemoteAddr() net.Addr { return tcpAddr(c.remote) }

// SetDeadline implements net.Conn.
func (c *tcpConn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (c *tcpConn) SetReadDeadline(t time.Time) error {
	c.read.mu.Lock()
	defer c.read.mu.Unlock()
	c.read.readBy = t
	c.read.changed()
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *tcpConn) SetWriteDeadline(t time.Time) error {
	c.write.mu.Lock()
	defer c.write.mu.Unlock()
	c.write.writeBy = t
	c.write.changed()
	return nil
}
