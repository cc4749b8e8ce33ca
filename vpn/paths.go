// SPDX-License-Identifier: MIT

package vpn

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"mesh.internal/mesh/vpn/link"
)

// Paths are all ways to a node that are known.
type Paths struct {
	PeerStatus
	Ways []WayStatus // the one in use first, then the confirmed by round trip, then the rest
}

// WayStatus is what is known of one way.
type WayStatus struct {
	Endpoint  netip.AddrPort // over UDP, or
	Via       []string       // through these relays, the nearest first, or
	Stream    bool           // over TLS
	Used      bool
	Source    Source
	Confirmed bool // it has answered since anything changed
	RTT       time.Duration
	Loss      float64 // share of lost probes, 0 to 1
	Missed    int     // answers overdue now, one after the other
	MTU       int     // bytes of the largest packet inside the tunnel; 0: not measured
}

// Works reports whether the way answers.
func (w WayStatus) Works() bool { return w.Confirmed && w.Missed == 0 }

// Source is who told of a way.
type Source string

// The sources.
const (
	FromRecord Source = "record" // the node itself, to all
	FromName   Source = "name"   // its public name, in the DNS
	FromTold   Source = "told"   // the node itself through the tunnel, or it was found on the LAN
	FromSeen   Source = "seen"   // its packets
	FromMap    Source = "map"    // all nodes' links
	FromStream Source = "stream" // it is open
)

// lookFor is how long answers are waited for, and lookTimes how often all are asked.
const (
	lookFor   = 1200 * time.Millisecond
	lookTimes = 3
)

// look asks on every way to these nodes, some times, for lookFor in all. Those that are none become peers.
func (n *Node) look(ctx context.Context, names []string) error {
	for range lookTimes {
		n.mu.Lock()
		for _, name := range names {
			if n.talkable(name) != nil {
				continue
			}
			if p := n.need(name); p != nil {
				p.Look()
			}
			n.send(name, message{Echo: 1}) // a session is wanted too
		}
		n.mu.Unlock()
		if !sleep(ctx, lookFor/lookTimes) {
			return ctx.Err()
		}
	}
	return nil
}

// Paths asks on every way to a node and tells what answers, after lookFor. The node becomes a peer if it is none.
func (n *Node) Paths(ctx context.Context, name string) (out Paths, err error) {
	n.mu.Lock()
	err = n.talkable(name)
	n.mu.Unlock()
	if err != nil {
		return out, err
	}
	if err := n.look(ctx, []string{name}); err != nil {
		return out, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err = n.talkable(name); err != nil {
		return out, err
	}
	out.PeerStatus = n.statusOf(name, nil)
	p := n.peers[name]
	if p == nil {
		return out, nil
	}
	used := p.Status().Way
	for _, w := range p.Ways() {
		out.Ways = append(out.Ways, WayStatus{Endpoint: w.Way.Addr, Via: n.names(w.Way.Via), Stream: w.Way.Stream, Used: w.Way == used,
			Source: n.sourceOf(name, w.Way), Confirmed: w.Confirmed, RTT: w.RTT, Loss: w.Loss, Missed: w.Missed, MTU: inner(w.MTU)})
	}
	slices.SortFunc(out.Ways, func(a, b WayStatus) int {
		return cmp.Or(order(b.Used, a.Used), order(b.Works(), a.Works()), cmp.Compare(a.RTT, b.RTT),
			a.Endpoint.Compare(b.Endpoint), slices.Compare(a.Via, b.Via))
	})
	return out, nil
}

// order compares booleans, false first.
func order(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// sourceOf says who told of a way to a node. n.mu is held.
func (n *Node) sourceOf(name string, w link.Way) Source {
	m := n.members[name]
	switch {
	case w.Stream:
		return FromStream
	case w.Via != link.Route{}:
		return FromMap
	case slices.Contains(n.records[name].Endpoints, w.Addr):
		return FromRecord
	case slices.Contains(m.hosts, w.Addr):
		return FromName
	case !m.cands[w.Addr].IsZero():
		return FromTold
	}
	return FromSeen
}
