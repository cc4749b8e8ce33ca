// SPDX-License-Identifier: MIT

package link

import (
	"net/netip"

	"golang.zx2c4.com/wireguard/conn"
)

// A check asks a peer from a socket of its own, not the link's, where that is seen, as one asks a STUN server (RFC 8489),
// or for an answer from another port (RFC 5780 section 4.3). The frames are probes of other kinds, so strangers get no
// answer, and each asks for one frame as long as itself. Nothing is remembered of them, so no packet is ever sent to
// where a check was made from.

// Ask makes a frame that asks the peer where it comes from. Elsewhere: the answer is to come from another port.
func (p *Peer) Ask(number uint64, elsewhere bool) []byte {
	kind := byte(kindAsk)
	if elsewhere {
		kind = kindAskElsewhere
	}
	return p.send.seal(probe{kind: kind, txid: number})
}

// Tell makes the answer, and sends it from the link's socket if to is valid.
func (p *Peer) Tell(number uint64, seen, to netip.AddrPort) []byte {
	b := p.send.seal(probe{kind: kindTold, txid: number, seen: seen})
	if to.IsValid() {
		p.link.Bind.Send([][]byte{b}, &conn.StdNetEndpoint{AddrPort: to})
	}
	return b
}

// Told opens what came to a check's socket. It is no answer to anything that was asked unless its number is.
func (l *Link) Told(b []byte) (from *Peer, number uint64, seen netip.AddrPort, ok bool) {
	if !isProbe(b) || b[0] != kindTold {
		return nil, 0, seen, false
	}
	if from = l.byIDPeer(frameID(b)); from == nil {
		return nil, 0, seen, false
	}
	f, ok := from.recv.open(b)
	return from, f.txid, f.seen, ok
}

// check answers a peer that asks directly over UDP.
func (l *Link) check(b []byte, ep *conn.StdNetEndpoint) {
	p := l.byIDPeer(frameID(b))
	if p == nil || ep == nil {
		return
	}
	f, ok := p.recv.open(b)
	if !ok {
		return
	}
	from := unmap(ep.AddrPort)
	switch f.kind {
	case kindAsk:
		l.Bind.Send([][]byte{p.Tell(f.txid, from, netip.AddrPort{})}, ep)
	case kindAskElsewhere:
		if l.Elsewhere != nil {
			l.Elsewhere(p, p.Tell(f.txid, from, netip.AddrPort{}), from)
		}
	}
}
