// SPDX-License-Identifier: MIT

package vpntest

import (
	"net"
	"net/netip"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
)

// Bind is a UDP socket in memory. It implements conn.Bind.
type Bind struct {
	host  *Host
	batch int

	mu   sync.Mutex // taken after the net's
	port uint16
	in   chan datagram
	open chan struct{} // closed by Close
}

type datagram struct {
	from netip.AddrPort
	b    []byte
}

const socketBuffer = 1024 // datagrams

// Bind returns a socket at a port of all of the host's addresses that takes up to batch datagrams at a time.
func (h *Host) Bind(port uint16, batch int) *Bind { return &Bind{host: h, port: port, batch: batch} }

// Bind returns a socket at addr, of a host on the internet that has that address alone, by a link without delay.
func (n *Net) Bind(addr netip.AddrPort) *Bind {
	n.mu.Lock()
	a := n.Internet.at[addr.Addr()]
	n.mu.Unlock()
	if a == nil {
		h := n.Host(addr.Addr().String())
		h.Attach(n.Internet, addr.Addr(), Link{})
		return h.Bind(addr.Port(), 1)
	}
	return a.host.Bind(addr.Port(), 1)
}

// Open implements conn.Bind. The port is the socket's own.
func (b *Bind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	n := b.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	b.in, b.open = make(chan datagram, socketBuffer), make(chan struct{})
	b.host.socks[b.port] = b
	in, open := b.in, b.open
	return []conn.ReceiveFunc{func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		put := func(i int, d datagram) {
			sizes[i] = copy(bufs[i], d.b)
			eps[i] = &conn.StdNetEndpoint{AddrPort: d.from}
		}
		select {
		case <-open:
			return 0, net.ErrClosed
		case d := <-in:
			put(0, d)
		}
		got := 1
		for got < min(len(bufs), b.batch) {
			select {
			case d := <-in:
				put(got, d)
				got++
				continue
			default:
			}
			break
		}
		return got, nil
	}}, b.port, nil
}

// Move gives the socket's host another address on the internet instead of all it has, and the socket another port.
func (b *Bind) Move(to netip.AddrPort) {
	b.host.Detach()
	b.host.Attach(b.host.net.Internet, to.Addr(), Link{})
	n := b.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.host.socks, b.port)
	b.port = to.Port()
	b.host.socks[b.port] = b
}

// Close implements conn.Bind.
func (b *Bind) Close() error {
	n := b.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open != nil {
		if b.host.socks[b.port] == b {
			delete(b.host.socks, b.port)
		}
		close(b.open)
		b.open = nil
	}
	return nil
}

// Send implements conn.Bind. It fails as a socket does with UDP's don't-fragment set: ENETUNREACH, EMSGSIZE.
func (b *Bind) Send(bufs [][]byte, ep conn.Endpoint) error {
	e, ok := ep.(*conn.StdNetEndpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	b.mu.Lock()
	open, port := b.open != nil, b.port
	b.mu.Unlock()
	if !open {
		return net.ErrClosed
	}
	for _, p := range bufs {
		if err := b.host.send(port, e.AddrPort, p); err != nil {
			return err
		}
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
func (b *Bind) BatchSize() int { return b.batch }
