// SPDX-License-Identifier: MIT

package vpn

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/link"
)

// Changed returns a channel that is closed when Records have changed after this call.
func (n *Node) Changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

// Records returns the records of all nodes that are known, this node's own first.
func (n *Node) Records() []*identity.Record {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := slices.Collect(maps.Values(n.records))
	slices.SortFunc(out, func(a, b *identity.Record) int {
		if (a.Node.Name == n.self) != (b.Node.Name == n.self) {
			if a.Node.Name == n.self {
				return -1
			}
			return 1
		}
		return compareNames(a, b)
	})
	return out
}

func compareNames(a, b *identity.Record) int {
	if a.Node.Name < b.Node.Name {
		return -1
	}
	if a.Node.Name > b.Node.Name {
		return 1
	}
	return 0
}

// Learn takes a node record from anywhere.
func (n *Node) Learn(record []byte) error {
	_, err := n.learn(record, "")
	return err
}

func (n *Node) learn(b []byte, from string) (news bool, err error) {
	r, err := n.cfg.Parse(b)
	if err != nil {
		return false, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if t := n.tombstones[r.Node.Name]; t.Voids(r.Node) {
		if from != "" {
			n.push(from, place(kindTombstone, t.Name)) // which it seems to lack
		}
		return false, fmt.Errorf("%w: %s", errEvicted, t)
	}
	old := n.records[r.Node.Name]
	if old != nil && !r.Newer(old) {
		return false, nil
	}
	if r.Node.Name == n.self {
		if r.Node.Serial.Cmp(n.cfg.Identity.Node.Serial) > 0 {
			n.cfg.Log.Error("this node's name has been given to another: join again, or ask who invited it", "peer", n.self)
		} else if old != nil && r.Node.Serial.Cmp(old.Node.Serial) == 0 {
			n.announce(r.Seq) // our own from before the disk was lost: go on from there
		} else if old == nil && r.Node.Serial.Cmp(n.cfg.Identity.Node.Serial) == 0 { // before Run, as from the disk
			return false, n.adopt(r)
		}
		return false, nil
	}
	if old == nil && len(n.records) >= maxRecords {
		return false, fmt.Errorf("%d nodes are known already, more are not taken", maxRecords)
	}
	if err := n.adopt(r); err != nil {
		return false, err
	}
	if old == nil {
		n.cfg.Log.Info("a node is known", "peer", r.Node.Name, "addrs", r.Node.Addrs)
	}
	n.note()
	n.flood(place(kindRecord, r.Node.Name), from)
	return true, nil
}

// note says that records have changed. n.mu is held.
func (n *Node) note() {
	close(n.changed)
	n.changed = make(chan struct{})
	poke(n.dirty)
	poke(n.relink)
}

// adopt makes r the record of its node, and its tunnel, if there is one, what r says. n.mu is held.
func (n *Node) adopt(r *identity.Record) error {
	name, id := r.Node.Name, link.IDOf(r.WG)
	if other := n.byID[id]; other != "" && other != name {
		return fmt.Errorf("the WireGuard key of %s has the ID of %s's", name, other)
	}
	old, m := n.records[name], n.members[name]
	same := old != nil && old.WG.Equal(r.WG) && slices.Equal(old.Node.Addrs, r.Node.Addrs)
	if old != nil && !same {
		if name != n.self {
			n.deactivate(name)
		}
		for _, a := range old.Node.Addrs {
			delete(n.byAddr, a)
		}
		delete(n.byID, m.id)
	}
	if m == nil {
		m = &member{cands: map[netip.AddrPort]time.Time{}, rank: place(n.self+"\x00", name)}
		n.members[name] = m
		if i, found := slices.BinarySearchFunc(n.order, name, n.byRank); !found && name != n.self {
			n.order = slices.Insert(n.order, i, name)
		}
	}
	m.id = id
	n.records[name], n.byID[id] = r, name
	if !n.tombstones[name].Voids(r.Node) { // this node's own
		n.known.put(recordStatement(r))
	}
	for _, a := range r.Node.Addrs {
		n.byAddr[a] = name
	}
	if len(r.Subnets) > 0 || old != nil && len(old.Subnets) > 0 {
		n.assign()
	}
	if old != nil && !slices.Equal(old.Endpoints, r.Endpoints) {
		delete(n.trials, name) // it may be reached now
	}
	n.refresh(name)
	return nil
}

// announce makes and spreads this node's record if it differs from the last one; after says which sequence it must
// exceed. n.mu is held.
func (n *Node) announce(after uint64) {
	var eps []netip.AddrPort
	var hosts []string
	for _, p := range n.public {
		if ap, err := netip.ParseAddrPort(p); err == nil {
			eps = append(eps, ap)
		} else {
			hosts = append(hosts, p)
		}
	}
	for _, a := range n.mapped() {
		if !slices.Contains(eps, a) {
			eps = append(eps, a)
		}
	}
	locals, err := n.cfg.Locals()
	if err != nil {
		n.cfg.Log.Warn("this machine's addresses are not known", "err", err)
	}
	for _, a := range locals {
		if ap := netip.AddrPortFrom(a, uint16(n.cfg.Port)); !slices.Contains(eps, ap) && len(eps) < 12 {
			eps = append(eps, ap)
		}
	}
	said := identity.Said{Endpoints: eps, Hosts: hosts, Links: n.links(), NoRelay: n.cfg.NoRelay, Subnets: n.cfg.Subnets, Join: n.cfg.Join, Fit: n.cfg.Fit}
	old := n.records[n.self]
	if old != nil {
		after = max(after, old.Seq)
		if time.Since(n.started) < linksKeep {
			said.Links = merge(said.Links, old.Links)
		}
		said.Links = steady(old.Links, said.Links)
		n.unsaid = false
		if same := slices.Equal(old.Endpoints, eps) && slices.Equal(old.Hosts, hosts) && old.NoRelay == said.NoRelay && old.Join == said.Join && old.Fit == said.Fit && slices.Equal(old.Subnets, said.Subnets); after == old.Seq && same && old.Node.Serial.Cmp(n.cfg.Identity.Node.Serial) == 0 {
			if slices.Equal(old.Links, said.Links) {
				return
			}
			now := time.Now()
			if n.unsaid = len(old.Links) > 0 && now.Sub(n.saidAt) < linksSettle; n.unsaid || !n.said.may(now, linksEvery, linksBurst) {
				return
			}
		}
	}
	r, err := n.cfg.Identity.Record(max(uint64(time.Now().UnixMilli()), after+1), said)
	if err != nil {
		n.cfg.Log.Error("making this node's record", "err", err)
		return
	}
	n.saidAt = time.Now()
	n.adopt(r)
	n.note()
	n.flood(place(kindRecord, n.self), "")
}

// pacer bounds how often something is done: burst times at once, then once per every.
type pacer struct {
	left float64
	at   time.Time
}

const (
	linksBurst  = 5 // changes of links, announced
	linksEvery  = 15 * time.Second
	linksSettle = time.Second      // between two: they come in bursts
	linksKeep   = 10 * time.Second // after the start, those of before are told of too: they are about to be found again
)

func (p *pacer) may(now time.Time, every time.Duration, burst float64) bool {
	p.left = min(p.left+now.Sub(p.at).Seconds()/every.Seconds(), burst)
	p.at = now
	if p.left < 1 {
		return false
	}
	p.left--
	return true
}

// SetPublic changes what is announced as this node's public endpoints.
func (n *Node) SetPublic(public []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.public = public
	n.announce(0)
}

const recordsFile = "records.cbor"

func (n *Node) file() string { return filepath.Join(n.cfg.StateDir, recordsFile) }

// load takes the records that the last run has kept. n.mu is held.
func (n *Node) load() {
	n.loadTombstones()
	n.loadRoster()
	for _, r := range n.records { // learnt before Run
		if err := n.adopt(r); err != nil {
			n.cfg.Log.Warn("a node record is not accepted", "peer", r.Node.Name, "err", err)
		}
	}
	b, err := os.ReadFile(n.file())
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var all [][]byte
	if err == nil {
		err = decFile.Unmarshal(b, &all)
	}
	if err != nil {
		n.cfg.Log.Warn("the known nodes on disk cannot be read and are set aside; gossip brings them back", "file", n.file()+".bad", "err", err)
		os.Rename(n.file(), n.file()+".bad")
		return
	}
	for _, b := range all {
		r, err := n.cfg.Parse(b)
		if err == nil && n.tombstones[r.Node.Name].Voids(r.Node) && r.Node.Name != n.self {
			continue
		}
		if err == nil && (n.records[r.Node.Name] == nil || r.Newer(n.records[r.Node.Name])) {
			err = n.adopt(r)
		}
		if err != nil {
			n.cfg.Log.Warn("a node record on disk is not accepted", "err", err)
		}
	}
}

// save keeps the known records on disk, at most once a second, and once more at the end.
func (n *Node) save(ctx context.Context) {
	for going := true; going; {
		select {
		case <-ctx.Done():
			going = false
			select {
			case <-n.dirty:
			default:
				return
			}
		case <-n.dirty:
		}
		if err := n.saveTombstones(); err != nil {
			n.cfg.Log.Error("the evicted nodes are not kept on disk", "err", err)
		}
		if err := n.saveRoster(); err != nil {
			n.cfg.Log.Error("who keeps the store is not kept on disk", "err", err)
		}
		if err := SaveRecords(n.cfg.StateDir, n.Records()); err != nil {
			n.cfg.Log.Warn("the known nodes are not kept on disk", "err", err)
		}
		sleep(ctx, time.Second)
	}
}

// SaveRecords writes the file of known nodes that Run begins with, mode 0600; joining leaves it for the first start.
func SaveRecords(dir string, records []*identity.Record) error {
	all := make([][]byte, 0, len(records))
	for _, r := range records {
		all = append(all, r.Bytes())
	}
	return saveList(dir, recordsFile, all)
}

// saveList replaces a file as a whole.
func saveList(dir, name string, all [][]byte) error {
	b, err := encMode.Marshal(all)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+name+"-*")
	if err != nil {
		return fmt.Errorf("keeping the known nodes: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		return fmt.Errorf("keeping the known nodes: %w", err)
	}
	return nil
}
