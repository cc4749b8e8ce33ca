// SPDX-License-Identifier: MIT

// Package sim runs whole meshes of real nodes (vpn.Node, with wireguard-go and all cryptography) on a network in memory
// (vpntest.Net), inside a bubble of testing/synctest, where hours take seconds. While they run, a judge holds everything
// that is seen at their edges against what must be true (see judge). It knows no more of a node than its public surface.
//
// A World is made, used and ended inside one bubble. What a seed decides is exact: keys (the tests seed crypto/rand),
// topology, events and their times, and what becomes of the nth datagram between two hosts. How goroutines of one
// instant interleave, which of several ready channels a select takes, and the jitter of the nodes' own timers are not,
// so a failure that hangs on those comes back only in some of several runs of its seed.
//
// The bubble has one clock. A suspended machine is therefore modelled as one without network and without programs that
// send; a clock that is wrong as a record that the node made when it was (SkewClock).
package sim

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"mesh.internal/mesh/vpn"
	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/stream"
	"mesh.internal/mesh/vpn/tcp"
	"mesh.internal/mesh/vpn/vpntest"
)

// Port is every node's UDP port.
const Port = 7655

var prefix4 = netip.MustParsePrefix("10.11.0.0/16")

// World is a mesh and the network it is on.
type World struct {
	Net  *vpntest.Net
	Rand *rand.Rand // what is random in the scenario

	dir     string
	ca      *identity.CA
	trace   *trace
	judge   *judge
	deliver func(to *Node, b []byte) // the judge's; tests of the judge put something before it
	ctx     context.Context
	stop    context.CancelFunc
	wg      sync.WaitGroup // talkers and the judge

	parsed parsed

	nodes []*Node // only the goroutine that owns the world adds to it; the judge has its own copy
}

// parsed are records that were verified: all nodes share them, since what comes of the same bytes is the same, and neither the
// processor time nor the memory of a thousand nodes that verify and keep a thousand records each is there.
type parsed struct {
	sync.Mutex
	records map[string]*identity.Record // by their bytes
}

const maxParsed = 20000

func (p *parsed) parse(ca *identity.CA) func(b []byte) (*identity.Record, error) {
	return func(b []byte) (*identity.Record, error) {
		p.Lock()
		r := p.records[string(b)]
		p.Unlock()
		if r != nil {
			return r, nil
		}
		r, err := ca.ParseRecord(b)
		if err == nil {
			p.Lock()
			if p.records == nil || len(p.records) >= maxParsed {
				p.records = map[string]*identity.Record{}
			}
			p.records[string(b)] = r
			p.Unlock()
		}
		return r, err
	}
}

// kept holds every engine peer ever made, with all that hangs on it, until the process ends: wireguard-go drains a peer's
// channels in finalizers, which run outside every bubble, and to touch a bubble's channel there ends the process.
var kept struct {
	sync.Mutex
	peers []any
}

func retain(peer any) {
	kept.Lock()
	kept.peers = append(kept.peers, peer)
	kept.Unlock()
}

// Config is what a World needs.
type Config struct {
	Seed     uint64
	Dir      string        // of the nodes' files
	Hops     int           // the judge demands a tunnel wherever there is a way of so many links; 1: without relays
	Reflect  int           // what a stranger may get, in bytes for each that it sends
	Lenient  time.Duration // given to the first packet of a pair on top where links lose datagrams
	Verbose  io.Writer     // everything that happens is written there, unless it is nil
	Packets  bool          // every datagram too
	Unjudged bool          // nothing is looked at
}

// NewWorld begins a world without nodes.
func NewWorld(cfg Config) (*World, error) {
	ca, err := identity.NewCA("mesh")
	if err != nil {
		return nil, err
	}
	w := &World{Net: vpntest.NewNet(), Rand: rand.New(rand.NewPCG(cfg.Seed, 0)), dir: cfg.Dir, ca: ca, trace: newTrace(cfg.Verbose)}
	w.Net.Seed = cfg.Seed
	w.judge = newJudge(w.Net, w.trace, cfg)
	w.Net.Watch, w.deliver = w.judge.saw, w.judge.delivered
	w.ctx, w.stop = context.WithCancel(context.Background())
	if !cfg.Unjudged {
		w.wg.Go(func() { w.judge.run(w.ctx) })
	}
	return w, nil
}

// End stops everything and returns what was wrong, nil if nothing was.
func (w *World) End() error {
	w.stop()
	w.wg.Wait()
	var stopping sync.WaitGroup
	for _, n := range w.nodes {
		stopping.Go(n.Stop)
	}
	stopping.Wait()
	return w.judge.err()
}

// Gaps returns how long it took after events until the next packet of a pair that talks arrived, by kind of event.
func (w *World) Gaps() map[string][]time.Duration { return w.judge.gaps }

// Trace returns what happened last.
func (w *World) Trace() string { return w.trace.tail() }

// Node is a node, running or not.
type Node struct {
	Name    string
	Host    *vpntest.Host
	NATs    []*vpntest.NAT // in front of it, the nearest first
	Public  []string
	Connect []string
	Batch   int // datagrams that its socket takes at a time

	away  time.Duration // Scale's: from the internet
	chose []int         // and its neighbours

	w   *World
	id  *identity.Identity
	dir string

	mu        sync.Mutex
	life      *life // nil: it does not run
	suspended bool
}

// life is one run of a node.
type life struct {
	*vpn.Node
	tun   *vpntest.TUN
	stop  context.CancelFunc
	ended chan error
	moved chan struct{} // capacity 1

	accepting sync.WaitGroup
}

// Node makes a node on a host; nothing runs before Start.
func (w *World) Node(host *vpntest.Host) (*Node, error) {
	n := &Node{Name: host.Name, Host: host, Batch: 1, w: w, dir: filepath.Join(w.dir, host.Name)}
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return nil, err
	}
	k, wg, err := identity.NewKeys()
	if err != nil {
		return nil, err
	}
	a6, err := w.ca.Addr6(&k.PublicKey)
	if err != nil {
		return nil, err
	}
	i := len(w.nodes) + 1
	c, err := w.ca.Issue(n.Name, "mesh.internal", []netip.Addr{netip.AddrFrom4([4]byte{10, 11, byte(i >> 8), byte(i)}), a6}, &k.PublicKey)
	if err != nil {
		return nil, err
	}
	if n.id, err = identity.New(w.ca, []*x509.Certificate{c}, k, wg); err != nil {
		return nil, err
	}
	w.nodes = append(w.nodes, n)
	w.judge.add(n)
	return n, nil
}

// Addr is the node's IPv4 address in the mesh.
func (n *Node) Addr() netip.Addr { return n.id.Node.Addrs[0] }

// Start runs the node.
func (n *Node) Start() error { return n.StartKnowing(nil) }

// StartKnowing runs the node, which knows these records from the beginning, as if they were on its disk.
func (n *Node) StartKnowing(records [][]byte) error {
	l := &life{tun: vpntest.NewTUN(), ended: make(chan error, 1), moved: make(chan struct{}, 1)}
	l.tun.Sink = func(b []byte) { n.w.deliver(n, b) }
	ctx, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	var err error
	l.Node, err = vpn.New(vpn.Config{Identity: n.id, Prefixes: []netip.Prefix{prefix4, n.w.ca.Prefix6()}, Port: Port, Public: n.Public,
		Connect: n.Connect, StateDir: n.dir, MTU: 1380, TUN: l.tun, Bind: n.Host.Bind(Port, n.Batch), Log: n.w.trace.logger(n.Name),
		Locals: func() ([]netip.Addr, error) { return n.Host.Addrs(), nil },
		Watch: func(ctx context.Context, changed func()) error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case <-l.moved:
					changed()
				}
			}
		},
		Dial:   n.Host.Dial,
		Retain: retain,
		Parse:  n.w.parsed.parse(n.w.ca),
	})
	if err != nil {
		cancel()
		return err
	}
	for _, r := range records {
		if err := l.Learn(r); err != nil {
			cancel()
			return err
		}
	}
	go func() { l.ended <- l.Run(ctx) }()
	select {
	case <-l.Ready():
	case err := <-l.ended:
		cancel()
		return fmt.Errorf("%s does not start: %w", n.Name, err)
	}
	accept := &tcp.Acceptor{Log: n.w.trace.logger(n.Name), Protocols: map[string]tcp.Protocol{stream.Protocol: {
		TLS: l.Streams().TLS(), Serve: func(_ context.Context, c *tls.Conn) { l.Streams().Serve(c) }}}}
	l.accepting.Go(func() { accept.Serve(ctx, n.Host.Listen(Port)) })
	n.mu.Lock()
	n.life = l
	n.mu.Unlock()
	n.w.judge.event("start", n.Name)
	return nil
}

// running returns the node's run, nil if it has none.
func (n *Node) running() *life {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.life
}

// Stop ends the node as its daemon is ended.
func (n *Node) Stop() {
	n.mu.Lock()
	l := n.life
	n.life = nil
	n.mu.Unlock()
	if l == nil {
		return
	}
	n.w.judge.event("stop", n.Name)
	l.stop()
	l.accepting.Wait()
	if err := <-l.ended; err != nil {
		n.w.judge.wrong("%s ended with: %v", n.Name, err)
	}
}

// Crash ends the node as a power cut does: nothing is said, and nothing written that was not before. With lost its disk
// is lost too, save for its keys and certificate.
func (n *Node) Crash(lost bool) error {
	n.w.judge.event("crash", n.Name)
	file := filepath.Join(n.dir, "records.cbor")
	before, err := os.ReadFile(file)
	n.Unplug(true)
	n.Stop()
	n.Unplug(false)
	switch {
	case lost || os.IsNotExist(err):
		err = os.RemoveAll(n.dir)
		if err == nil {
			err = os.Mkdir(n.dir, 0o700)
		}
	case err == nil:
		err = os.WriteFile(file, before, 0o600)
	}
	return err
}

// SkewClock lets the next Start of the node begin as if its clock had been ahead by so much until then: the record on its
// disk has a sequence from the future. Others learn it if it is started, loses its disk and is started again.
func (n *Node) SkewClock(ahead time.Duration) error {
	r, err := n.id.Record(uint64(time.Now().Add(ahead).UnixMilli()), identity.Said{})
	if err != nil {
		return err
	}
	return vpn.SaveRecords(n.dir, []*identity.Record{r})
}

// Introduce makes two running nodes known to each other, as joining does.
func Introduce(a, b *Node) error {
	la, lb := a.running(), b.running()
	if la == nil || lb == nil {
		return fmt.Errorf("%s and %s do not both run", a.Name, b.Name)
	}
	a.w.trace.add("event", "%s joins through %s", a.Name, b.Name)
	if err := la.Learn(lb.Records()[0].Bytes()); err != nil {
		return err
	}
	return lb.Learn(la.Records()[0].Bytes())
}

// Unplug takes the host's cable out, or puts it back.
func (n *Node) Unplug(out bool) {
	n.w.judge.event(map[bool]string{true: "unplug", false: "plug"}[out], n.Name)
	n.Host.SetLink(func(l *vpntest.Link) { l.Down = out })
}

// Suspend sends the machine to sleep, or wakes it: it has no network, and its programs send nothing.
func (n *Node) Suspend(on bool) {
	n.mu.Lock()
	n.suspended = on
	n.mu.Unlock()
	n.w.judge.event(map[bool]string{true: "suspend", false: "resume"}[on], n.Name)
	n.Host.SetLink(func(l *vpntest.Link) { l.Down = on })
}

// Move gives the host another address on another segment instead of all it has; the node notices, as it does by netlink.
func (n *Node) Move(seg *vpntest.Segment, addr netip.Addr, link vpntest.Link, behind ...*vpntest.NAT) {
	n.w.judge.event("move", fmt.Sprintf("%s to %s", n.Name, addr))
	n.NATs = behind
	n.Host.Detach()
	n.Host.Attach(seg, addr, link)
	if l := n.running(); l != nil {
		select {
		case l.moved <- struct{}{}:
		default:
		}
	}
}

// Cut lets nothing pass any more from one node's host to another's.
func (w *World) Cut(from, to *Node) {
	w.judge.event("cut", from.Name+" -> "+to.Name)
	w.judge.cut(from.Host, to.Host, true)
	w.Net.Pair(from.Host, to.Host, vpntest.Link{Down: true})
}

// Heal undoes a cut.
func (w *World) Heal(from, to *Node) {
	w.judge.event("heal", from.Name+" -> "+to.Name)
	w.judge.cut(from.Host, to.Host, false)
	w.Net.Pair(from.Host, to.Host, vpntest.Link{})
}

// Part cuts everything between two groups, both ways.
func (w *World) Part(a, b []*Node) {
	for _, x := range a {
		for _, y := range b {
			w.Cut(x, y)
			w.Cut(y, x)
		}
	}
}

// Rejoin undoes Part.
func (w *World) Rejoin(a, b []*Node) {
	for _, x := range a {
		for _, y := range b {
			w.Heal(x, y)
			w.Heal(y, x)
		}
	}
}

// Rebind restarts a NAT box.
func (w *World) Rebind(nat *vpntest.NAT, addr netip.Addr) {
	w.judge.event("rebind", fmt.Sprintf("%s to %v", nat.Addr(), addr))
	nat.Rebind(addr)
}

// Sleep lets so much time pass.
func (w *World) Sleep(d time.Duration) { time.Sleep(d) }

// trace keeps what happened last, and writes it all to out unless that is nil.
type trace struct {
	out   io.Writer
	start time.Time

	mu   sync.Mutex
	last []func() string // formatted only when wanted
}

const traceKeeps = 400

func newTrace(out io.Writer) *trace { return &trace{out: out, start: time.Now()} }

func (t *trace) add(who, format string, args ...any) {
	at := time.Since(t.start)
	line := func() string { return fmt.Sprintf("%9.3f %-8s %s\n", at.Seconds(), who, fmt.Sprintf(format, args...)) }
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.out != nil {
		io.WriteString(t.out, line())
	}
	if len(t.last) == traceKeeps {
		t.last = slices.Delete(t.last, 0, traceKeeps/4)
	}
	t.last = append(t.last, line)
}

func (t *trace) tail() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b strings.Builder
	for _, line := range t.last {
		b.WriteString(line())
	}
	return b.String()
}

// logger returns a logger into the trace.
func (t *trace) logger(who string) *slog.Logger { return slog.New(traceHandler{t, who}) }

type traceHandler struct {
	t   *trace
	who string
}

// Enabled implements slog.Handler.
func (h traceHandler) Enabled(_ context.Context, l slog.Level) bool {
	return l >= slog.LevelInfo || h.t.out != nil
}

// Handle implements slog.Handler.
func (h traceHandler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString(r.Message)
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
		return true
	})
	h.t.add(h.who, "%s", b.String())
	return nil
}

// WithAttrs implements slog.Handler.
func (h traceHandler) WithAttrs([]slog.Attr) slog.Handler { return h }

// WithGroup implements slog.Handler.
func (h traceHandler) WithGroup(string) slog.Handler { return h }
