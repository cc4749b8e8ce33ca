// SPDX-License-Identifier: MIT

package api

import (
	"net/netip"
	"time"
)

// Why is GET /v1/why/NAME: how a name, or an address, comes to be what it is here. What programs are told is the snapshot's
// matter, which the client reads itself.
type Why struct {
	Asked  string  `json:"asked"`
	Form   string  `json:"form"`            // "full name", "short name", "alias", "full alias", "address", "zone", "between" (there are only names below it), "none"
	Never  string  `json:"never,omitempty"` // why nobody can have that name
	Host   *Host   `json:"host,omitempty"`
	Source string  `json:"source"`           // of Host: "certificate", "store", "disk" (what the store said before meshd began), or ""
	Said   *Said   `json:"said,omitempty"`   // with source store and disk: the signed value
	Record *Record `json:"record,omitempty"` // with source certificate

	Claims   []Claim    `json:"claims,omitempty"`
	Lost     []Lost     `json:"lost,omitempty"`     // what else wanted the name
	Refused  []Refused  `json:"refused,omitempty"`  // values of the store for it that were not accepted
	Waiting  *HostShown `json:"waiting,omitempty"`  // what was added here and is not in the store
	Services []Service  `json:"services,omitempty"` // that the name stands for
	Sharing  []string   `json:"sharing,omitempty"`  // of an address: full names of other hosts that have it

	Store Store     `json:"store"`
	Now   time.Time `json:"now"`
}

// Said is a signed value of the store.
type Said struct {
	Key      string    `json:"key"`
	Owner    string    `json:"owner"`
	Sequence uint64    `json:"sequence"`
	At       time.Time `json:"at"`      // when it was signed, by its owner's clock
	Created  int64     `json:"created"` // revisions
	Modified int64     `json:"modified"`

	LastSeen *time.Time `json:"last_seen,omitempty"` // since when the store, which began anew, does not have it
}

// Record is a node's own, with its certificate, as gossip brings it.
type Record struct {
	Node     string       `json:"node"`
	Sequence uint64       `json:"sequence"`
	At       time.Time    `json:"at"`     // when it was signed, by the node's clock
	Issued   time.Time    `json:"issued"` // the certificate
	Addrs    []netip.Addr `json:"addrs"`
}

// Claim is who holds a shared name or an address.
type Claim struct {
	What     string     `json:"what"` // the name or address
	Owner    string     `json:"owner"`
	To       string     `json:"to,omitempty"`  // the node that the owner has given it to, which has not taken it yet
	For      string     `json:"for,omitempty"` // the invited node that it is promised to
	Expires  *time.Time `json:"expires,omitempty"`
	Modified int64      `json:"modified"`
	LastSeen *time.Time `json:"last_seen,omitempty"` // as Said's
	Void     string     `json:"void,omitempty"`      // why it counts for nothing
}

// Lost is somebody who wanted the name too.
type Lost struct {
	Name   string `json:"name"`
	Owner  string `json:"owner"`
	Reason string `json:"reason"`
}

// Refused is a value of the store that was not accepted.
type Refused struct {
	Key      string `json:"key"`
	Revision int64  `json:"revision,omitempty"` // none where the value accepted before stays in its place
	Reason   string `json:"reason"`
}
