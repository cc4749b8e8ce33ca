// SPDX-License-Identifier: MIT

package vpn

import (
	"time"

	"mesh.internal/mesh/vpn/link"
	"mesh.internal/mesh/vpn/stream"
)

// Where UDP does not pass, a TLS stream to a node that can be reached takes its place, as one more way of the link. It is
// tried when UDP has been for a moment, and closed when UDP works.

const (
	streamAfter = time.Second      // without a direct way
	streamLasts = 10 * time.Second // after there is one over UDP
)

// Streams are this node's links over TLS: whoever accepts TCP connections hands them those of members.
func (n *Node) Streams() *stream.Streams { return n.streams }

// streamed takes datagrams from a stream.
func (n *Node) streamed(from string, pkts [][]byte) {
	if p := n.owners.Load().names[from]; p != nil {
		p.Receive(pkts)
	}
}

// streamChanged notes that there is a stream, or none any more. It is called with the streams' lock held.
func (n *Node) streamChanged(name string, up bool) {
	n.streamMu.Lock()
	n.streamUp[name] = up
	n.streamMu.Unlock()
	poke(n.relink)
}

// stream tells paths of streams, and the streams where one is wanted. It returns when to look again. n.mu is held.
func (n *Node) stream(now, again time.Time) time.Time {
	n.streamMu.Lock()
	changed := n.streamUp
	n.streamUp = map[string]bool{}
	n.streamMu.Unlock()
	for name, up := range changed {
		if n.records[name] == nil {
			continue
		}
		if up {
			n.activate(name)
		}
		if p := n.peers[name]; p != nil {
			p.Streaming(up)
		}
	}
	for name, p := range n.peers {
		m, s, r := n.members[name], p.Status(), n.records[name]
		udp := s.Direct && s.DirectUDP
		switch {
		case udp && m.udpSince.IsZero():
			m.udpSince, m.noneSince = now, time.Time{}
		case !udp && m.noneSince.IsZero():
			m.noneSince, m.udpSince = now, time.Time{}
		}
		use := n.chosen[name] || now.Sub(s.LastSent) < idleAfter
		switch {
		case m.wanted && (!use || udp && now.Sub(m.udpSince) > streamLasts):
			m.wanted = false
			n.streams.Want(name, nil, false)
		case m.wanted && udp:
			again = sooner(again, m.udpSince.Add(streamLasts+time.Millisecond))
		case !m.wanted && !udp && use && (n.chosen[name] && Public(r) || s.Way == (link.Way{})):
			at := m.noneSince.Add(streamAfter)
			if now.Before(at) {
				again = sooner(again, at)
				break
			}
			addrs := append([]string(nil), r.Hosts...)
			for _, e := range r.Endpoints {
				addrs = append(addrs, e.String())
			}
			m.wanted = true
			n.streams.Want(name, addrs, true)
		}
	}
	return again
}
