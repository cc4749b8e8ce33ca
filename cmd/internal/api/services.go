// SPDX-License-Identifier: MIT

package api

import (
	"net/netip"
	"time"

	"mesh.internal/mesh/resolver/health"
)

// Service is a service of GET /v1/services.
type Service struct {
	Name     string            `json:"name"`
	Type     string            `json:"type"`
	Proto    string            `json:"proto"`
	Port     uint16            `json:"port"`
	Owner    string            `json:"owner"` // the node that offers it, and checks it
	Host     string            `json:"host"`  // on which it is, relative to the zone
	Instance string            `json:"instance"`
	Addrs    []netip.Addr      `json:"addrs"`
	Tags     []string          `json:"tags,omitempty"`
	Meta     map[string]string `json:"meta,omitempty"`
	Priority uint16            `json:"priority,omitempty"`
	Weight   uint16            `json:"weight,omitempty"`
	TTL      int               `json:"ttl,omitempty"` // seconds
	State    string            `json:"state"`         // "passing", "warning", "critical", "unknown" or "offline"
	Output   string            `json:"output,omitempty"`
	Since    *time.Time        `json:"since,omitempty"`
	Usable   bool              `json:"usable"`           // it is in answers
	RTT      *float64          `json:"rtt_ms,omitempty"` // to its owner, where that was measured; 0: this node

	File    string `json:"file,omitempty"`    // of this node's: the file that says so
	Waiting string `json:"waiting,omitempty"` // of this node's: why the store does not have it yet
}

// Services is GET /v1/services: all of the mesh, sorted by type, protocol, host and name, with those of this node that the
// store does not have yet at the end.
type Services struct {
	Revision int64     `json:"revision"`
	Domain   string    `json:"domain"`
	Services []Service `json:"services"`
}

// Report is the body of POST /v1/services/NAME/report, where NAME is of this node's services, or "SERVICE/CHECK".
type Report struct {
	State  string `json:"state"`
	Output string `json:"output,omitempty"`
}

// Checks is GET /v1/checks: those of this node, and what has changed lately, the oldest first.
type Checks struct {
	Checks  []health.CheckStatus `json:"checks"`
	History []health.Change      `json:"history"`
}
