// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/cmd/internal/lab"
	"mesh.internal/mesh/vpn"
	"mesh.internal/mesh/vpn/identity"
)

// world is a mesh and the internet it is on.
type world struct {
	t        *trial
	lab      *lab.Lab
	internet *lab.Host
	ca       *identity.CA
	nodes    []*node
	nets     int
}

// family is what a network carries.
type family int

const (
	v4 family = 1 << iota
	v6
)

// node is a host with meshd.
type node struct {
	*lab.Host
	w      *world
	link   *lab.Link
	uplink *lab.Link // of the NAT it is behind; nil: none
	subnet *lab.Subnet
	port   int
	public bool
	id     *identity.Identity
	record *identity.Record
	daemon *lab.Process
}

// newWorld makes the internet. It ends with the returned function.
func newWorld(t *trial) (*world, func()) {
	w := &world{t: t, lab: lab.New(discard())}
	end := func() {
		w.keepLogs()
		if err := w.lab.Close(); err != nil {
			t.problem("%v", err)
		}
	}
	var err error
	if w.internet, err = w.lab.Router("internet"); err == nil {
		w.ca, err = identity.NewCA("mesh")
	}
	if err != nil {
		end()
		t.must(err)
	}
	return w, end
}

func (w *world) keepLogs() {
	if w.t.suite.logs == "" {
		return
	}
	for _, n := range w.nodes {
		if n.daemon != nil {
			name := strings.NewReplacer("/", "_", " ", "_").Replace(w.t.name) + "." + n.Name + ".log"
			os.WriteFile(filepath.Join(w.t.suite.logs, name), []byte(n.daemon.Output()), 0o644)
		}
	}
}

// network gives a router a subnet: on the internet, or at home, where IPv4 is private and IPv6 is not.
func (w *world) network(router *lab.Host, home bool, f family) *lab.Subnet {
	w.nets++
	var p []netip.Prefix
	if f&v4 != 0 && home {
		p = append(p, netip.MustParsePrefix(fmt.Sprintf("192.168.%d.0/24", w.nets)))
	} else if f&v4 != 0 {
		p = append(p, netip.MustParsePrefix(fmt.Sprintf("198.18.%d.0/24", w.nets)))
	}
	if f&v6 != 0 {
		p = append(p, netip.MustParsePrefix(fmt.Sprintf("2001:db8:0:%x::/64", w.nets)))
	}
	s, err := router.Subnet(p...)
	w.t.must(err)
	return s
}

// home makes a NAT on the internet and the network behind it.
func (w *world) home(nat lab.NAT, f family) (inside *lab.Subnet, uplink *lab.Link) {
	return w.homeAt(w.network(w.internet, false, f), nat, f)
}

func (w *world) homeAt(outside *lab.Subnet, nat lab.NAT, f family) (inside *lab.Subnet, uplink *lab.Link) {
	r, err := w.lab.Router(fmt.Sprintf("home-%d", w.nets))
	w.t.must(err)
	uplink, err = outside.Plug(r)
	w.t.must(err)
	w.t.must(uplink.NAT(nat))
	inside = w.network(r, true, f)
	if f&v6 != 0 {
		w.t.must(w.internet.Route(netip.MustParsePrefix(fmt.Sprintf("2001:db8:0:%x::/64", w.nets)), uplink.Addr6))
	}
	return inside, uplink
}

// at makes a node in a network.
func (w *world) at(name string, s *lab.Subnet) *node {
	h, err := w.lab.Host(name)
	w.t.must(err)
	n := &node{Host: h, w: w, subnet: s, port: config.DefaultPort}
	n.link, err = s.Plug(h)
	w.t.must(err)
	k, wg, err := identity.NewKeys()
	w.t.must(err)
	a6, err := w.ca.Addr6(&k.PublicKey)
	w.t.must(err)
	c, err := w.ca.Issue(name, "mesh.internal", []netip.Addr{netip.AddrFrom4([4]byte{10, 11, 0, byte(len(w.nodes) + 1)}), a6}, &k.PublicKey)
	w.t.must(err)
	n.id, err = identity.New(&identity.CA{Cert: w.ca.Cert}, []*x509.Certificate{c}, k, wg)
	w.t.must(err)
	w.nodes = append(w.nodes, n)
	return n
}

// public makes a node that everybody can reach and that says so.
func (w *world) public(name string, f family) *node {
	n := w.at(name, w.network(w.internet, false, f))
	n.public = true
	return n
}

// behind makes a node behind a NAT of its own; a NAT of no kind is none.
func (w *world) behind(name string, nat lab.NAT, f family) *node {
	if nat.Kind == "" {
		return w.at(name, w.network(w.internet, false, f))
	}
	s, uplink := w.home(nat, f)
	n := w.at(name, s)
	n.uplink = uplink
	return n
}

// outside is the node's IPv4 address as the internet sees it.
func (n *node) outside() netip.Addr {
	if n.uplink != nil {
		return n.uplink.Addr4
	}
	return n.link.Addr4
}

func (n *node) addr() netip.Addr { return n.id.Node.Addrs[0] }

// settle writes what the nodes have after joining: identity, configuration, the records of the public nodes, and at
// those everybody's.
func (w *world) settle() {
	for _, n := range w.nodes {
		var said identity.Said
		if n.public {
			for _, a := range []netip.Addr{n.link.Addr4, n.link.Addr6} {
				if a.IsValid() {
					said.Endpoints = append(said.Endpoints, netip.AddrPortFrom(a, uint16(n.port)))
				}
			}
		}
		var err error
		n.record, err = n.id.Record(1, said)
		w.t.must(err)
	}
	for _, n := range w.nodes {
		c := config.Default()
		c.Name, c.Prefix, c.Port, c.LogLevel = n.Name, "10.11.0.0/16", n.port, w.t.suite.level
		known := []*identity.Record{}
		for _, e := range n.record.Endpoints {
			c.Public = append(c.Public, e.String())
		}
		for _, o := range w.nodes {
			if o != n && (o.public || n.public) {
				known = append(known, o.record)
			}
		}
		b, err := c.Bytes()
		w.t.must(err)
		w.t.must(n.WriteFile(config.DefaultPaths.Config, b, 0o644))
		w.t.must(n.Do(func() error {
			state := config.DefaultPaths
			if err := os.MkdirAll(state.State, 0o700); err != nil {
				return err
			}
			key, err1 := identity.EncodeKey(n.id.Key)
			wg, err2 := identity.EncodeKey(n.id.WG)
			return errors.Join(err1, err2, config.WriteFile(state.KeyFile(), key, 0o600), config.WriteFile(filepath.Join(state.State, "wireguard.key"), wg, 0o600),
				state.SaveIdentity(n.id), vpn.SaveRecords(state.State, known))
		}))
	}
}

// launch starts meshd and returns at once.
func (n *node) launch() {
	var err error
	n.daemon, err = n.Start(n.w.t.suite.program)
	n.w.t.must(err)
}

// start starts meshd and returns when it answers.
func (n *node) start() (ready time.Time) {
	n.launch()
	return n.ready()
}

func (n *node) ready() time.Time {
	if !n.w.t.until(20*time.Second, func() bool { _, err := n.status(); return err == nil }) {
		n.w.t.must(fmt.Errorf("meshd of %s does not answer: %s", n.Name, n.daemon.Output()))
	}
	return time.Now()
}

// kill ends meshd without warning, and returns when it is gone.
func (n *node) kill() {
	n.w.t.must(n.daemon.Signal(syscall.SIGKILL))
	n.daemon.Wait(n.w.t.ctx)
}

// status asks meshd, through the host's root folder.
func (n *node) status() (s api.Status, err error) {
	ctx, cancel := context.WithTimeout(n.w.t.ctx, 2*time.Second)
	defer cancel()
	err = api.Client{Path: fmt.Sprintf("/proc/%d/root%s", n.PID, config.DefaultPaths.Socket())}.Do(ctx, "GET", "/v1/status", nil, &s)
	return s, err
}

// peer is how things stand with another node; zero where nothing is known.
func (n *node) peer(name string) api.Peer {
	s, err := n.status()
	if err != nil {
		return api.Peer{}
	}
	for _, p := range s.Peers {
		if p.Name == name {
			return p
		}
	}
	return api.Peer{}
}

// received is how many packets came in over the node's cable.
func (n *node) received() (packets int) {
	b, err := n.ReadFile("/sys/class/net/eth0/statistics/rx_packets")
	if err == nil {
		packets, err = strconv.Atoi(strings.TrimSpace(string(b)))
	}
	n.w.t.must(err)
	return packets
}

// way is how packets get to a peer.
func way(p api.Peer) string {
	switch {
	case p.Direct:
		return "direct"
	case len(p.Via) > 0:
		return "via " + strings.Join(p.Via, ", ")
	case p.Stream:
		return "tls"
	}
	return "none"
}

// explain is what nodes know of each other, for the one who reads a failure.
func (w *world) explain() string {
	var b strings.Builder
	for _, n := range w.nodes {
		s, err := n.status()
		if err != nil {
			fmt.Fprintf(&b, "%s: %v\n", n.Name, err)
			continue
		}
		fmt.Fprintf(&b, "%s is reached at %s\n", n.Name, strings.Join(s.Self.Endpoints, ", "))
		for _, p := range s.Peers {
			fmt.Fprintf(&b, "  to %s: %s %s (%s), %.1f ms, active %v, neighbour %v, handshake %v\n", p.Name, way(p), p.Endpoint, p.Reason, p.RTT, p.Active, p.Neighbour, p.LastHandshake)
		}
	}
	return b.String()
}
