// SPDX-License-Identifier: MIT

// Package vpn carries packets between the nodes of a mesh: a TUN interface, WireGuard tunnels (wireguard-go) over a
// link that finds each node's address by probing (vpn/link), and gossip of the signed node records that say who is
// there (vpn/identity). It knows nothing of names' meaning, of etcd or of DNS.
//
//	kernel ◀─ TUN ─▶ seam ◀─▶ engine (WireGuard) ◀─▶ link ◀─ UDP ─▶ other nodes
//	                  │ control packets
//	                  ▼
//	                gossip: records of all nodes, kept on disk
//
// A peer may send only from the addresses in its certificate: they are its allowed IPs, and the engine drops the rest.
// New starts nothing. Run owns every goroutine, the interface and the socket, and all are gone when it returns.
package vpn

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"

	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/link"
	"mesh.internal/mesh/vpn/netif"
)

// Config is what a Node needs.
type Config struct {
	Identity  *identity.Identity
	Prefixes  []netip.Prefix // the mesh's, IPv4 and IPv6: the interface's addresses have their lengths
	Port      int            // UDP
	Public    []string       // host:port, announced before the machine's own addresses
	Connect   []string       // nodes to keep a tunnel to
	Interface string
	MTU       int
	StateDir  string // records.cbor lives here
	Log       *slog.Logger

	TUN    tun.Device                   // tests: instead of a kernel interface
	Bind   conn.Bind                    // tests: instead of UDP sockets
	Locals func() ([]netip.Addr, error) // tests: instead of the machine's addresses
	// Tests: instead of netif.Watch; nil with a TUN: addresses do not change.
	Watch func(ctx context.Context, changed func()) error
	// Tests in a bubble of testing/synctest: gets each of the engine's peers, to keep it from the garbage collector.
	Retain func(peer any)
}

const (
	autoNeighbours = 3                // besides those in Connect
	repairEvery    = 20 * time.Second // ± a quarter
	settleFor      = 300 * time.Millisecond
	resolveEvery   = 5 * time.Minute
	recentlyHeard  = time.Minute
	maxRecords     = 10000
)

// Node is this node on the mesh. Its methods are safe for concurrent use.
type Node struct {
	cfg   Config
	self  string
	addr6 netip.Addr
	ready chan struct{} // closed by Run when packets flow
	inbox chan control  // from the engine's goroutines, which must not wait

	senders atomic.Pointer[map[netip.Addr]*link.Peer] // by inner address; replaced as a whole

	mu      sync.Mutex // guards the fields below; taken before the link's and the seam's
	changed chan struct{}
	records map[string]*identity.Record // by name, this node's too
	byAddr  map[netip.Addr]string
	peers   map[string]*link.Peer
	hosts   map[string][]netip.AddrPort // resolved public names, by node
	seam    *seam                       // nil unless Run runs
	engine  *engine
	link    *link.Link
	public  []string
	dirty   chan struct{} // capacity 1: records.cbor is behind
}

// New prepares a node.
func New(cfg Config) (*Node, error) {
	n := &Node{cfg: cfg, self: cfg.Identity.Node.Name, ready: make(chan struct{}), inbox: make(chan control, maxQueued), changed: make(chan struct{}), records: map[string]*identity.Record{},
		byAddr: map[netip.Addr]string{}, peers: map[string]*link.Peer{}, hosts: map[string][]netip.AddrPort{}, public: cfg.Public, dirty: make(chan struct{}, 1)}
	var ok bool
	if n.addr6, ok = addr6(cfg.Identity.Node); !ok {
		return nil, fmt.Errorf("the certificate of %s has no IPv6 address: ask for a new invitation and join again", n.self)
	}
	if cfg.Locals == nil {
		n.cfg.Locals = func() ([]netip.Addr, error) { return netif.Addrs(cfg.Prefixes) }
	}
	if cfg.Watch == nil && cfg.TUN == nil {
		n.cfg.Watch = netif.Watch
	}
	return n, nil
}

// Ready is closed when the interface is up and packets flow.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Changed returns a channel that is closed when Records have changed after this call.
func (n *Node) Changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

// Records returns the records of all nodes that are known, this node's own first.
func (n *Node) Records() []*identity.Record {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := slices.Collect(maps.Values(n.records))
	slices.SortFunc(out, func(a, b *identity.Record) int {
		if (a.Node.Name == n.self) != (b.Node.Name == n.self) {
			if a.Node.Name == n.self {
				return -1
			}
			return 1
		}
		return compareNames(a, b)
	})
	return out
}

func compareNames(a, b *identity.Record) int {
	if a.Node.Name < b.Node.Name {
		return -1
	}
	if a.Node.Name > b.Node.Name {
		return 1
	}
	return 0
}

// Learn takes a node record from anywhere.
func (n *Node) Learn(record []byte) error { return n.learn(record, "") }

func (n *Node) learn(b []byte, from string) error {
	r, err := n.cfg.Identity.CA.ParseRecord(b)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	old := n.records[r.Node.Name]
	if old != nil && !r.Newer(old) {
		return nil
	}
	if r.Node.Name == n.self {
		if r.Node.Serial.Cmp(n.cfg.Identity.Node.Serial) > 0 {
			n.cfg.Log.Error("this node's name has been given to another: join again, or ask who invited it", "peer", n.self)
		} else if old != nil && r.Node.Serial.Cmp(old.Node.Serial) == 0 {
			n.announce(r.Seq) // our own from before the disk was lost: go on from there
		}
		return nil
	}
	if old == nil && len(n.records) >= maxRecords {
		return fmt.Errorf("%d nodes are known already, more are not taken", maxRecords)
	}
	if err := n.adopt(r); err != nil {
		return err
	}
	if old == nil {
		n.cfg.Log.Info("a node is known", "peer", r.Node.Name, "addrs", r.Node.Addrs)
		if n.isNeighbour(r.Node.Name) {
			n.compareWith(r.Node.Name) // it may know others, and want to know ours
		}
	}
	n.note()
	n.flood(r, from)
	return nil
}

// note says that records have changed. n.mu is held.
func (n *Node) note() {
	close(n.changed)
	n.changed = make(chan struct{})
	select {
	case n.dirty <- struct{}{}:
	default:
	}
}

// flood pushes a record to the neighbours and whoever has been heard of late. n.mu is held.
func (n *Node) flood(r *identity.Record, from string) {
	now := time.Now()
	for name, p := range n.peers {
		if name != from && name != r.Node.Name && (n.isNeighbour(name) || now.Sub(p.Status().LastHeard) < recentlyHeard) {
			n.send(name, message{Record: r.Bytes()})
		}
	}
}

// adopt makes r the record of its node, and its tunnel what r says. n.mu is held.
func (n *Node) adopt(r *identity.Record) error {
	name := r.Node.Name
	if old := n.records[name]; old != nil && name != n.self {
		for _, a := range old.Node.Addrs {
			delete(n.byAddr, a)
		}
		if p := n.peers[name]; p != nil && !old.WG.Equal(r.WG) {
			n.engine.remove(old.WG)
			n.link.Forget(p)
			delete(n.peers, name)
		}
	}
	n.records[name] = r
	for _, a := range r.Node.Addrs {
		n.byAddr[a] = name
	}
	if name == n.self || n.engine == nil {
		return nil
	}
	p, err := n.link.Peer(name, r.WG)
	if err != nil {
		return err
	}
	if err := n.engine.set(r.WG, r.Node.Addrs); err != nil {
		return fmt.Errorf("setting up the tunnel to %s: %w", name, err)
	}
	n.peers[name] = p
	n.refresh()
	return nil
}

// refresh gives every path its addresses. n.mu is held.
func (n *Node) refresh() {
	senders := map[netip.Addr]*link.Peer{}
	defer n.senders.Store(&senders)
	for name, p := range n.peers {
		for _, a := range n.records[name].Node.Addrs {
			senders[a] = p
		}
		p.Set(append(slices.Clone(n.hosts[name]), n.records[name].Endpoints...), n.isNeighbour(name))
	}
}

// isNeighbour reports whether a tunnel to name is kept: those in Connect, and a few more, chosen so that over the whole
// mesh every node is somebody's choice as often as another. n.mu is held.
func (n *Node) isNeighbour(name string) bool {
	if slices.Contains(n.cfg.Connect, name) {
		return true
	}
	rank := func(s string) uint64 {
		h := fnv.New64a()
		h.Write([]byte(n.self + "\x00" + s))
		return h.Sum64()
	}
	mine, better := rank(name), 0
	for other := range n.peers {
		if other != name && !slices.Contains(n.cfg.Connect, other) && rank(other) < mine {
			better++
		}
	}
	return better < autoNeighbours
}

// announce makes and spreads this node's record if it differs from the last one; after says which sequence it must
// exceed. n.mu is held.
func (n *Node) announce(after uint64) {
	var eps []netip.AddrPort
	var hosts []string
	for _, p := range n.public {
		if ap, err := netip.ParseAddrPort(p); err == nil {
			eps = append(eps, ap)
		} else {
			hosts = append(hosts, p)
		}
	}
	locals, err := n.cfg.Locals()
	if err != nil {
		n.cfg.Log.Warn("this machine's addresses are not known", "err", err)
	}
	for _, a := range locals {
		if ap := netip.AddrPortFrom(a, uint16(n.cfg.Port)); !slices.Contains(eps, ap) && len(eps) < 12 {
			eps = append(eps, ap)
		}
	}
	old := n.records[n.self]
	if old != nil {
		after = max(after, old.Seq)
		if after == old.Seq && slices.Equal(old.Endpoints, eps) && slices.Equal(old.Hosts, hosts) && old.Node.Serial.Cmp(n.cfg.Identity.Node.Serial) == 0 {
			return
		}
	}
	r, err := n.cfg.Identity.Record(max(uint64(time.Now().UnixMilli()), after+1), eps, hosts)
	if err != nil {
		n.cfg.Log.Error("making this node's record", "err", err)
		return
	}
	n.adopt(r)
	n.note()
	n.flood(r, "")
}

// SetPublic changes what is announced as this node's public endpoints.
func (n *Node) SetPublic(public []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.public = public
	n.announce(0)
}

// Run keeps the node on the mesh until ctx ends.
func (n *Node) Run(ctx context.Context) (err error) {
	dev := n.cfg.TUN
	if dev == nil {
		var addrs []netip.Prefix
		for _, a := range n.cfg.Identity.Node.Addrs {
			for _, p := range n.cfg.Prefixes {
				if p.Contains(a) {
					addrs = append(addrs, netip.PrefixFrom(a, p.Bits()))
				}
			}
		}
		if dev, err = netif.Create(n.cfg.Interface, n.cfg.MTU, addrs); err != nil {
			return err
		}
	}
	bind := n.cfg.Bind
	if bind == nil {
		bind = conn.NewStdNetBind()
	}
	s, err := newSeam(dev)
	if err != nil {
		dev.Close()
		return err
	}
	s.control, s.heard = n.enqueue, n.heard
	l := link.New(bind, n.cfg.Identity.WG)
	e, err := newEngine(s, l, n.cfg.Identity.WG, n.cfg.Port, n.cfg.Log)
	if err != nil {
		return err // the engine has closed the device
	}
	e.retain = n.cfg.Retain
	n.mu.Lock()
	n.seam, n.engine, n.link = s, e, l
	n.load()
	n.announce(0)
	n.mu.Unlock()

	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	failed := make(chan error, 1)
	moved := make(chan struct{}, 1)
	wg.Go(func() { l.Run(ctx) })
	wg.Go(func() { n.read(ctx) })
	wg.Go(func() { n.repair(ctx) })
	wg.Go(func() { n.resolve(ctx) })
	wg.Go(func() { n.move(ctx, moved) })
	wg.Go(func() { n.save(ctx) })
	if n.cfg.Watch != nil {
		wg.Go(func() {
			if err := n.cfg.Watch(ctx, func() { poke(moved) }); err != nil {
				failed <- err
			}
		})
	}
	close(n.ready)
	select {
	case <-ctx.Done():
	case err = <-failed:
	case <-e.dev.Wait():
		err = fmt.Errorf("the interface %s was taken away", n.cfg.Interface)
	}
	cancel()
	wg.Wait()
	n.mu.Lock()
	n.seam, n.engine = nil, nil
	n.mu.Unlock()
	e.close()
	return err
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// heard notes that the engine has opened a packet of the node with this address.
func (n *Node) heard(from netip.Addr) {
	if m := n.senders.Load(); m != nil {
		if p := (*m)[from]; p != nil {
			p.Heard(time.Now())
		}
	}
}

// repair compares records with a neighbour now and then, at first with all of them.
func (n *Node) repair(ctx context.Context) {
	wait := time.Duration(0)
	for first := true; sleep(ctx, wait); first = false {
		n.mu.Lock()
		var near []string
		for name := range n.peers {
			if n.isNeighbour(name) {
				near = append(near, name)
			}
		}
		if !first && len(near) > 1 {
			near = []string{near[rand.N(len(near))]}
		}
		for _, name := range near {
			n.compareWith(name)
		}
		n.mu.Unlock()
		wait = repairEvery*3/4 + rand.N(repairEvery/2)
	}
}

// compareWith sends a node what is known here, which it answers with what differs. n.mu is held.
func (n *Node) compareWith(name string) {
	for _, d := range digests(slices.Collect(maps.Values(n.records))) {
		n.send(name, d)
	}
}

// move follows changes of this machine's addresses.
func (n *Node) move(ctx context.Context, moved <-chan struct{}) {
	last, _ := n.cfg.Locals()
	for {
		select {
		case <-ctx.Done():
			return
		case <-moved:
		}
		if !sleep(ctx, settleFor) { // changes come in bursts
			return
		}
		now, err := n.cfg.Locals()
		if err != nil || slices.Equal(now, last) {
			continue
		}
		last = now
		n.mu.Lock()
		n.announce(0)
		l := n.link
		n.mu.Unlock()
		n.cfg.Log.Info("this machine's addresses have changed", "addrs", now)
		l.Moved()
	}
}

// resolve looks public names of nodes up in the public DNS, never through this machine's NSS.
func (n *Node) resolve(ctx context.Context) {
	r := &net.Resolver{PreferGo: true}
	for wait := time.Second; sleep(ctx, wait); wait = resolveEvery {
		for _, rec := range n.Records() {
			if rec.Node.Name == n.self {
				continue
			}
			var found []netip.AddrPort
			for _, h := range rec.Hosts {
				host, port, err := net.SplitHostPort(h)
				p, err2 := strconv.ParseUint(port, 10, 16)
				if err != nil || err2 != nil {
					continue
				}
				call, cancel := context.WithTimeout(ctx, 5*time.Second)
				addrs, err := r.LookupNetIP(call, "ip", host)
				cancel()
				if err != nil {
					n.cfg.Log.Debug("a public name does not resolve", "peer", rec.Node.Name, "endpoint", h, "err", err)
				}
				for _, a := range addrs {
					found = append(found, netip.AddrPortFrom(a.Unmap(), uint16(p)))
				}
			}
			if len(found) > 0 {
				n.mu.Lock()
				n.hosts[rec.Node.Name] = found[:min(len(found), 4)]
				n.refresh()
				n.mu.Unlock()
			}
		}
	}
}

// sleep waits for d and reports whether ctx goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (n *Node) file() string { return filepath.Join(n.cfg.StateDir, "records.cbor") }

// load takes the records that the last run has kept. n.mu is held.
func (n *Node) load() {
	for _, r := range n.records { // learnt before Run
		if err := n.adopt(r); err != nil {
			n.cfg.Log.Warn("a node record is not accepted", "peer", r.Node.Name, "err", err)
		}
	}
	b, err := os.ReadFile(n.file())
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var all [][]byte
	if err == nil {
		err = decRecords.Unmarshal(b, &all)
	}
	if err != nil {
		n.cfg.Log.Warn("the known nodes on disk cannot be read and are set aside; gossip brings them back", "file", n.file()+".bad", "err", err)
		os.Rename(n.file(), n.file()+".bad")
		return
	}
	for _, b := range all {
		r, err := n.cfg.Identity.CA.ParseRecord(b)
		if err == nil && (n.records[r.Node.Name] == nil || r.Newer(n.records[r.Node.Name])) {
			err = n.adopt(r)
		}
		if err != nil {
			n.cfg.Log.Warn("a node record on disk is not accepted", "err", err)
		}
	}
}

// save keeps the known records on disk, at most once a second, and once more at the end.
func (n *Node) save(ctx context.Context) {
	for going := true; going; {
		select {
		case <-ctx.Done():
			going = false
			select {
			case <-n.dirty:
			default:
				return
			}
		case <-n.dirty:
		}
		if err := SaveRecords(n.cfg.StateDir, n.Records()); err != nil {
			n.cfg.Log.Warn("the known nodes are not kept on disk", "err", err)
		}
		sleep(ctx, time.Second)
	}
}

// SaveRecords writes the file of known nodes that Run begins with, mode 0600; joining leaves it for the first start.
func SaveRecords(dir string, records []*identity.Record) error {
	all := make([][]byte, 0, len(records))
	for _, r := range records {
		all = append(all, r.Bytes())
	}
	b, err := encMode.Marshal(all)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".records-*")
	if err != nil {
		return fmt.Errorf("keeping the known nodes: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, "records.cbor"))
	}
	if err != nil {
		return fmt.Errorf("keeping the known nodes: %w", err)
	}
	return nil
}

// PeerStatus is how things stand with another node.
type PeerStatus struct {
	Name      string
	Addrs     []netip.Addr
	Endpoint  netip.AddrPort // zero: no way is known now
	RTT       time.Duration
	LastHeard time.Time
	Handshake time.Time
	RX, TX    uint64 // bytes
}

// Peers returns how things stand with every other node, sorted by name.
func (n *Node) Peers() []PeerStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	var t map[string]traffic
	if n.engine != nil {
		var err error
		if t, err = n.engine.traffic(); err != nil {
			n.cfg.Log.Warn("the tunnels do not tell their traffic", "err", err)
		}
	}
	var out []PeerStatus
	for name, r := range n.records {
		p := n.peers[name]
		if p == nil {
			continue
		}
		s, tr := p.Status(), t[p.DstToString()]
		out = append(out, PeerStatus{Name: name, Addrs: r.Node.Addrs, Endpoint: s.Endpoint, RTT: s.RTT, LastHeard: s.LastHeard,
			Handshake: tr.handshake, RX: tr.rx, TX: tr.tx})
	}
	slices.SortFunc(out, func(a, b PeerStatus) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return out
}
