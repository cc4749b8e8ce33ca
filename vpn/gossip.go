// SPDX-License-Identifier: MIT

package vpn

import (
	"context"
	"maps"
	"math/big"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"mesh.internal/mesh/vpn/identity"
)

// Node records spread over the mesh itself: a new one is pushed to the neighbours, who push it on if it is new to them
// too; from time to time neighbours compare what they have (digest), which repairs whatever was lost. Every message is
// idempotent, and a record is verified before anything is done with it.

// message is a control message: CBOR, at most what fits a control packet. Unknown keys are ignored.
type message struct {
	Record []byte   `cbor:"1,keyasint,omitempty"` // push: one node record
	Digest *digest  `cbor:"2,keyasint,omitempty"` // what the sender has
	Want   []string `cbor:"3,keyasint,omitempty"` // names whose records the sender asks for
	Cands  [][]byte `cbor:"4,keyasint,omitempty"` // addresses at which the sender may be, and it asks for the receiver's
}

// digest lists the records that the sender has of all names from From up to but not including To (empty: to the end).
type digest struct {
	From  string  `cbor:"1,keyasint,omitempty"`
	To    string  `cbor:"2,keyasint,omitempty"`
	Items []entry `cbor:"3,keyasint,omitempty"` // sorted by name
}

type entry struct {
	_      struct{} `cbor:",toarray"`
	Name   string
	Issued uint64 // of the certificate, see identity.Record.Newer
	Seq    uint64
}

const maxEntries = 32 // of a digest, so that with names of average length it fits a packet

var (
	encMode, _ = cbor.CoreDetEncOptions().EncMode()
	decMode, _ = cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden,
		MaxArrayElements: 64, MaxMapPairs: 16, MaxNestedLevels: 6, TagsMd: cbor.TagsForbidden}.DecMode()
	decRecords, _ = cbor.DecOptions{MaxArrayElements: maxRecords + 16, MaxNestedLevels: 4}.DecMode() // the file of records
)

func issued(r *identity.Record) uint64 { return new(big.Int).Rsh(r.Node.Serial, 64).Uint64() }

// digests returns all that is known, in as many parts as it takes.
func digests(known []*identity.Record) (out []message) {
	known = slices.Clone(known)
	slices.SortFunc(known, func(a, b *identity.Record) int { return strings.Compare(a.Node.Name, b.Node.Name) })
	from := ""
	for first := true; first || len(known) > 0; first = false {
		d := &digest{From: from}
		size := 64
		for len(known) > 0 && len(d.Items) < maxEntries && size+len(known[0].Node.Name)+22 < maxControl-controlHead {
			r := known[0]
			d.Items = append(d.Items, entry{Name: r.Node.Name, Issued: issued(r), Seq: r.Seq})
			size += len(r.Node.Name) + 22
			known = known[1:]
		}
		if len(known) > 0 {
			d.To = known[0].Node.Name
			from = d.To
		}
		out = append(out, message{Digest: d})
	}
	return out
}

// compare returns the records of ours that the sender of d lacks or has older ones of, and the names it is ahead in.
func compare(d *digest, known map[string]*identity.Record) (push []*identity.Record, want []string) {
	theirs := map[string]entry{}
	for _, e := range d.Items {
		theirs[e.Name] = e
		r := known[e.Name]
		if len(want) < maxEntries && (r == nil || e.Issued > issued(r) || e.Issued == issued(r) && e.Seq > r.Seq) && identity.CheckName(e.Name) == nil {
			want = append(want, e.Name)
		}
	}
	for name, r := range known {
		if name < d.From || d.To != "" && name >= d.To {
			continue
		}
		if e, ok := theirs[name]; !ok || issued(r) > e.Issued || issued(r) == e.Issued && r.Seq > e.Seq {
			push = append(push, r)
		}
	}
	return push, want
}

// flood pushes a record to the neighbours. n.mu is held.
func (n *Node) flood(r *identity.Record, from string) {
	for _, name := range n.neighbours() {
		if name != from && name != r.Node.Name {
			n.send(name, message{Record: r.Bytes()})
		}
	}
}

// repair compares records with a neighbour now and then, at first with all of them.
func (n *Node) repair(ctx context.Context) {
	wait := time.Duration(0)
	for first := true; sleep(ctx, wait); first = false {
		n.mu.Lock()
		near := n.neighbours()
		if !first && len(near) > 1 {
			near = []string{near[rand.N(len(near))]}
		}
		for _, name := range near {
			n.compareWith(name)
		}
		n.mu.Unlock()
		wait = repairEvery*3/4 + rand.N(repairEvery/2)
	}
}

// compareWith sends a node what is known here, which it answers with what differs. n.mu is held.
func (n *Node) compareWith(name string) {
	for _, d := range digests(slices.Collect(maps.Values(n.records))) {
		n.send(name, d)
	}
}

// control is a control packet that came in.
type control struct {
	from    netip.Addr
	payload []byte
}

// enqueue copies a control packet for read; when too many wait, it is dropped, and repair makes up for it.
func (n *Node) enqueue(from netip.Addr, payload []byte) {
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
			n.receive(c.from, c.payload)
		}
	}
}

// receive takes a control message from the node that has this address.
func (n *Node) receive(from netip.Addr, payload []byte) {
	var m message
	if err := decMode.Unmarshal(payload, &m); err != nil {
		n.cfg.Log.Debug("a control message is malformed", "endpoint", from.String(), "err", err)
		return
	}
	n.mu.Lock()
	sender := n.byAddr[from]
	n.mu.Unlock()
	if sender == "" {
		return
	}
	if len(m.Record) > 0 {
		if err := n.learn(m.Record, sender); err != nil {
			n.cfg.Log.Warn("a node record is not accepted", "peer", sender, "err", err)
		}
	}
	if m.Digest == nil && len(m.Want) == 0 && m.Cands == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if m.Cands != nil && n.records[sender] != nil {
		n.suggest(sender, decodeAddrs(m.Cands))
		if n.peers[sender] != nil {
			n.tell(sender)
		}
	}
	if m.Digest != nil && len(m.Digest.Items) <= 64 {
		push, want := compare(m.Digest, n.records)
		for _, r := range push {
			n.send(sender, message{Record: r.Bytes()})
		}
		if len(want) > 0 {
			n.send(sender, message{Want: want})
		}
	}
	for _, name := range m.Want[:min(len(m.Want), maxEntries)] {
		if r := n.records[name]; r != nil {
			n.send(sender, message{Record: r.Bytes()})
		}
	}
}

// send puts a message into the tunnel to a node. n.mu is held.
func (n *Node) send(to string, m message) {
	r := n.records[to]
	if r == nil || n.seam == nil || n.activate(to) == nil {
		return
	}
	dst, ok := addr6(r.Node)
	if !ok {
		return
	}
	b, err := encMode.Marshal(m)
	if err != nil {
		n.cfg.Log.Error("encoding a control message", "err", err)
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
