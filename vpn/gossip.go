// SPDX-License-Identifier: MIT

package vpn

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/link"
)

// Node records, tombstones and the roster spread over the mesh itself: a new one is pushed once to each neighbour that has not sent
// it, who pushes it on if it is new there too; from time to time neighbours compare what they have (type digest), which
// repairs whatever was lost. Every message is idempotent, and a statement is verified before anything is done with it.
//
// What is to be pushed to a node waits by its place, not its content, so that only the newest version goes out, and no
// faster than the queues on the way can take. What a node may make this one do is bounded by its budget.

// message is a control message: CBOR, at most what fits a control packet. Unknown keys are ignored.
type message struct {
	Record    []byte   `cbor:"1,keyasint,omitempty"` // push: a node record
	Cands     [][]byte `cbor:"4,keyasint,omitempty"` // addresses at which the sender may be, and it asks for the receiver's
	Tombstone []byte   `cbor:"5,keyasint,omitempty"` // push: a tombstone
	Sums      *sums    `cbor:"6,keyasint,omitempty"` // what the sender has, summed up
	List      *list    `cbor:"7,keyasint,omitempty"` // what the sender has, one by one
	Want      []uint64 `cbor:"8,keyasint,omitempty"` // places of statements that the sender asks for

	Echo   uint64        `cbor:"10,keyasint,omitempty"` // asks for
	Echoed uint64        `cbor:"11,keyasint,omitempty"` // with the same number
	Check  *checkRequest `cbor:"12,keyasint,omitempty"` // asks for a frame, and for Echoed when it is sent

	Roster []byte `cbor:"13,keyasint,omitempty"` // push: who keeps the store
}

var (
	encMode, _ = cbor.CoreDetEncOptions().EncMode()
	decMode, _ = cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden,
		MaxArrayElements: 64, MaxMapPairs: 16, MaxNestedLevels: 6, TagsMd: cbor.TagsForbidden}.DecMode()
	decFile, _ = cbor.DecOptions{MaxArrayElements: maxRecords + maxTombstones, MaxNestedLevels: 4}.DecMode() // what is kept on disk
)

const (
	pushEvery   = 10 * time.Millisecond
	pushes      = 2  // to one node in pushEvery: 1,000 records in 5 s
	pushesInAll = 16 // in pushEvery. Each takes 64 KiB of the engine's memory until it is sent, whatever its size

	sessionEvery = 50 * time.Millisecond // where something waits for a session: is there one?
	sessionLasts = 10 * time.Second      // it waits no longer
	tryEvery     = time.Second

	recheckFirst = 2 * time.Second // after a comparison that found differences; then twice as long each time, until repairEvery
)

// exchange is how things stand between this node and another. It is guarded by Node.mu.
type exchange struct {
	waiting []uint64 // places of what is to be pushed, in order
	queued  map[uint64]bool
	tried   time.Time // when something was last pushed without a session
	silent  time.Time // since when there is none; zero: there is one, or nothing waits

	recheck  time.Time     // when to compare again; zero: as always
	differed time.Time     // when a difference last made recheck be set,
	wait     time.Duration // and for how long after
}

// exchange returns how things stand with a node that is known. n.mu is held.
func (n *Node) exchange(name string) *exchange {
	x := n.exchanges[name]
	if x == nil {
		x = &exchange{queued: map[uint64]bool{}}
		n.exchanges[name] = x
	}
	return x
}

// flood pushes a statement to the neighbours, or a record where they are many to some of them (see fan). n.mu is held.
func (n *Node) flood(at uint64, from string) {
	to := n.neighbours()
	if s, ok := n.known.get(at); ok && s.kind == kindRecord {
		to = n.fan(to)
	}
	for _, name := range to {
		if name != from && at != place(kindRecord, name) { // a node knows its own record best
			n.push(name, at)
		}
	}
}

// push sends statements to a node, soon. n.mu is held.
func (n *Node) push(name string, places ...uint64) {
	x := n.exchange(name)
	for _, at := range places {
		if _, ok := n.known.get(at); ok && !x.queued[at] {
			x.queued[at] = true
			x.waiting = append(x.waiting, at)
		}
	}
	poke(n.outgoing)
}

// spread pushes what waits until ctx ends, and takes the tunnels of evicted nodes away.
func (n *Node) spread(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.outgoing:
		}
		for again := pushEvery; again > 0; {
			again = n.pushSome(time.Now())
			if !sleep(ctx, max(again, pushEvery)) {
				return
			}
		}
	}
}

// pushSome pushes what may be pushed now, and returns when it is to be called again, unless something new is to be pushed; 0: not.
func (n *Node) pushSome(now time.Time) (again time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	room := pushesInAll
	for name, x := range n.exchanges { // in another order each time
		if len(x.waiting) == 0 {
			continue
		}
		may := x.may(n.peers[name], now)
		for k := 0; len(x.waiting) > 0 && k < may && room > 0; k++ {
			at := x.waiting[0]
			x.waiting = x.waiting[1:]
			delete(x.queued, at)
			s, ok := n.known.get(at)
			if !ok {
				continue
			}
			n.send(name, s.message())
			room--
		}
		switch {
		case len(x.waiting) == 0:
			x.waiting = nil // the array is not kept
		case may > 0:
			again = pushEvery
		case again == 0:
			again = sessionEvery
		}
	}
	if n.part() && again == 0 {
		again = sessionEvery
	}
	return again
}

// may is how much may be pushed now to a node, nil if it is no peer yet, for which something waits. Without a session that is one
// thing now and then, which has the engine ask for one: what the engine has no session for it keeps, in 64 KiB each.
func (x *exchange) may(p *link.Peer, now time.Time) int {
	if p != nil && p.Sealing() {
		x.silent = time.Time{}
		return pushes
	}
	if x.silent.IsZero() {
		x.silent = now
	}
	switch {
	case now.Sub(x.silent) > sessionLasts: // a comparison will find what it lacks
		x.waiting, x.silent = nil, time.Time{}
		clear(x.queued)
	case now.Sub(x.tried) >= tryEvery:
		x.tried = now
		return 1
	}
	return 0
}

// message is the push of a statement.
func (s statement) message() message {
	switch s.kind {
	case kindTombstone:
		return message{Tombstone: s.raw}
	case kindRoster:
		return message{Roster: s.raw}
	}
	return message{Record: s.raw}
}

// repair compares what is known with the neighbours that this node has chosen, now and then; sooner with whom there
// were differences.
func (n *Node) repair(ctx context.Context) {
	var next time.Time
	for {
		now := time.Now()
		n.mu.Lock()
		all := !now.Before(next)
		if all {
			next = now.Add(repairEvery*3/4 + rand.N(repairEvery/2))
		}
		wake := next
		for name := range n.peers {
			x := n.exchanges[name]
			due := x != nil && !x.recheck.IsZero() && !now.Before(x.recheck)
			if due || all && n.isNeighbour(name) {
				n.compareWith(name)
			}
			if x != nil && !x.recheck.IsZero() && x.recheck.Before(wake) {
				wake = x.recheck
			}
		}
		n.mu.Unlock()
		t := time.NewTimer(time.Until(wake))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-n.differ:
			t.Stop()
		case <-t.C:
		}
	}
}

// compareWith begins a comparison with a node. n.mu is held.
func (n *Node) compareWith(name string) {
	n.exchange(name).recheck = time.Time{}
	n.send(name, n.known.whole())
}

// differs notes that a node knows something else than this one, so that they compare again. n.mu is held.
func (n *Node) differs(name string) {
	x, now := n.exchange(name), time.Now()
	if !x.recheck.IsZero() {
		return
	}
	if x.wait *= 2; x.wait < recheckFirst || now.Sub(x.differed) > 2*repairEvery {
		x.wait = recheckFirst
	}
	x.wait = min(x.wait, repairEvery)
	x.differed = now
	x.recheck = now.Add(x.wait)
	poke(n.differ)
}

// budgets say how much nodes may make this one do. A unit is about what a message costs that is passed over.
type budgets struct {
	mu sync.Mutex
	of map[netip.Addr]*budget // by inner address: as many as there are tunnels
}

type budget struct {
	left float64
	at   time.Time
}

const (
	budgetMost   = 600 // units
	budgetRefill = 400 // units a second, twice what a neighbour pushes

	costVerify = 20 // of a statement that was verified and no news
	costAnswer = 4  // of each message that a comparison is answered with
	costWalk   = 64 // statements that a comparison walks over for one unit
)

// allow reports whether there is anything left for this node, and takes a unit.
func (b *budgets) allow(from netip.Addr, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.of == nil {
		b.of = map[netip.Addr]*budget{}
	}
	x := b.of[from]
	if x == nil {
		x = &budget{left: budgetMost, at: now}
		b.of[from] = x
	}
	x.left = min(budgetMost, x.left+budgetRefill*now.Sub(x.at).Seconds())
	x.at = now
	if x.left < 1 {
		return false
	}
	x.left--
	return true
}

// charge takes what a message cost beyond the first unit; the next ones pay for what is not there.
func (b *budgets) charge(from netip.Addr, units int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if x := b.of[from]; x != nil {
		x.left -= float64(units)
	}
}

func (b *budgets) forget(from netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.of, from)
}

// control is a control packet that came in.
type control struct {
	from    netip.Addr
	payload []byte
}

// enqueue copies a control packet for read; when too many wait, or the sender has used its budget up, it is dropped, and
// repair makes up for it.
func (n *Node) enqueue(from netip.Addr, payload []byte) {
	if !n.budgets.allow(from, time.Now()) {
		return
	}
	select {
	case n.inbox <- control{from, slices.Clone(payload)}:
	default:
	}
}

// read takes control packets until ctx ends.
func (n *Node) read(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-n.inbox:
			n.budgets.charge(c.from, n.receive(c.from, c.payload))
		}
	}
}

// receive takes a control message from the node that has this address, and returns what it has cost.
func (n *Node) receive(from netip.Addr, payload []byte) (cost int) {
	var m message
	if err := decMode.Unmarshal(payload, &m); err != nil {
		n.cfg.Log.Debug("a control message is malformed", "endpoint", from.String(), "err", err)
		return costVerify
	}
	n.mu.Lock()
	sender := n.byAddr[from]
	n.mu.Unlock()
	if sender == "" {
		return costVerify
	}
	cost += n.take(m.Record, sender, n.learn)
	cost += n.take(m.Tombstone, sender, n.bury)
	cost += n.take(m.Roster, sender, n.enrol)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.records[sender] == nil {
		return cost // it was evicted just now
	}
	if m.Cands != nil {
		n.suggest(sender, decodeAddrs(m.Cands))
		if n.peers[sender] != nil {
			n.tell(sender)
		}
		cost += costAnswer
	}
	cost += n.echo(sender, m)
	cost += n.check(sender, m.Check)
	if s := m.Sums; s != nil && s.Span.valid() {
		say, push := n.known.compare(s)
		for _, a := range say {
			n.send(sender, a)
		}
		n.push(sender, push...)
		if len(say)+len(push) > 0 {
			n.differs(sender)
		}
		cost += len(n.known.in(s.Span))/costWalk + costAnswer*len(say)
	}
	if l := m.List; l != nil {
		push, want := n.known.compareList(l)
		n.push(sender, push...)
		if len(want) > 0 {
			n.send(sender, message{Want: want})
		}
		if len(push)+len(want) > 0 {
			n.differs(sender)
		}
		cost += len(push)/costWalk + costAnswer
	}
	n.push(sender, m.Want[:min(len(m.Want), maxEntries)]...)
	return cost
}

// take gives a statement that a node has pushed to learn or bury, unless it is known, and returns what that has cost.
func (n *Node) take(raw []byte, sender string, f func(raw []byte, from string) (news bool, err error)) (cost int) {
	if len(raw) == 0 {
		return 0
	}
	n.mu.Lock()
	at, known := n.known.has(raw)
	if x := n.exchanges[sender]; known && x != nil && x.queued[at] { // it has what was to be pushed to it
		delete(x.queued, at)
		x.waiting = slices.DeleteFunc(x.waiting, func(w uint64) bool { return w == at })
	}
	n.mu.Unlock()
	if known {
		return 0
	}
	news, err := f(raw, sender)
	switch {
	case errors.Is(err, errEvicted):
		n.cfg.Log.Debug("a node record is not accepted", "peer", sender, "err", err)
	case err != nil:
		n.cfg.Log.Warn("a statement is not accepted", "peer", sender, "err", err)
	}
	if !news {
		return costVerify
	}
	return 0
}

// send puts a message into the tunnel to a node. n.mu is held.
func (n *Node) send(to string, m message) {
	r := n.records[to]
	if r == nil || n.seam == nil || n.activate(to) == nil {
		return
	}
	b, err := encMode.Marshal(m)
	if err != nil {
		n.cfg.Log.Error("encoding a control message", "err", err)
		return
	}
	n.inject(r.Node, b)
}

// inject puts an encoded message into the tunnel to a node. n.mu is held.
func (n *Node) inject(to identity.Node, b []byte) {
	dst, ok := addr6(to)
	if !ok || n.seam == nil {
		return
	}
	if p := packet(n.addr6, dst, b); p != nil {
		n.seam.inject(p)
	}
}

func addr6(n identity.Node) (netip.Addr, bool) {
	for _, a := range n.Addrs {
		if a.Is6() {
			return a, true
		}
	}
	return netip.Addr{}, false
}
