// SPDX-License-Identifier: MIT

package api

import (
	"net/netip"
	"strings"
	"time"
)

// Way is how packets get to a node: over UDP to Endpoint, through the relays Via, or over TLS. The zero Way is none.
type Way struct {
	Endpoint string   `json:"endpoint,omitempty"`
	Via      []string `json:"via,omitempty"` // the nearest first
	Stream   bool     `json:"stream,omitempty"`
}

// Direct reports whether packets go over UDP and through no other node.
func (w Way) Direct() bool { return w.Endpoint != "" }

func (w Way) String() string {
	switch {
	case w.Endpoint != "":
		return "direct " + w.Endpoint
	case len(w.Via) > 0:
		return "via " + strings.Join(w.Via, ", ")
	case w.Stream:
		return "tls"
	}
	return "no way known"
}

// Ping is the body of POST /v1/ping.
type Ping struct {
	Node string        `json:"node"` // name, full name or an address in the mesh
	Wait time.Duration `json:"wait"` // for the answer, at most 8 s
}

// Pong is its answer.
type Pong struct {
	Name   string     `json:"name"`
	Addr   netip.Addr `json:"addr"`
	RTT    float64    `json:"rtt_ms,omitempty"` // of the echo in the tunnel; 0: no answer
	Way    Way        `json:"way"`
	Direct bool       `json:"direct"`
	Error  string     `json:"error,omitempty"` // why there was no answer
}

// Path is GET /v1/path/NODE.
type Path struct {
	Name      string       `json:"name"`
	Addrs     []netip.Addr `json:"addrs"`
	Reason    string       `json:"reason,omitempty"`     // why the way in use is in use
	NotDirect string       `json:"not_direct,omitempty"` // why it is not direct
	Ways      []PathWay    `json:"ways"`                 // the one in use first
}

// PathWay is one way of a Path.
type PathWay struct {
	Way
	Used      bool    `json:"used"`
	Source    string  `json:"source"` // who told: "record", "name", "told", "seen", "map" or "stream"
	Confirmed bool    `json:"confirmed"`
	RTT       float64 `json:"rtt_ms,omitempty"`
	Loss      float64 `json:"loss,omitempty"` // share of lost probes, 0 to 1
	Missed    int     `json:"missed,omitempty"`
	MTU       int     `json:"mtu,omitempty"` // bytes of the largest packet in the tunnel; 0: not measured
}

// Graph is GET /v1/graph: the mesh as the nodes' records tell it, with this node's own tunnels.
type Graph struct {
	Mesh  string      `json:"mesh"`
	Self  string      `json:"self"`
	Nodes []GraphNode `json:"nodes"` // by name
	Links []GraphLink `json:"links"` // by names
}

// GraphNode is a node of it.
type GraphNode struct {
	Name      string       `json:"name"`
	Addrs     []netip.Addr `json:"addrs"`
	Reachable bool         `json:"reachable"`
	Active    bool         `json:"active"` // this node has a tunnel to it
	NoRelay   bool         `json:"no_relay,omitempty"`
	Way       Way          `json:"way"` // from this node
	RTT       float64      `json:"rtt_ms,omitempty"`
	MTU       int          `json:"mtu,omitempty"`
}

// GraphLink is a direct link between two nodes, A before B.
type GraphLink struct {
	A    string  `json:"a"`
	B    string  `json:"b"`
	Cost float64 `json:"cost_ms"` // round trip, more if it loses packets
	Own  bool    `json:"own"`     // of this node: measured now
}

// Netcheck is POST /v1/netcheck.
type Netcheck struct {
	IPv4        Outside     `json:"ipv4"`
	IPv6        Outside     `json:"ipv6"`
	PortMapping []Gateway   `json:"port_mapping,omitempty"`
	Mapped      []string    `json:"mapped,omitempty"`    // addresses that gateways pass on to this node
	NotAsked    string      `json:"not_asked,omitempty"` // why PortMapping says nothing
	MTU         int         `json:"interface_mtu"`
	Peers       []PeerCheck `json:"peers"`
	Hints       []string    `json:"hints"`
}

// Outside is one address family of the network outside.
type Outside struct {
	Addrs     []netip.Addr `json:"addrs,omitempty"` // this machine's
	Seen      []Seen       `json:"seen,omitempty"`  // of the tunnels' port, from outside
	Answered  int          `json:"answered"`        // addresses of members that answered directly
	Asked     int          `json:"asked"`           // of so many
	Mapping   string       `json:"mapping"`         // RFC 4787's, or "no NAT" or "unknown"
	Filtering string       `json:"filtering"`
}

// Seen is an address at which members see this node.
type Seen struct {
	Addr string   `json:"addr"`
	By   []string `json:"by"`
}

// Gateway is what a gateway says of a port-mapping protocol.
type Gateway struct {
	Gateway  netip.Addr `json:"gateway"`
	Protocol string     `json:"protocol"`
	Error    string     `json:"error,omitempty"` // empty: it speaks it
}

// PeerCheck is a node as the check found it.
type PeerCheck struct {
	Name    string  `json:"name"`
	Way     Way     `json:"way"`
	RTT     float64 `json:"rtt_ms,omitempty"`
	Direct4 float64 `json:"direct4_ms,omitempty"` // round trip of the best direct way over IPv4; 0: none
	Direct6 float64 `json:"direct6_ms,omitempty"`
	Loss    float64 `json:"loss,omitempty"`
	MTU     int     `json:"mtu,omitempty"`
	Relays  bool    `json:"relays"` // it carries packets for others
}
