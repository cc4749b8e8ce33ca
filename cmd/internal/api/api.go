// SPDX-License-Identifier: MIT

// Package api is the conversation between meshd and its clients on this machine: HTTP with JSON over a unix socket,
// whose file mode says who may take part. It has the types of both sides and the client. It starts no goroutine.
package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"
)

// Status is GET /v1/status: the single source of all that shows how the node is.
type Status struct {
	Version  string   `json:"version"`
	Mesh     string   `json:"mesh"`
	Domain   string   `json:"domain"`
	Self     Self     `json:"self"`
	Peers    []Peer   `json:"peers"`
	Store    Store    `json:"store"`
	Snapshot Snapshot `json:"snapshot"`

	Dropped Dropped `json:"dropped"` // packets of this machine's programs, since meshd's start

	Projections []Projection `json:"projections,omitempty"` // of mesh.toml's project

	Evicted  []Evicted `json:"evicted,omitempty"` // nodes, the latest first, at most twenty
	Warnings []string  `json:"warnings"`
}

// Dropped counts packets that waited for the tunnels and were dropped.
type Dropped struct {
	Late uint64 `json:"late"` // to keep the queue short: a sender's sign to slow down
	Full uint64 `json:"full"` // because it was full
}

// Evicted is a node that was evicted, and the answer to POST /v1/evict.
type Evicted struct {
	Name   string    `json:"name"`
	At     time.Time `json:"at"`
	By     string    `json:"by"` // the node where it was done
	Reason string    `json:"reason,omitempty"`

	StoreError string `json:"store_error,omitempty"` // why what the node has left in the store was not deleted
}

// Evict is the body of POST /v1/evict.
type Evict struct {
	Name   string `json:"name"`
	Reason string `json:"reason,omitempty"` // one line, at most 200 bytes
}

// SnapshotWarning begins the warning of a daemon that cannot write the snapshot.
const SnapshotWarning = "names of programs on this machine are not brought up to date"

// Self is this node.
type Self struct {
	Name      string       `json:"name"`
	Addrs     []netip.Addr `json:"addrs"`
	Endpoints []string     `json:"endpoints"` // where others may reach it
	Interface string       `json:"interface"`
	MayInvite bool         `json:"may_invite"`
}

// Peer is another node.
type Peer struct {
	Name          string       `json:"name"`
	Addrs         []netip.Addr `json:"addrs"`
	Active        bool         `json:"active"`             // there is a tunnel; others get one with the first packet
	Neighbour     bool         `json:"neighbour"`          // the tunnel is kept, and records go along it
	Direct        bool         `json:"direct"`             // over UDP, without other nodes
	Endpoint      string       `json:"endpoint,omitempty"` // its UDP address then
	Via           []string     `json:"via,omitempty"`      // relays, the nearest first
	Stream        bool         `json:"stream,omitempty"`   // over TLS
	Reason        string       `json:"reason,omitempty"`   // why this way
	RTT           float64      `json:"rtt_ms,omitempty"`   // smoothed
	Loss          float64      `json:"loss,omitempty"`     // share of lost probes, 0 to 1
	MTU           int          `json:"mtu,omitempty"`      // bytes of the largest packet in the tunnel that passes; 0: not measured
	LastHandshake *time.Time   `json:"last_handshake,omitempty"`
	RX            uint64       `json:"rx_bytes"`
	TX            uint64       `json:"tx_bytes"`
}

// Store is the shared store.
type Store struct {
	State     string    `json:"state"` // "none", "connecting", "ok" or "unreachable"
	Endpoints []string  `json:"endpoints"`
	Since     time.Time `json:"since"`
	Revision  int64     `json:"revision"`
	Error     string    `json:"error,omitempty"`
	Waiting   []string  `json:"waiting,omitempty"` // changes made here that are not in it yet
	LastSeen  *LastSeen `json:"last_seen,omitempty"`
}

// LastSeen is what the store lacks since it began anew, which stays as it was until its owners publish it again.
type LastSeen struct {
	Names  int       `json:"names"`  // hosts and groups
	Owners []string  `json:"owners"` // from whom not all has come again
	Since  time.Time `json:"since"`  // when this node saw that the store began anew
}

// Projection is a layout of the names for programs that read etcd themselves.
type Projection struct {
	Layout  string   `json:"layout"` // "skydns" or "hosts"
	State   string   `json:"state"`  // "writing", "waiting" (another node writes it) or "failing"
	Keys    int      `json:"keys"`   // where this node writes
	Error   string   `json:"error,omitempty"`
	Foreign []string `json:"foreign,omitempty"` // keys of somebody else, which are left alone, at most ten
}

// Snapshot is the file that programs' look-ups read.
type Snapshot struct {
	Path  string  `json:"path"`
	Age   float64 `json:"age_seconds"` // since it was last known to be right
	Names int     `json:"names"`
}

// Host is a host of GET /v1/hosts, and the body of PUT, of which FQDN, Owner, Node, Names and Shared do not count.
type Host struct {
	Name    string            `json:"name"` // relative to the zone
	FQDN    string            `json:"fqdn,omitempty"`
	Owner   string            `json:"owner,omitempty"`
	Node    bool              `json:"node"`
	Addrs   []netip.Addr      `json:"addrs"`
	Aliases []string          `json:"aliases,omitempty"`
	Meta    map[string]string `json:"meta,omitempty"`   // what people and programs want to know of it
	Names   []string          `json:"names,omitempty"`  // every form that programs find it by, the canonical one first
	Shared  []netip.Addr      `json:"shared,omitempty"` // those of Addrs that lead back to another host
}

// Hosts is GET /v1/hosts.
type Hosts struct {
	Revision int64          `json:"revision"`
	Domain   string         `json:"domain"`
	Prefixes []netip.Prefix `json:"prefixes"`           // of the mesh's addresses
	Hosts    []Host         `json:"hosts"`              // sorted by name
	Services []Host         `json:"services,omitempty"` // names that stand for services, each with the addresses of those that are well
}

// Zone is GET /v1/zone: the mesh's zone as a zone file.
type Zone struct {
	Text string `json:"text"`
}

// Group is a group of GET /v1/groups. Of the body of PUT, Name and Members count: they are added to what there is.
type Group struct {
	Name    string   `json:"name"`
	Owner   string   `json:"owner,omitempty"`
	Members []string `json:"members"`           // as written: hosts relative to the zone, other groups as "@name"
	Hosts   []string `json:"hosts"`             // full names of all members, those of groups in it too
	Unknown []string `json:"unknown,omitempty"` // members, of groups in it too, that nobody has now
}

// Groups is GET /v1/groups.
type Groups struct {
	Revision int64   `json:"revision"`
	Groups   []Group `json:"groups"`
}

// Change is the answer to PUT /v1/hosts and /v1/groups, to DELETE /v1/hosts/NAME, and to DELETE /v1/groups/NAME, which
// takes members out where the query has "member", else all of the group.
type Change struct {
	Landed bool `json:"landed"` // false: kept on disk until the store is back
}

// Invite is the body of POST /v1/invite.
type Invite struct {
	Name    string         `json:"name"`
	Addr    netip.Addr     `json:"addr"`              // zero: the lowest free one
	Subnets []netip.Prefix `json:"subnets,omitempty"` // that the new node may be the router of
	Expires time.Duration  `json:"expires"`
}

// Invitation is its answer.
type Invitation struct {
	Token   string     `json:"token"`
	Addr    netip.Addr `json:"addr"`
	Expires time.Time  `json:"expires"`
	Warning string     `json:"warning,omitempty"` // why it may not work
}

// Grant lets a node invite: POST /v1/grants makes one, DELETE /v1/grants/NODE takes it back.
type Grant struct {
	Node  string    `json:"node"`
	Below string    `json:"below,omitempty"` // only names that begin with this label and a hyphen
	At    time.Time `json:"at"`
	Void  bool      `json:"void,omitempty"` // the node with the certificate that this was granted to is no member any more
}

// Grants is GET /v1/grants.
type Grants struct {
	Grants []Grant `json:"grants"`
}

// Error is the body of every answer that is not 200.
type Error struct {
	Message string `json:"error"`
}

// maxBody bounds what a client reads.
const maxBody = 64 << 20

// Client talks to meshd through the socket at Path.
type Client struct{ Path string }

// errNotRunning is wrapped where nobody answers at the socket.
var errNotRunning = errors.New("meshd is not running")

// Do sends body as JSON and reads the answer into out; either may be nil.
func (c Client) Do(ctx context.Context, method, path string, body, out any) error {
	if body == nil {
		return c.Upload(ctx, method, path, nil, out)
	}
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return c.Upload(ctx, method, path, bytes.NewReader(b), out)
}

// Upload sends body as it is and reads the answer into out; either may be nil.
func (c Client) Upload(ctx context.Context, method, path string, body io.Reader, out any) error {
	resp, done, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer done()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return fmt.Errorf("talking to meshd: %w", err)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("meshd's answer: %w", err)
	}
	return nil
}

// Download writes the answer to out as it comes.
func (c Client) Download(ctx context.Context, path string, out io.Writer) error {
	resp, done, err := c.send(ctx, "GET", path, nil)
	if err != nil {
		return err
	}
	defer done()
	if _, err := io.Copy(out, resp.Body); err != nil {
		return fmt.Errorf("talking to meshd: %w", err)
	}
	return nil
}

// send sends body, which may be nil, as it is, and returns an answer that is 200 and must be done with.
func (c Client) send(ctx context.Context, method, path string, body io.Reader) (resp *http.Response, done func(), err error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://meshd"+path, body)
	if err != nil {
		return nil, nil, err
	}
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", c.Path)
	}}
	resp, err = (&http.Client{Transport: tr}).Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED):
		return nil, nil, fmt.Errorf("%w (nobody answers at %s): start it with `systemctl start meshd`, or run meshd", errNotRunning, c.Path)
	case errors.Is(err, fs.ErrPermission):
		return nil, nil, fmt.Errorf("%s may be used by root and the group mesh only: try sudo", c.Path)
	case err != nil:
		return nil, nil, fmt.Errorf("talking to meshd: %w", err)
	}
	answer := resp.Body // resp is another when what is deferred runs
	done = func() {
		answer.Close()
		tr.CloseIdleConnections()
	}
	if resp.StatusCode == http.StatusOK {
		return resp, done, nil
	}
	defer done()
	var e Error
	if json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(&e) != nil || e.Message == "" {
		e.Message = "meshd answered " + resp.Status
	}
	return nil, nil, errors.New(e.Message)
}
