// SPDX-License-Identifier: MIT

package vpn

import (
	"crypto/ecdh"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/link"
)

// A node that is evicted leaves nothing but its tombstone, which is kept for good, on the disk too, and spreads as
// records do: as long as it is there, no record of the node is taken from anybody, however old or new.

const (
	maxTombstones = 10000
	partFor       = 250 * time.Millisecond // after which an evicted node's tunnel is gone: so that it is told by then,
	recentlyHeard = time.Minute            // if it has been there so lately
)

// errEvicted is why a record is not accepted.
var errEvicted = errors.New("its node was evicted")

// parting is the tunnel of a node that has just been evicted.
type parting struct {
	peer *link.Peer
	key  *ecdh.PublicKey
	till time.Time
}

// Evict makes and spreads the tombstone of a node, or returns the one that it has. reason is one line of at most
// identity.MaxReason bytes, or empty.
func (n *Node) Evict(name, reason string) (*identity.Tombstone, error) {
	if n.cfg.Identity.CA.Key == nil {
		return nil, errors.New("this node may not evict: it does not hold the mesh's key; run `mesh evict` on the node where `mesh init` was run")
	}
	n.mu.Lock()
	r, old, count := n.records[name], n.tombstones[name], len(n.tombstones)
	n.mu.Unlock()
	switch {
	case name == n.self:
		return nil, fmt.Errorf("%s is this node: a node cannot evict itself; to leave the mesh, stop meshd", name)
	case r == nil && old != nil:
		return old, nil
	case r == nil:
		return nil, fmt.Errorf("no node %s is known here: see `mesh status` for those that are", name)
	case old == nil && count >= maxTombstones:
		return nil, fmt.Errorf("%d nodes have been evicted, more are not kept: it is time for a new mesh", count)
	}
	t, err := n.cfg.Identity.CA.Evict(r.Node, n.self, reason, time.Now())
	if err != nil {
		return nil, err
	}
	if _, err = n.bury(t.Bytes(), ""); err == nil {
		err = n.saveTombstones() // before anybody is told that it is done
	}
	return t, err
}

// Tombstones returns the tombstones of all nodes that were evicted, the latest first.
func (n *Node) Tombstones() []*identity.Tombstone {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := slices.Collect(maps.Values(n.tombstones))
	slices.SortFunc(out, func(a, b *identity.Tombstone) int { return b.At.Compare(a.At) })
	return out
}

// Evicted reports whether the node of a certificate was evicted.
func (n *Node) Evicted(of identity.Node) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.tombstones[of.Name].Voids(of)
}

// bury takes a tombstone, from a node that pushed it or, if from is empty, from here.
func (n *Node) bury(raw []byte, from string) (news bool, err error) {
	defer func() { // when n.mu is free again
		if news {
			n.streams.Review()
		}
	}()
	t, err := n.cfg.Identity.CA.ParseTombstone(raw)
	if err != nil {
		return false, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	old := n.tombstones[t.Name]
	if old != nil && t.Serial.Cmp(old.Serial) <= 0 {
		return false, nil
	}
	if old == nil && len(n.tombstones) >= maxTombstones {
		return false, fmt.Errorf("%d tombstones are known already, more are not taken", maxTombstones)
	}
	n.inter(t)
	n.note()
	n.flood(place(kindTombstone, t.Name), from)
	return true, nil
}

// inter keeps a tombstone and takes away what it voids. n.mu is held.
func (n *Node) inter(t *identity.Tombstone) {
	n.tombstones[t.Name] = t
	n.known.put(tombstoneStatement(t))
	n.unsaved = true
	switch r := n.records[t.Name]; {
	case r == nil || !t.Voids(r.Node):
	case t.Name == n.self:
		n.known.drop(place(kindRecord, n.self))
		n.cfg.Log.Error("this node was evicted: nobody talks to it any more; ask for a new invitation", "by", t.By, "at", t.At, "reason", t.Reason)
	default:
		n.cfg.Log.Info("a node was evicted", "peer", t.Name, "by", t.By, "at", t.At, "reason", t.Reason)
		n.remove(t.Name)
	}
}

// remove is adopt undone: nothing is left of a node. If it has been there just now, it is told why before its tunnel
// goes. n.mu is held.
func (n *Node) remove(name string) {
	r, m, t := n.records[name], n.members[name], n.tombstones[name]
	if p := n.peers[name]; p != nil && n.engine != nil && t.Voids(r.Node) && time.Since(p.Status().LastHeard) < recentlyHeard {
		if b, err := encMode.Marshal(message{Tombstone: t.Bytes()}); err == nil {
			n.inject(r.Node, b)
		}
		delete(n.peers, name)
		n.setOwners()
		n.parting = append(n.parting, parting{p, r.WG, time.Now().Add(partFor)})
		poke(n.outgoing)
	} else {
		n.deactivate(name)
	}
	if m.wanted {
		n.streams.Want(name, nil, false)
	}
	for _, a := range r.Node.Addrs {
		delete(n.byAddr, a)
		n.budgets.forget(a)
	}
	delete(n.byID, m.id)
	delete(n.records, name)
	delete(n.members, name)
	n.order = slices.DeleteFunc(n.order, func(x string) bool { return x == name })
	delete(n.chosen, name)
	delete(n.trials, name)
	delete(n.exchanges, name)
	n.known.drop(place(kindRecord, name))
	if len(r.Subnets) > 0 {
		n.assign()
	}
}

// part takes away the tunnels whose time has come, and reports whether others wait. n.mu is held.
func (n *Node) part() (more bool) {
	now := time.Now()
	n.parting = slices.DeleteFunc(n.parting, func(x parting) bool {
		if now.Before(x.till) {
			return false
		}
		for _, p := range n.peers { // it may have been invited again, with the same keys
			if p == x.peer {
				return true
			}
		}
		if err := n.engine.remove(x.key); err != nil {
			n.cfg.Log.Error("a tunnel cannot be taken away", "peer", x.peer.Name, "err", err)
		}
		n.link.Forget(x.peer)
		return true
	})
	return len(n.parting) > 0
}

const tombstonesFile = "evicted.cbor"

// loadTombstones takes the tombstones that the last run has kept. n.mu is held.
func (n *Node) loadTombstones() {
	file := filepath.Join(n.cfg.StateDir, tombstonesFile)
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var all [][]byte
	if err == nil {
		err = decFile.Unmarshal(b, &all)
	}
	if err != nil {
		n.cfg.Log.Error("the list of evicted nodes on disk cannot be read and is set aside; gossip brings it back", "file", file+".bad", "err", err)
		os.Rename(file, file+".bad")
		return
	}
	for _, b := range all {
		t, err := n.cfg.Identity.CA.ParseTombstone(b)
		if err != nil {
			n.cfg.Log.Warn("a tombstone on disk is not accepted", "err", err)
		} else if old := n.tombstones[t.Name]; old == nil || t.Serial.Cmp(old.Serial) > 0 {
			n.inter(t)
		}
	}
}

// saveTombstones keeps the tombstones on disk unless they are.
func (n *Node) saveTombstones() error {
	n.saving.Lock()
	defer n.saving.Unlock()
	n.mu.Lock()
	unsaved := n.unsaved
	n.unsaved = false
	n.mu.Unlock()
	if !unsaved {
		return nil
	}
	err := SaveTombstones(n.cfg.StateDir, n.Tombstones())
	if err != nil {
		n.mu.Lock()
		n.unsaved = true
		n.mu.Unlock()
	}
	return err
}

// SaveTombstones writes the file of evicted nodes that Run begins with, mode 0600; joining leaves it for the first start.
func SaveTombstones(dir string, all []*identity.Tombstone) error {
	raw := make([][]byte, 0, len(all))
	for _, t := range all {
		raw = append(raw, t.Bytes())
	}
	return saveList(dir, tombstonesFile, raw)
}
