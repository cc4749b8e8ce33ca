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
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"

	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/lan"
	"mesh.internal/mesh/vpn/link"
	"mesh.internal/mesh/vpn/netif"
	"mesh.internal/mesh/vpn/portmap"
	"mesh.internal/mesh/vpn/stream"
	"mesh.internal/mesh/vpn/tcp"
)

// Config is what a Node needs.
type Config struct {
	Identity  *identity.Identity
	Prefixes  []netip.Prefix    // the mesh's, IPv4 and IPv6: the interface's addresses have their lengths
	Port      int               // UDP
	Public    []string          // host:port, announced before the machine's own addresses
	Join      uint16            // TCP port where this node lets invited strangers in, announced; 0: nowhere
	Fit       identity.Fit      // of this machine to keep a part of the store, announced
	Connect   []string          // nodes to keep a tunnel to
	Subnets   []identity.Subnet // networks behind this node, of those that its certificate allows
	Event     func(Event)       // is told what happens; called with locks held, must not block; may be nil
	NoRelay   bool              // does not carry packets between other nodes
	RelayRate int64             // bytes a second that are carried for one of them; 0: as many as can be
	Interface string
	MTU       int
	StateDir  string // records.cbor lives here
	Log       *slog.Logger

	TUN    tun.Device                                   // tests: instead of a kernel interface
	Bind   conn.Bind                                    // tests: instead of UDP sockets
	Locals func() ([]netip.Addr, error)                 // tests: instead of the machine's addresses
	Socket func(network string) (net.PacketConn, error) // tests: instead of a UDP socket at any port
	// Tests: instead of netif.Watch; nil with a TUN: addresses do not change.
	Watch func(ctx context.Context, changed func()) error
	// Tests: instead of Identity.CA.ParseRecord, where many nodes of a process verify the same records.
	Parse func(b []byte) (*identity.Record, error)
	// Tests in a bubble of testing/synctest: gets each of the engine's peers, to keep it from the garbage collector.
	Retain func(peer any)

	PortMap bool     // asks routers to let others in
	LAN     bool     // finds nodes on the same link
	Dial    tcp.Dial // how streams are begun; nil: directly

	IdleAfter time.Duration // tests: how long a tunnel that nobody needs is kept; 0: five minutes
}

const (
	repairEvery  = 20 * time.Second // ± a quarter
	resolveEvery = 5 * time.Minute
	maxRecords   = 10000
)

// Node is this node on the mesh. Its methods are safe for concurrent use.
type Node struct {
	cfg       Config
	self      string
	addr6     netip.Addr
	ready     chan struct{} // closed by Run when packets flow
	inbox     chan control  // from the engine's goroutines, which must not wait
	strangers chan stranger // from the link's, the same
	relink    chan struct{} // capacity 1: links, records or ways have changed
	rerouted  chan struct{} // capacity 1: subnets have other routers
	dirty     chan struct{} // capacity 1: records.cbor is behind
	outgoing  chan struct{} // capacity 1: something is to be pushed
	differ    chan struct{} // capacity 1: a comparison is due sooner

	budgets budgets // has its own lock
	echoes  echoes  // the same
	checks  checks
	saving  sync.Mutex // held while evicted.cbor and roster.cbor are written; taken before mu

	savedRoster []byte // guarded by saving

	owners atomic.Pointer[owners] // replaced as a whole

	streams  *stream.Streams
	streamMu sync.Mutex      // guards streamUp; taken after mu
	streamUp map[string]bool // whose stream has come or gone since tend looked

	mu         sync.Mutex // guards the fields below; taken before the link's and the seam's
	changed    chan struct{}
	records    map[string]*identity.Record    // by name, this node's too
	members    map[string]*member             // the same names
	order      []string                       // the same names but this node's, by rank
	tombstones map[string]*identity.Tombstone // by name
	roster     *identity.Roster               // who keeps the store; nil: not known
	known      digest                         // records, tombstones, roster
	exchanges  map[string]*exchange           // by name
	parting    []parting
	unsaved    bool // evicted.cbor is behind
	byAddr     map[netip.Addr]string
	byID       map[link.ID]string
	peers      map[string]*link.Peer
	chosen     map[string]bool // neighbours of this node's choice
	trials     map[string]*trial
	lastTrial  time.Time
	offline    time.Time               // since when nothing is reached directly; zero: something is
	routers    map[netip.Prefix]string // of subnets, as the engine knows
	weights    map[netip.Prefix]uint16 // of those subnets
	routes     *routes
	rerouting  time.Time // when the peers were last told of them
	crowds     crowds
	said       pacer // of this node's record
	saidAt     time.Time
	unsaid     bool // links have changed since, and that waits for linksSettle
	started    time.Time
	seam       *seam // nil unless Run runs
	mapper     *portmap.Mapper
	finder     *lan.Finder
	engine     *engine
	link       *link.Link
	public     []string
}

// New prepares a node.
func New(cfg Config) (*Node, error) {
	n := &Node{cfg: cfg, self: cfg.Identity.Node.Name, public: cfg.Public,
		ready: make(chan struct{}), changed: make(chan struct{}), inbox: make(chan control, maxQueued), strangers: make(chan stranger, maxStranger),
		relink: make(chan struct{}, 1), rerouted: make(chan struct{}, 1), dirty: make(chan struct{}, 1), outgoing: make(chan struct{}, 1), differ: make(chan struct{}, 1),
		tombstones: map[string]*identity.Tombstone{}, exchanges: map[string]*exchange{},
		records: map[string]*identity.Record{}, members: map[string]*member{}, byAddr: map[netip.Addr]string{}, byID: map[link.ID]string{},
		peers: map[string]*link.Peer{}, chosen: map[string]bool{}, trials: map[string]*trial{}, routers: map[netip.Prefix]string{}, weights: map[netip.Prefix]uint16{}}
	n.cfg.Fit = cfg.Fit.Rounded() // what is compared with our last record
	n.owners.Store(&owners{})
	n.streamUp = map[string]bool{}
	n.streams = stream.New(stream.Config{Identity: cfg.Identity, Dial: cfg.Dial, Receive: n.streamed, Changed: n.streamChanged, Log: cfg.Log})
	n.checks.elsewhere = make(chan elsewhere, checksFast)
	var ok bool
	if n.addr6, ok = addr6(cfg.Identity.Node); !ok {
		return nil, fmt.Errorf("the certificate of %s has no IPv6 address: ask for a new invitation and join again", n.self)
	}
	for _, s := range cfg.Subnets {
		if !cfg.Identity.Node.Allows(s.Prefix) {
			return nil, fmt.Errorf("the certificate of %s does not allow the subnet %s: whoever invites here must say --subnet %s in a new invitation, with which to join again", n.self, s.Prefix, s.Prefix)
		}
	}
	if cfg.Parse == nil {
		n.cfg.Parse = cfg.Identity.CA.ParseRecord
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
	s, err := newSeam(dev, n.cfg.MTU)
	if err != nil {
		dev.Close()
		return err
	}
	s.control, s.heard, s.demand, s.peerOf, s.pathMTU = n.enqueue, n.heard, n.demand, n.endpoint, n.mtu
	l := link.New(bind, n.cfg.Identity.WG, n.cfg.MTU+sealed)
	l.SetRelay(!n.cfg.NoRelay, n.cfg.RelayRate)
	l.Stranger = n.knock
	l.Stream = n.streams.Send
	l.Elsewhere = n.askedElsewhere
	l.Changed = func(*link.Peer) { poke(n.relink) }
	e, err := newEngine(s, l, n.cfg.Identity.WG, n.cfg.Port, n.cfg.Log)
	if err != nil {
		return err // the engine has closed the device
	}
	e.retain = n.cfg.Retain
	n.mu.Lock()
	n.seam, n.engine, n.link, n.started = s, e, l, time.Now()
	n.load()
	n.announce(0)
	n.mu.Unlock()

	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	failed := make(chan error, 1)
	moved := make(chan struct{}, 1)
	wg.Go(func() { l.Run(ctx) })
	wg.Go(func() { n.streams.Run(ctx) })
	wg.Go(func() { n.read(ctx) })
	wg.Go(func() { n.repair(ctx) })
	wg.Go(func() { n.spread(ctx) })
	wg.Go(func() { n.resolve(ctx) })
	wg.Go(func() { n.move(ctx, moved) })
	wg.Go(func() { n.save(ctx) })
	wg.Go(func() { n.admit(ctx) })
	wg.Go(func() { n.tend(ctx) })
	wg.Go(func() { n.answerElsewhere(ctx) })
	wg.Go(func() { n.sweep(ctx) })
	if n.cfg.TUN == nil {
		wg.Go(func() { n.route(ctx) })
		if err := n.discover(ctx, &wg); err != nil {
			n.cfg.Log.Warn("nodes on the same network are not looked for", "err", err)
		}
	}
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
	if p := n.owners.Load().peer(from); p != nil {
		p.Heard(time.Now())
	}
}

// endpoint is the node to which the engine sends what goes to dst; nil: none.
func (n *Node) endpoint(dst netip.Addr) conn.Endpoint {
	if p := n.owners.Load().peer(dst); p != nil {
		return p
	}
	return nil
}
