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
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net/netip"
	"slices"
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

	mu         sync.Mutex // guards the fields below; taken before the link's and the seam's
	changed    chan struct{}
	records    map[string]*identity.Record    // by name, this node's too
	tombstones map[string]*identity.Tombstone // by name
	known      digest                         // records and tombstones
	byAddr     map[netip.Addr]string
	peers      map[string]*link.Peer
	hosts      map[string][]netip.AddrPort // resolved public names, by node
	seam       *seam                       // nil unless Run runs
	engine     *engine
	link       *link.Link
	public     []string
	near       map[string]bool      // what isNeighbour says; nil: to be found out
	exchanges  map[string]*exchange // by name
	parting    []parting
	unsaved    bool          // evicted.cbor is behind
	dirty      chan struct{} // capacity 1: records.cbor is behind
	outgoing   chan struct{} // capacity 1: something is to be pushed
	differ     chan struct{} // capacity 1: a comparison is due sooner

	budgets budgets // has its own lock

	saving sync.Mutex // held while evicted.cbor is written; taken before mu
}

// New prepares a node.
func New(cfg Config) (*Node, error) {
	n := &Node{cfg: cfg, self: cfg.Identity.Node.Name, ready: make(chan struct{}), inbox: make(chan control, maxQueued), changed: make(chan struct{}), records: map[string]*identity.Record{},
		byAddr: map[netip.Addr]string{}, peers: map[string]*link.Peer{}, hosts: map[string][]netip.AddrPort{}, public: cfg.Public, dirty: make(chan struct{}, 1),
		tombstones: map[string]*identity.Tombstone{}, exchanges: map[string]*exchange{}, outgoing: make(chan struct{}, 1), differ: make(chan struct{}, 1)}
	var ok bool
	if n.addr6, ok = addr6(cfg.Identity.Node); !ok {
		return nil, fmt.Errorf("the certificate of %s has no IPv6 address: ask for a new invitation and join again", n.self)
	}
	if cfg.Locals == nil {
		n.cfg.Locals = func() ([]netip.Addr, error) { return netif.Addrs(cfg.Prefixes) }
	}
	return n, nil
}

// Ready is closed when the interface is up and packets flow.
func (n *Node) Ready() <-chan struct{} { return n.ready }

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
	if n.near == nil {
		n.near = map[string]bool{}
		type candidate struct {
			name string
			rank uint64
		}
		var others []candidate
		for other := range n.peers {
			if slices.Contains(n.cfg.Connect, other) {
				n.near[other] = true
				continue
			}
			h := fnv.New64a()
			h.Write([]byte(n.self + "\x00" + other))
			others = append(others, candidate{other, h.Sum64()})
		}
		slices.SortFunc(others, func(a, b candidate) int { return cmp.Compare(a.rank, b.rank) })
		for _, c := range others[:min(len(others), autoNeighbours)] {
			n.near[c.name] = true
		}
	}
	return n.near[name]
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
	wg.Go(func() { n.spread(ctx) })
	wg.Go(func() { n.resolve(ctx) })
	wg.Go(func() { n.move(ctx, moved) })
	wg.Go(func() { n.save(ctx) })
	if n.cfg.TUN == nil {
		wg.Go(func() {
			if err := netif.Watch(ctx, func() { poke(moved) }); err != nil {
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
