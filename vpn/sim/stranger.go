// SPDX-License-Identifier: MIT

package sim

import (
	"net/netip"
	"slices"
	"sync"

	"golang.zx2c4.com/wireguard/conn"

	"mesh.internal/mesh/vpn/vpntest"
)

// Stranger is a host that is no member, and sends again what members have sent.
type Stranger struct {
	addr netip.AddrPort
	bind *vpntest.Bind

	mu    sync.Mutex
	heard []overheard
	n     int
}

type overheard struct {
	to netip.AddrPort
	b  []byte
}

const strangerKeeps = 64

// Stranger attaches a stranger to the internet. It hears what everybody sends.
func (w *World) Stranger(addr netip.Addr) *Stranger {
	h := w.Net.Host("stranger")
	h.Attach(w.Net.Internet, addr, vpntest.Link{})
	w.judge.stranger(h)
	s := &Stranger{addr: netip.AddrPortFrom(addr, Port), bind: h.Bind(Port, 1)}
	s.bind.Open(Port)
	before := w.Net.Watch
	w.Net.SetWatch(func(x vpntest.Sight) {
		before(x)
		if x.Fate != vpntest.Sent || x.From == h {
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.n++; s.n%7 == 0 { // some of all kinds
			if len(s.heard) == strangerKeeps {
				s.heard = slices.Delete(s.heard, 0, 1)
			}
			s.heard = append(s.heard, overheard{x.Dst, slices.Clone(x.B)})
		}
	})
	return s
}

// Replay sends what was overheard again, and the same damaged.
func (s *Stranger) Replay() {
	s.mu.Lock()
	heard := slices.Clone(s.heard)
	s.mu.Unlock()
	for i, o := range heard {
		s.bind.Send([][]byte{o.b}, &conn.StdNetEndpoint{AddrPort: o.to})
		if i%4 == 0 {
			b := slices.Clone(o.b)
			b[i%len(b)] ^= 0x55
			s.bind.Send([][]byte{b}, &conn.StdNetEndpoint{AddrPort: o.to})
		}
	}
}
