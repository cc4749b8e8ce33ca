// SPDX-License-Identifier: MIT

package identity

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Bounds of rosters.
const (
	MaxRoster = 1024 // bytes, encoded
	MaxVoters = 7    // etcd's own advice
)

// Roster says which nodes keep the mesh's store. The mesh's root key signs it and nobody else's; anyone may carry it. Of
// two the newer one counts, for everybody, so that what an older one named is fenced off where the newer is known.
type Roster struct {
	Epoch  uint32   // grows when the store begins anew: members of an older epoch are not of this store
	Voters []string // 1 to MaxVoters, sorted
	At     time.Time
	By     string // the node that made it

	raw []byte
}

// roster is a Roster's signed part, of the same form as a record's.
type roster struct {
	Epoch  uint32   `cbor:"1,keyasint"`
	Voters []string `cbor:"2,keyasint"`
	At     int64    `cbor:"3,keyasint"` // Unix time in milliseconds
	By     string   `cbor:"4,keyasint"`
}

const rosterDomain = "mesh store roster v1\n"

// Roster makes a roster that replaces old, which may be nil, whatever the clock says.
func (ca *CA) Roster(old *Roster, epoch uint32, voters []string, by string, at time.Time) (*Roster, error) {
	if old != nil && !at.After(old.At) {
		at = old.At.Add(time.Millisecond)
	}
	voters = slices.Clone(voters)
	slices.Sort(voters)
	b, err := ca.state("roster", rosterDomain, roster{Epoch: epoch, Voters: voters, At: at.UnixMilli(), By: by})
	if err != nil {
		return nil, err
	}
	return ca.ParseRoster(b)
}

// ParseRoster decodes a roster and verifies its signature. b may come from anybody.
func (ca *CA) ParseRoster(b []byte) (*Roster, error) {
	var r roster
	if err := ca.stated("roster", rosterDomain, b, MaxRoster, &r); err != nil {
		return nil, err
	}
	if len(r.Voters) == 0 || len(r.Voters) > MaxVoters {
		return nil, fmt.Errorf("a store is kept by 1 to %d nodes, not %d", MaxVoters, len(r.Voters))
	}
	for i, v := range r.Voters {
		if err := CheckName(v); err != nil {
			return nil, fmt.Errorf("roster: %w", err)
		}
		if i > 0 && r.Voters[i-1] >= v {
			return nil, errors.New("a roster's nodes are not in order")
		}
	}
	if err := CheckName(r.By); err != nil {
		return nil, fmt.Errorf("roster: %w", err)
	}
	return &Roster{Epoch: r.Epoch, Voters: r.Voters, At: time.UnixMilli(r.At), By: r.By, raw: slices.Clone(b)}, nil
}

// Bytes is the roster's encoding. The caller must not change it.
func (r *Roster) Bytes() []byte { return r.raw }

// Version orders rosters: by time, and two of one moment by their content, so that all nodes choose the same.
func (r *Roster) Version() (at, content uint64) {
	if r == nil {
		return 0, 0
	}
	h := sha256.Sum256(r.raw)
	return uint64(max(r.At.UnixMilli(), 0)), binary.BigEndian.Uint64(h[:])
}

// Has, of a nil Roster too, reports whether a node is one of those that keep the store.
func (r *Roster) Has(name string) bool { return r != nil && slices.Contains(r.Voters, name) }
