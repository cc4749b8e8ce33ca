// SPDX-License-Identifier: MIT

package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
)

// VoterFile is where meshd tells meshd-etcd of this machine what it is to do. It is there while this node is one of those
// that keep the store, and for a while after.
func (p Paths) VoterFile() string { return filepath.Join(p.Run, "voter.json") }

// Voter is what meshd tells meshd-etcd.
type Voter struct {
	Mesh    string   `json:"mesh"`
	Epoch   uint32   `json:"epoch"`   // of the store: members of another are not of this one
	Voters  []Keeper `json:"voters"`  // nodes that are to keep it
	Members []string `json:"members"` // all nodes of the mesh, for their permissions
}

// Keeper is a node that is to keep the store.
type Keeper struct {
	Name string     `json:"name"`
	Addr netip.Addr `json:"addr"`
	RTT  float64    `json:"rtt_ms"` // round trip from here; 0: not known, or this node
}

// LoadVoter reads the file; nil: there is none.
func (p Paths) LoadVoter() (*Voter, error) {
	b, err := os.ReadFile(p.VoterFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var v Voter
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err != nil {
		return nil, fmt.Errorf("reading what meshd says of the store (%s): %w", p.VoterFile(), err)
	}
	return &v, nil
}

// SaveVoter replaces the file; nil takes it away.
func (p Paths) SaveVoter(v *Voter) error {
	if v == nil {
		if err := os.Remove(p.VoterFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return WriteFile(p.VoterFile(), append(b, '\n'), 0o644)
}

// Keeper returns the keeper of this name.
func (v *Voter) Keeper(name string) (Keeper, bool) {
	if v != nil {
		for _, k := range v.Voters {
			if k.Name == name {
				return k, true
			}
		}
	}
	return Keeper{}, false
}
