// SPDX-License-Identifier: MIT

package api

import "net/netip"

// HostChange is the body of PATCH /v1/hosts/NAME: what is to become of a host that was added on this node. What is given
// by Set replaces all there is; Remove must be there; what is added may be. The answer is a Change.
type HostChange struct {
	Create bool              `json:"create"` // make it where there is none
	Set    HostSet           `json:"set"`
	Add    HostParts         `json:"add"`
	Remove HostParts         `json:"remove"`
	Meta   map[string]string `json:"meta,omitempty"` // to be set, or removed where the value is empty
}

// HostSet is what replaces; nil leaves things as they are.
type HostSet struct {
	Addrs   []netip.Addr `json:"addrs,omitempty"`
	Aliases *[]string    `json:"aliases,omitempty"`
}

// HostParts are parts of a host.
type HostParts struct {
	Addrs   []netip.Addr `json:"addrs,omitempty"`
	Aliases []string     `json:"aliases,omitempty"`
}

// HostShown is GET /v1/hosts/NAME, where NAME may be any form of a host's name.
type HostShown struct {
	Host
	Groups  []string `json:"groups,omitempty"`  // that it is in
	Waiting string   `json:"waiting,omitempty"` // why the store does not have it yet, or has another than is wanted here
}
