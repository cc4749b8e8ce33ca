// SPDX-License-Identifier: MIT

package vpn

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"mesh.internal/mesh/vpn/identity"
)

// The roster, which says who keeps the store, spreads like records do, so that every node knows it, with the store gone
// too. There is one; the newest counts.

// Roster returns the newest roster that is known; nil: none.
func (n *Node) Roster() *identity.Roster {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.roster
}

// SetRoster makes and spreads a new roster. Nodes must be known, and this node must hold the mesh's key.
func (n *Node) SetRoster(epoch uint32, voters []string) (*identity.Roster, error) {
	n.mu.Lock()
	old := n.roster
	n.mu.Unlock()
	r, err := n.cfg.Identity.CA.Roster(old, epoch, voters, n.self, time.Now())
	if err != nil {
		return nil, err
	}
	if err := SaveRoster(n.cfg.StateDir, r); err != nil { // before anybody acts on it
		return nil, err
	}
	_, err = n.enrol(r.Bytes(), "")
	return r, err
}

// enrol takes a roster, from a node that pushed it or, if from is empty, from here.
func (n *Node) enrol(raw []byte, from string) (news bool, err error) {
	r, err := n.cfg.Identity.CA.ParseRoster(raw)
	if err != nil {
		return false, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !rosterStatement(n.roster).less(rosterStatement(r).version) {
		return false, nil
	}
	n.roster = r
	n.known.put(rosterStatement(r))
	n.note()
	n.flood(place(kindRoster, ""), from)
	n.cfg.Log.Info("the store is kept by", "nodes", r.Voters, "epoch", r.Epoch, "by", r.By, "at", r.At)
	return true, nil
}

func rosterStatement(r *identity.Roster) statement {
	if r == nil {
		return statement{}
	}
	at, content := r.Version()
	return newStatement(kindRoster, "", version{at, content}, r.Bytes())
}

const rosterFile = "roster.cbor"

// loadRoster takes the roster that the last run has kept. n.mu is held.
func (n *Node) loadRoster() {
	file := filepath.Join(n.cfg.StateDir, rosterFile)
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var all [][]byte
	if err == nil {
		err = decFile.Unmarshal(b, &all)
	}
	for _, b := range all {
		var r *identity.Roster
		if r, err = n.cfg.Identity.CA.ParseRoster(b); err == nil {
			n.roster = r
			n.known.put(rosterStatement(r))
		}
	}
	if err != nil {
		n.cfg.Log.Error("who keeps the store cannot be read from the disk; gossip brings it back", "file", file, "err", err)
	}
}

// saveRoster keeps the roster on disk unless it is.
func (n *Node) saveRoster() error {
	n.saving.Lock()
	defer n.saving.Unlock()
	r := n.Roster()
	if r == nil || slices.Equal(r.Bytes(), n.savedRoster) {
		return nil
	}
	if err := saveList(n.cfg.StateDir, rosterFile, [][]byte{r.Bytes()}); err != nil {
		return err
	}
	n.savedRoster = r.Bytes()
	return nil
}

// SaveRoster writes the file that Run begins with; joining leaves it for the first start. r may be nil.
func SaveRoster(dir string, r *identity.Roster) error {
	if r == nil {
		return nil
	}
	return saveList(dir, rosterFile, [][]byte{r.Bytes()})
}
