// SPDX-License-Identifier: MIT

package api

import (
	"net/netip"
	"time"
)

// Book is GET /v1/store: who keeps the mesh's store, and who could.
type Book struct {
	Own        bool        `json:"own"`   // the mesh keeps it itself; else it is an etcd elsewhere, of which only the voters' state is known
	Epoch      uint32      `json:"epoch"` // how often it has begun anew
	By         string      `json:"by,omitempty"`
	At         *time.Time  `json:"at,omitempty"` // when it was said who keeps it
	Voters     []Voter     `json:"voters"`
	Leaving    []string    `json:"leaving,omitempty"` // members that are to go and have not yet
	Candidates []Candidate `json:"candidates"`        // other nodes, the fittest first
	MayChange  bool        `json:"may_change"`        // here, since this node holds the mesh's key
	Quorum     bool        `json:"quorum"`            // it can be changed: most members are there
	Backup     *time.Time  `json:"backup,omitempty"`  // when this node made its last one
}

// Voter is a member of the store.
type Voter struct {
	Name     string     `json:"name"`
	Addr     netip.Addr `json:"addr"`
	State    string     `json:"state"` // "leader", "follower", "learning" (no vote yet), "alone" (it sees no majority) or "away"
	Version  string     `json:"version,omitempty"`
	Size     int64      `json:"bytes,omitempty"`       // of its file
	Used     int64      `json:"bytes_used,omitempty"`  // of that
	Quota    int64      `json:"bytes_quota,omitempty"` // that it may have
	Index    uint64     `json:"index,omitempty"`       // of the last change it knows
	Answered float64    `json:"answered_ms,omitempty"`
	Problems []string   `json:"problems,omitempty"`
	Error    string     `json:"error,omitempty"`
}

// Candidate is a node that does not keep the store.
type Candidate struct {
	Name    string  `json:"name"`
	Fit     bool    `json:"fit"`               // it would be a good home
	Why     string  `json:"why,omitempty"`     // it would not
	Public  bool    `json:"public"`            // it can be reached from everywhere
	Battery bool    `json:"battery,omitempty"` // it is carried about, and sleeps
	Up      float64 `json:"up_hours,omitempty"`
	Fsync   float64 `json:"fsync_ms,omitempty"`
	RTT     float64 `json:"rtt_ms,omitempty"`
}

// Voters is the body of POST /v1/store/voters.
type Voters struct {
	Add    []string `json:"add,omitempty"`
	Remove []string `json:"remove,omitempty"`
	Force  bool     `json:"force,omitempty"` // also with an even number of members, laptops, and nodes without meshd-etcd
}

// Recover is the body of POST /v1/store/recover: the store begins anew with what one member has.
type Recover struct {
	From  string `json:"from"`            // empty: this node
	Force bool   `json:"force,omitempty"` // although it works
}

// Restored is the answer to POST /v1/store/restore.
type Restored struct {
	Put     int      `json:"put"`
	Newer   int      `json:"newer"` // that the store has as they are, or newer
	Refused []string `json:"refused,omitempty"`
	Others  int      `json:"others,omitempty"` // refused, beyond those
}
