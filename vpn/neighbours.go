// SPDX-License-Identifier: MIT

package vpn

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/link"
)

// Neighbours are the nodes to which a tunnel is kept: those in Connect, and a few more that can be reached directly,
// chosen so that over the whole mesh every node is somebody's choice as often as another. Records spread along these
// links only, and they are what routes are made of.

const (
	autoNeighbours = 3                // besides those in Connect
	wantNeighbours = 8                // the same where nothing is reached for soonReached, or a peer that is needed is not
	soonReached    = time.Second      // a node that starts need not ask eight at once
	soonFound      = time.Second / 2  // before, a peer that is needed and has no way is not missed: an answer takes a round trip
	seekEvery      = 5 * time.Second  // all of them, where nothing is reached
	trialLasts     = 8 * time.Second  // until then a neighbour must be reached directly
	trialsEvery    = 20 * time.Second // when there are two already, so that there is a way round either
	trialsSoon     = 2 * time.Second  // when there is one
	publicOnes     = 2                // are wanted: they can be reached when everything else changes
	retryFirst     = time.Minute      // of a node that was tried in vain, doubling up to
	retryLast      = 30 * time.Minute // this
	settleFor      = 300 * time.Millisecond
)

// trial is how it went with a node as a neighbour.
type trial struct {
	up    bool      // it was reached directly when last looked at
	since time.Time // it was chosen, or was first not reached any more
	until time.Time // not again before
	wait  time.Duration
}

// isNeighbour reports whether this node keeps a tunnel to name. n.mu is held.
func (n *Node) isNeighbour(name string) bool { return n.chosen[name] }

// neighbours are all to whom a tunnel is kept from either side and that can be reached now. n.mu is held.
func (n *Node) neighbours() (out []string) {
	for name, p := range n.peers {
		if s := p.Status(); s.Way != (link.Way{}) && (n.chosen[name] || s.Kept) {
			out = append(out, name)
		}
	}
	return out
}

// choose chooses neighbours, and returns when to look at them again. n.mu is held.
func (n *Node) choose(now time.Time) (again time.Time) {
	again = now.Add(tendEvery)
	at := func(t time.Time) {
		if t.Before(again) {
			again = t
		}
	}
	chosen := map[string]bool{}
	up, public, tried := 0, 0, false
	online, most, sure := n.reached(now)
	if !sure.IsZero() {
		at(sure)
	}
	for _, name := range n.cfg.Connect {
		if n.records[name] != nil && name != n.self {
			chosen[name] = true
			count(&up, n.direct(name))
			count(&public, Public(n.records[name]))
		}
	}
	others := len(n.order) - len(chosen)
	every := func() time.Duration {
		if up < 2 || most > autoNeighbours {
			return trialsSoon
		}
		return trialsEvery
	}
	auto := 0
	take := func(name string) {
		t := n.trials[name]
		if t == nil {
			t = &trial{}
		}
		switch {
		case n.direct(name):
			*t = trial{up: true}
			up++
		case t.up:
			t.up, t.since = false, now
		case now.Before(t.until) && (online || t.until.Sub(now) <= trialLasts): // who could not be reached for long may be the only one
			at(t.until)
			return
		case !n.chosen[name] && up > 0 && (tried || now.Sub(n.lastTrial) < every()):
			at(n.lastTrial.Add(every()))
			return
		case !n.chosen[name]:
			t.since, n.lastTrial, tried = now, now, true
		case now.Sub(t.since) > trialLasts:
			t.wait = min(max(2*t.wait, retryFirst), retryLast)
			if !online { // it says nothing about the other
				t.wait = 0
				if others > most { // who is to have a turn too
					t.wait = trialLasts
				}
			}
			t.until = now.Add(t.wait)
			n.trials[name] = t
			at(now)
			return
		}
		if !t.up {
			at(t.since.Add(trialLasts + time.Millisecond))
		}
		n.trials[name] = t
		chosen[name] = true
		auto++
		count(&public, Public(n.records[name]))
	}
	for _, name := range n.ranked() { // what works is kept, in the order of rank; and who is in use meanwhile
		if !chosen[name] && n.direct(name) && (auto < most || auto < wantNeighbours && now.Sub(n.peers[name].Status().LastSent) < routesLast) {
			take(name)
		}
	}
	for _, name := range n.order {
		if public >= publicOnes || auto >= most {
			break
		}
		if !chosen[name] && Public(n.records[name]) {
			take(name)
		}
	}
	for _, name := range n.order {
		if auto >= most {
			break
		}
		if !chosen[name] {
			take(name)
		}
	}
	was := n.chosen
	n.chosen = chosen
	for name := range chosen {
		if !was[name] {
			n.refresh(name)
		}
		n.activate(name)
	}
	for name := range was {
		if !chosen[name] {
			n.refresh(name)
		}
	}
	if !online {
		for name := range chosen {
			if p := n.peers[name]; p != nil {
				p.Look()
			}
		}
		at(now.Add(seekEvery))
		if soon := n.offline.Add(soonReached); now.Before(soon) {
			at(soon)
		}
	}
	return again
}

// direct reports whether a node is reached without another. n.mu is held.
func (n *Node) direct(name string) bool {
	p := n.peers[name]
	return p != nil && p.Status().Direct
}

// reached reports whether any node is reached directly, and how many neighbours there should be, besides those in Connect, and
// when that is to be asked again (zero: when something has changed). n.mu is held.
func (n *Node) reached(now time.Time) (online bool, most int, again time.Time) {
	most = autoNeighbours
	for name, p := range n.peers {
		s, m := p.Status(), n.members[name]
		online = online || s.Direct
		switch {
		case s.Way != (link.Way{}) || now.Sub(s.LastSent) >= trialLasts:
			m.missed = time.Time{}
		case m.missed.IsZero():
			m.missed = now
			fallthrough
		case now.Sub(m.missed) < soonFound:
			again = m.missed.Add(soonFound)
		default:
			most = wantNeighbours // somebody may know a way to it
		}
	}
	switch {
	case online:
		n.offline = time.Time{}
	case n.offline.IsZero():
		n.offline = now
	}
	if !online && now.Sub(n.offline) >= soonReached {
		most = wantNeighbours
	}
	return online, most, again
}

// byRank compares other nodes in an order of this node's own, so that each is somebody's first. Names differ in little, so it takes
// a hash of which every bit depends on all. n.mu is held.
func (n *Node) byRank(a, b string) int {
	return cmp.Or(cmp.Compare(n.members[a].rank, n.members[b].rank), strings.Compare(a, b))
}

// ranked are the chosen neighbours by rank. n.mu is held.
func (n *Node) ranked() (out []string) {
	for name := range n.chosen {
		out = append(out, name)
	}
	slices.SortFunc(out, n.byRank)
	return out
}

func count(n *int, yes bool) {
	if yes {
		*n++
	}
}

// Public reports whether a node says that it is reachable from everywhere.
func Public(r *identity.Record) bool {
	return len(r.Hosts) > 0 || slices.ContainsFunc(r.Endpoints, func(e netip.AddrPort) bool {
		a := e.Addr()
		return a.IsGlobalUnicast() && !a.IsPrivate() && !sharedSpace.Contains(a)
	})
}

// sharedSpace is for carrier-grade NAT (RFC 6598).
var sharedSpace = netip.MustParsePrefix("100.64.0.0/10")

// tendEvery is how often neighbours are looked at when nothing happens.
const tendEvery = 30 * time.Second

// tend keeps neighbours, routes and this node's record up with what the link finds, until ctx ends.
func (n *Node) tend(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	last := map[string]bool{} // neighbours that were reached
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-n.relink:
			if !sleep(ctx, settleFor/3) { // changes come in bursts
				return
			}
		}
		n.mu.Lock()
		now := time.Now()
		again := n.choose(now)
		near := map[string]bool{}
		for _, name := range n.neighbours() {
			if near[name] = true; !last[name] {
				n.compareWith(name) // it may know others, and want to know ours
			}
		}
		last = near
		n.announce(0)
		if kept := n.started.Add(linksKeep); now.Before(kept) {
			again = sooner(again, kept)
		}
		if n.unsaid {
			again = sooner(again, now.Add(linksSettle))
		}
		again = n.stream(now, again)
		n.watch(now)
		n.assign()
		if at := n.reroute(now); !at.IsZero() {
			again = sooner(again, at)
		}
		for name := range n.peers {
			if n.tell(name) {
				again = sooner(again, now.Add(tellEvery))
			}
		}
		n.mu.Unlock()
		timer.Reset(time.Until(again))
	}
}

func sooner(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
