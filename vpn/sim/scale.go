// SPDX-License-Identifier: MIT

//go:build unix

package sim

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/vpntest"
)

// Size is what a mesh of some size costs. Nobody talks, so every byte is the mesh's own; bytes are those of IP packets
// that nodes send.
type Size struct {
	Nodes      int
	Idle       Traffic       // for measureFor, settled
	Churn      Traffic       // the same, while one node leaves or comes back every half minute
	Join       time.Duration // from a new node's introduction until all know it
	Heal       time.Duration // from the end of a partition into halves until all know what changed in the other half
	Heap       int           // bytes per node
	Goroutines float64       // per node
	CPU        time.Duration // of this process, per node and hour of idling
}

// Traffic is in bytes per second.
type Traffic struct {
	Mean, Most               float64 // over all nodes, and of the one that sends most
	Probes, Handshakes, Data float64 // parts of Mean: frames of vpn/link; WireGuard's handshakes; and its data, sealed gossip
}

const (
	scaleSettle = 10 * time.Minute // until the tunnels of the beginning that nobody uses are gone (idleAfter), and told so
	measureFor  = 10 * time.Minute
	startEvery  = 200 * time.Millisecond // at most, between two
	churnEvery  = 30 * time.Second
	partFor     = 2 * time.Minute
	giveUp      = 10 * time.Minute // waiting for all to know something
)

// counter counts what hosts send.
type counter struct {
	mu    sync.Mutex
	bytes map[*vpntest.Host]int
	kinds [3]int
}

func (c *counter) saw(s vpntest.Sight) {
	if s.Fate != vpntest.Sent {
		return
	}
	n := size(s)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bytes[s.From] += n
	switch {
	case s.B[0] == 4:
		c.kinds[2] += n
	case s.B[0] < 4:
		c.kinds[1] += n
	default:
		c.kinds[0] += n
	}
}

func (c *counter) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bytes, c.kinds = map[*vpntest.Host]int{}, [3]int{}
}

func (c *counter) traffic(nodes int, d time.Duration) (t Traffic) {
	c.mu.Lock()
	defer c.mu.Unlock()
	per := func(n int) float64 { return float64(n) / d.Seconds() }
	for _, n := range c.bytes {
		t.Mean += per(n) / float64(nodes)
		t.Most = max(t.Most, per(n))
	}
	parts := []*float64{&t.Probes, &t.Handshakes, &t.Data}
	for i, p := range parts {
		*p = per(c.kinds[i]) / float64(nodes)
	}
	return t
}

// Scale measures a mesh of count nodes on the internet, each 10 to 40 ms away from it, that know each other from the
// beginning. It tells its progress to say.
func Scale(w *World, count int, say func(format string, args ...any)) (s Size, err error) {
	s.Nodes = count
	began := time.Now()
	heap, goroutines := uses()
	c := &counter{}
	c.reset()
	w.Net.SetWatch(c.saw)
	net := &network{w: w}
	for i := range count {
		n, err := w.scaleNode(net, i)
		if err != nil {
			return s, err
		}
		if i > 0 {
			n.Connect = []string{"n0"}
		}
	}
	all := slices.Clone(w.nodes)
	var records [][]byte
	for _, n := range all {
		r, err := n.id.Record(uint64(time.Now().UnixMilli()), identity.Said{Endpoints: n.addresses()})
		if err != nil {
			return s, err
		}
		records = append(records, r.Bytes())
	}
	for i, n := range all {
		if err := n.StartKnowing(append(slices.Clone(records[:i]), records[i+1:]...)); err != nil {
			return s, err
		}
		w.Sleep(time.Duration(w.Rand.Int64N(int64(startEvery)))) // machines are not switched on all at once
	}
	w.Sleep(scaleSettle)
	say("%d nodes have started", count)

	cpu := used()
	c.reset()
	w.Sleep(measureFor)
	s.Idle = c.traffic(count, measureFor)
	s.CPU = (used() - cpu) * time.Duration(time.Hour/measureFor) / time.Duration(count)
	h, g := uses()
	s.Heap, s.Goroutines = (h-heap)<<10/count, float64(g-goroutines)/float64(count)
	say("idle: %.0f B/s, %d KiB and %.0f goroutines a node", s.Idle.Mean, s.Heap>>10, s.Goroutines)

	c.reset()
	var away *Node
	for end := time.Now().Add(measureFor); time.Now().Before(end); w.Sleep(churnEvery) {
		if away != nil {
			if err := away.StartKnowing(records); err != nil {
				return s, err
			}
			away = nil
		} else {
			away = all[1+w.Rand.IntN(count-1)]
			away.Stop()
		}
	}
	if away != nil {
		if err := away.StartKnowing(records); err != nil {
			return s, err
		}
	}
	s.Churn = c.traffic(count, measureFor)
	say("churn: %.0f B/s a node", s.Churn.Mean)
	w.Sleep(time.Minute)

	late, err := w.scaleNode(net, count)
	if err != nil {
		return s, err
	}
	late.Connect = []string{"n0"}
	if err := late.Start(); err != nil {
		return s, err
	}
	wait := w.know(all, map[string]uint64{late.Name: 1})
	if err := Introduce(late, all[0]); err != nil {
		return s, err
	}
	if s.Join, err = wait(); err != nil {
		return s, fmt.Errorf("after a join: %w", err)
	}
	say("all know a new node after %s", s.Join)

	side := map[netip.Addr]bool{}
	for i, n := range w.nodes {
		side[n.Host.Addrs()[0]] = i%2 == 0
	}
	w.Net.Lose(func(from, to netip.AddrPort) bool { return side[from.Addr()] != side[to.Addr()] })
	w.Sleep(partFor)
	news := map[string]uint64{}
	for _, n := range all[:2] { // one in each half
		before := n.running().Records()[0].Seq
		n.running().SetPublic([]string{n.Public[0], "192.0.2.1:7655"})
		news[n.Name] = before + 1
	}
	w.Sleep(partFor)
	wait = w.know(all, news)
	w.Net.Lose(nil)
	if s.Heal, err = wait(); err != nil {
		return s, fmt.Errorf("after a partition: %w", err)
	}
	say("all know the news of the other half after %s", s.Heal)
	w.trace.add("event", "%s", time.Since(began))
	return s, nil
}

// scaleNode makes a node without a disk.
func (w *World) scaleNode(net *network, i int) (*Node, error) {
	h := w.Net.Host(fmt.Sprintf("n%d", i))
	a := net.public()
	h.Attach(w.Net.Internet, a, vpntest.Link{Delay: time.Duration(10+w.Rand.IntN(31)) * time.Millisecond})
	n, err := w.Node(h)
	if err != nil {
		return nil, err
	}
	n.dir += "/none"
	n.Public = []string{netip.AddrPortFrom(a, Port).String()}
	return n, nil
}

// know begins to watch the nodes. The function it returns waits until all have records of these sequences or newer ones, and
// says how long that took since the watch began.
func (w *World) know(nodes []*Node, want map[string]uint64) (wait func() (time.Duration, error)) {
	start := time.Now()
	limit := time.After(giveUp)
	stop := make(chan struct{})
	var left atomic.Int64
	var wg sync.WaitGroup
	for _, n := range nodes {
		l := n.running()
		left.Add(1)
		wg.Go(func() {
			for {
				changed := l.Changed()
				if knows(l.Records(), want) {
					left.Add(-1)
					return
				}
				select {
				case <-changed:
				case <-stop:
					return
				}
			}
		})
	}
	return func() (time.Duration, error) {
		done := make(chan struct{})
		go func() {
			wg.Wait()
			close(done)
		}()
		select {
		case <-done:
			return time.Since(start), nil
		case <-limit:
			close(stop)
			<-done
			return 0, fmt.Errorf("%d of %d nodes do not know the news after %s", left.Load(), len(nodes), giveUp)
		}
	}
}

func knows(records []*identity.Record, want map[string]uint64) bool {
	found := 0
	for _, r := range records {
		if seq, ok := want[r.Node.Name]; ok && r.Seq >= seq {
			found++
		}
	}
	return found == len(want)
}

// used is the processor time that this process has used.
func used() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Table is sizes as Markdown.
func Table(sizes []Size) string {
	var b strings.Builder
	b.WriteString("| nodes | idle, B/s a node | of that probes, handshakes, gossip | the busiest node | churn, B/s a node | the busiest | a join is known after | a heal after | heap a node | goroutines a node | processor a node |\n")
	b.WriteString("|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, s := range sizes {
		fmt.Fprintf(&b, "| %d | %.0f | %.0f, %.0f, %.0f | %.0f | %.0f | %.0f | %.2f s | %.2f s | %d KiB | %.0f | %.3f %% |\n", s.Nodes,
			s.Idle.Mean, s.Idle.Probes, s.Idle.Handshakes, s.Idle.Data, s.Idle.Most, s.Churn.Mean, s.Churn.Most,
			s.Join.Seconds(), s.Heal.Seconds(), s.Heap>>10, s.Goroutines, 100*s.CPU.Hours())
	}
	return b.String()
}
