// SPDX-License-Identifier: MIT

package dnsd

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"

	"mesh.internal/mesh/resolver"
)

const headerSize = 12 // RFC 1035 section 4.1.1

// querySize bounds what is read of a query.
const querySize = 4096

// serveUDP answers what comes to one socket until it is closed. Nothing in it waits; what must wait gets a goroutine of wg.
func (s *Server) serveUDP(ctx context.Context, pc *net.UDPConn, wg *sync.WaitGroup) error {
	b := newBatch(pc)
	for {
		n, err := b.read()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			continue // it is about something that was sent before
		}
		for i := range n {
			query, from := b.query(i)
			if p := s.datagram(ctx, pc, wg, query, from, b.room()); p != nil {
				b.answer(i, p)
			}
		}
		if err := b.send(); err != nil && !errors.Is(err, net.ErrClosed) {
			s.cfg.Log.Debug("a DNS answer was not sent", "err", err)
		}
	}
}

// datagram is the answer to what has come by UDP, nil if there is none or it comes later. It is made in out's memory where it has
// room.
func (s *Server) datagram(ctx context.Context, pc *net.UDPConn, wg *sync.WaitGroup, query []byte, from netip.AddrPort, out []byte) []byte {
	if len(query) < headerSize || query[2]&0x80 != 0 {
		return nil // an answer is never answered
	}
	addr := from.Addr().Unmap().WithZone("")
	v := s.cfg.View()
	switch s.limit.allow(addr, v.InPrefixes(addr), time.Now()) {
	case drop:
		return nil
	case slip:
		return truncated(query)
	}
	if s.permitted(v, addr) {
		if b := s.direct(v, query, out); b != nil {
			return b
		}
	}
	return s.answerUDP(ctx, pc, wg, v, query, from, addr)
}

// answerUDP is the answer to a query, nil if there is none or it comes later.
func (s *Server) answerUDP(ctx context.Context, pc *net.UDPConn, wg *sync.WaitGroup, v *resolver.View, query []byte, from netip.AddrPort, addr netip.Addr) []byte {
	defer s.recovered(from.String())
	q := new(dns.Msg)
	if q.Unpack(query) != nil {
		return malformed(query)
	}
	if s.elsewhere(v, q, addr) {
		select {
		case s.slots <- struct{}{}:
		default:
			return nil // the client asks again
		}
		wg.Go(func() {
			defer func() { <-s.slots }()
			defer s.recovered(from.String())
			m := s.forward.resolve(ctx, q)
			minimal(m, sizeOf(q))
			if b, err := m.Pack(); err == nil {
				pc.WriteToUDPAddrPort(b, from)
			}
		})
		return nil
	}
	var m *dns.Msg
	if s.transfers != nil && len(q.Question) == 1 && q.Question[0].Qtype == dns.TypeIXFR && s.secondary(addr) {
		m = s.transfers.serial(q)
	}
	if m == nil {
		m = s.Answer(v, q, addr)
	}
	m.RecursionAvailable = s.forward != nil
	minimal(m, sizeOf(q))
	b, err := m.Pack()
	if err != nil {
		return malformed(query)
	}
	return b
}

// sizeOf is how many bytes an answer by UDP may have.
func sizeOf(q *dns.Msg) int {
	if o := q.IsEdns0(); o != nil {
		return min(max(int(o.UDPSize()), dns.MinMsgSize), udpSize)
	}
	return dns.MinMsgSize
}

// malformed is the answer to what cannot be read (RFC 1035 section 4.1.1).
func malformed(query []byte) []byte {
	b := make([]byte, headerSize)
	copy(b, query[:2])
	b[2] = 0x80 | query[2]&0x79 // QR, the opcode, RD
	b[3] = dns.RcodeFormatError
	return b
}

// truncated is an answer that sends a client to TCP: the question, and nothing else. It is nil for what has none.
func truncated(query []byte) []byte {
	end := questionEnd(query)
	if end < 0 {
		return nil
	}
	b := append([]byte(nil), query[:end]...)
	b[2] = 0x80 | 0x02 | query[2]&0x79
	b[3] = 0
	clear(b[6:12])
	return b
}

// questionEnd is where the one question of a query ends, -1 if it has not exactly one, or something else than letters of a name.
func questionEnd(query []byte) int {
	if len(query) < headerSize || binary.BigEndian.Uint16(query[4:]) != 1 {
		return -1
	}
	i := headerSize
	for i < len(query) && query[i] != 0 {
		if query[i] > 63 {
			return -1
		}
		i += int(query[i]) + 1
	}
	if i += 5; i > len(query) || i-headerSize > 255+4 {
		return -1
	}
	return i
}
