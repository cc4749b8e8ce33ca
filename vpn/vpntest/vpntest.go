// SPDX-License-Identifier: MIT

// Package vpntest has doubles for the two ends of a node, so that whole meshes run in one process: a network of UDP
// sockets in memory, and a TUN device whose kernel is the test.
package vpntest

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
)

// Net is a network in memory. Datagrams arrive at once, or not at all.
type Net struct {
	mu    sync.Mutex
	binds map[netip.AddrPort]*Bind
	lost  func(from, to netip.AddrPort) bool
	Taps  []func(from, to netip.AddrPort, b []byte) // see every datagram, also lost ones; set before use
}

// NewNet returns a network without loss.
func NewNet() *Net { return &Net{binds: map[netip.AddrPort]*Bind{}} }

// Lose sets which datagrams are lost.
func (n *Net) Lose(f func(from, to netip.AddrPort) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lost = f
}

// Bind is a UDP socket in memory. It implements conn.Bind.
type Bind struct {
	net  *Net
	mu   sync.Mutex
	addr netip.AddrPort
	in   chan datagram
	open chan struct{} // closed by Close
}

type datagram struct {
	from netip.AddrPort
	b    []byte
}

// Bind returns a socket at addr.
func (n *Net) Bind(addr netip.AddrPort) *Bind { return &Bind{net: n, addr: addr} }

// Send puts a datagram onto the network as if it came from the socket from.
func (n *Net) Send(from, to netip.AddrPort, b []byte) {
	n.mu.Lock()
	dst, lost, taps := n.binds[to], n.lost, n.Taps
	n.mu.Unlock()
	for _, t := range taps {
		t(from, to, b)
	}
	if dst == nil || lost != nil && lost(from, to) {
		return
	}
	dst.mu.Lock()
	in, open := dst.in, dst.open
	dst.mu.Unlock()
	select {
	case in <- datagram{from, append([]byte(nil), b...)}:
	case <-open:
	default: // a full socket buffer
	}
}

// Open implements conn.Bind.
func (b *Bind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	b.in, b.open = make(chan datagram, 1024), make(chan struct{})
	in, open, addr := b.in, b.open, b.addr
	b.mu.Unlock()
	b.net.mu.Lock()
	b.net.binds[addr] = b
	b.net.mu.Unlock()
	return []conn.ReceiveFunc{func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case <-open:
			return 0, net.ErrClosed
		case d := <-in:
			sizes[0] = copy(bufs[0], d.b)
			eps[0] = &conn.StdNetEndpoint{AddrPort: d.from}
			return 1, nil
		}
	}}, addr.Port(), nil
}

// Move gives the socket another address, as roaming does.
func (b *Bind) Move(to netip.AddrPort) {
	b.net.mu.Lock()
	defer b.net.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.net.binds, b.addr)
	b.addr = to
	b.net.binds[to] = b
}

// Close implements conn.Bind.
func (b *Bind) Close() error {
	b.net.mu.Lock()
	defer b.net.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.net.binds[b.addr] == b {
		delete(b.net.binds, b.addr)
		close(b.open)
	}
	return nil
}

// Send implements conn.Bind.
func (b *Bind) Send(bufs [][]byte, ep conn.Endpoint) error {
	e, ok := ep.(*conn.StdNetEndpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	b.mu.Lock()
	from := b.addr
	b.mu.Unlock()
	for _, p := range bufs {
		b.net.Send(from, e.AddrPort, p)
	}
	return nil
}

// SetMark implements conn.Bind.
func (b *Bind) SetMark(uint32) error { return nil }

// ParseEndpoint implements conn.Bind.
func (b *Bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	ap, err := netip.ParseAddrPort(s)
	return &conn.StdNetEndpoint{AddrPort: ap}, err
}

// BatchSize implements conn.Bind.
func (b *Bind) BatchSize() int { return 1 }

// TUN is a TUN device in memory.
type TUN struct {
	Out    chan []byte // packets that the kernel sends
	In     chan []byte // packets that the kernel gets; dropped if nobody reads them
	events chan tun.Event
	closed chan struct{}
	once   sync.Once

	mu   sync.Mutex
	wake chan struct{} // closed while the deadline is past
}

// NewTUN returns a device that is up.
func NewTUN() *TUN {
	t := &TUN{Out: make(chan []byte, 64), In: make(chan []byte, 64), events: make(chan tun.Event, 1), closed: make(chan struct{}), wake: make(chan struct{})}
	t.events <- tun.EventUp
	return t
}

// SetReadDeadline ends reads at once where the deadline is past; other deadlines than none are not known.
func (t *TUN) SetReadDeadline(at time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-t.wake:
		if at.IsZero() {
			t.wake = make(chan struct{})
		}
	default:
		if !at.IsZero() {
			if time.Now().Before(at) {
				return errors.New("only past deadlines are known")
			}
			close(t.wake)
		}
	}
	return nil
}

// Read implements tun.Device.
func (t *TUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	t.mu.Lock()
	wake := t.wake
	t.mu.Unlock()
	select {
	case <-wake:
		return 0, os.ErrDeadlineExceeded
	default:
	}
	select {
	case <-t.closed:
		return 0, os.ErrClosed
	case <-wake:
		return 0, os.ErrDeadlineExceeded
	case p := <-t.Out:
		sizes[0] = copy(bufs[0][offset:], p)
		return 1, nil
	}
}

// Write implements tun.Device.
func (t *TUN) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		select {
		case t.In <- append([]byte(nil), b[offset:]...):
		default:
		}
	}
	return len(bufs), nil
}

// File implements tun.Device.
func (t *TUN) File() *os.File { return nil }

// MTU implements tun.Device.
func (t *TUN) MTU() (int, error) { return 1380, nil }

// Name implements tun.Device.
func (t *TUN) Name() (string, error) { return "test", nil }

// Events implements tun.Device.
func (t *TUN) Events() <-chan tun.Event { return t.events }

// BatchSize implements tun.Device.
func (t *TUN) BatchSize() int { return 1 }

// Close implements tun.Device.
func (t *TUN) Close() error {
	err := syscall.EBADF
	t.once.Do(func() {
		close(t.closed)
		close(t.events)
		err = 0
	})
	if err != 0 {
		return err
	}
	return nil
}
