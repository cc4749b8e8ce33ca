// SPDX-License-Identifier: MIT

//go:build unix

package sim

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"runtime"
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
	Start      Traffic       // until all have started: bytes in all, not per second
	Idle       Traffic       // for measureFor, settled
	Tunnels    float64       // of a node, then
	MostTuns   int           // of the one that has most
	Churn      Traffic       // the same, while one node leaves or comes back every half minute
	Join       time.Duration // from a new node's introduction until all know it
	Heal       time.Duration // from the end of a partition into halves until all know what changed in the other half
	Heap       int           // bytes per node, which has all records for itself
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
	startFor    = 30 * time.Second // from the last one's start until what that sets going is over
	measureFor  = 10 * time.Minute
	startEvery  = 200 * time.Millisecond // at most, between two,
	backEvery   = 50 * time.Millisecond  // and where all come back
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
// beginning. With back they also know the links that they had, as after a power cut: otherwise each node has to tell all others of its
// own at the start, which costs the square of their number. It tells its progress to say.
func Scale(w *World, count int, back bool, say func(format string, args ...any)) (s Size, err error) {
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
	for i, n := range all {
		said := identity.Said{Endpoints: n.addresses()}
		if back {
			said.Links = had(all, i)
		}
		r, err := n.id.Record(uint64(time.Now().UnixMilli()), said)
		if err != nil {
			return s, err
		}
		records = append(records, r.Bytes())
	}
	for _, n := range all {
		if err := n.StartKnowing(records); err != nil {
			return s, err
		}
		every := startEvery
		if back {
			every = backEvery
		}
		w.Sleep(time.Duration(w.Rand.Int64N(int64(every)))) // machines are not switched on all at once
	}
	w.Sleep(startFor)
	s.Start = c.traffic(count, time.Second)
	say("%d nodes have started: %.0f KiB sent by each until then", count, s.Start.Mean/1024)
	w.Sleep(scaleSettle)
	say("they have settled")

	cpu := used()
	c.reset()
	w.Sleep(measureFor)
	s.Idle = c.traffic(count, measureFor)
	s.CPU = (used() - cpu) * time.Duration(time.Hour/measureFor) / time.Duration(count)
	h, g := uses()
	s.Heap, s.Goroutines = (h-heap)<<10/count, float64(g-goroutines)/float64(count)
	shared, err := w.recordsHeap(all[0])
	if err != nil {
		return s, err
	}
	s.Heap += shared
	for _, n := range all {
		has := 0
		for _, p := range n.running().Peers() {
			if p.Active {
				has++
			}
		}
		s.Tunnels += float64(has) / float64(count)
		s.MostTuns = max(s.MostTuns, has)
	}
	say("idle: %.0f B/s, %d KiB (%d of records), %.0f goroutines and %.1f tunnels a node", s.Idle.Mean, s.Heap>>10, shared>>10, s.Goroutines, s.Tunnels)

	c.reset()
	var away *Node
	var disk [][]byte // what it knew
	for end := time.Now().Add(measureFor); time.Now().Before(end); w.Sleep(churnEvery) {
		if away != nil {
			if err := away.StartKnowing(disk); err != nil {
				return s, err
			}
			away = nil
		} else {
			away = all[1+w.Rand.IntN(count-1)]
			disk = disk[:0]
			for _, r := range away.running().Records() {
				disk = append(disk, r.Bytes())
			}
			away.Stop()
		}
	}
	if away != nil {
		if err := away.StartKnowing(disk); err != nil {
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

// had are the links of the ith of nodes that have been up for long: to the first, which is in Connect, and to three in an order of
// its own, which is vpn's; and as far as there is room, to those that have it among theirs. Were the order another, it would only
// cost more to start.
func had(all []*Node, i int) (out []identity.Link) {
	chosen := func(i int) (out []int) {
		type place struct {
			rank [sha256.Size]byte
			i    int
		}
		var order []place
		for j, n := range all {
			if j != i && j > 0 {
				order = append(order, place{sha256.Sum256([]byte(all[i].Name + "\x00" + n.Name)), j})
			}
		}
		slices.SortFunc(order, func(a, b place) int { return bytes.Compare(a.rank[:], b.rank[:]) })
		if i > 0 {
			out = append(out, 0)
		}
		for _, p := range order[:min(len(order), 3)] {
			out = append(out, p.i)
		}
		return out
	}
	if all[0].chose == nil {
		for i, n := range all {
			n.chose = chosen(i)
		}
	}
	by := func(a, b identity.Link) int { return slices.Compare(a.To[:], b.To[:]) }
	to := func(j int) identity.Link {
		id := sha256.Sum256(all[j].id.WG.PublicKey().Bytes())
		return identity.Link{To: [6]byte(id[:]), Cost: 2 * (all[i].away + all[j].away)}
	}
	for _, j := range all[i].chose {
		out = append(out, to(j))
	}
	slices.SortFunc(out, by)
	var others []identity.Link
	for j, n := range all {
		if slices.Contains(n.chose, i) && !slices.Contains(all[i].chose, j) {
			others = append(others, to(j))
		}
	}
	slices.SortFunc(others, by)
	return append(out, others[:min(len(others), identity.MaxLinks-len(out))]...)
}

// recordsHeap measures what the records that a node knows take, in bytes: here all nodes share them (parsed).
func (w *World) recordsHeap(n *Node) (int, error) {
	var own []*identity.Record
	before, _ := uses()
	for _, r := range n.running().Records() {
		r, err := w.ca.ParseRecord(r.Bytes())
		if err != nil {
			return 0, err
		}
		own = append(own, r)
	}
	after, _ := uses()
	runtime.KeepAlive(own)
	return (after - before) << 10, nil
}

// scaleNode makes a node without a disk.
func (w *World) scaleNode(net *network, i int) (*Node, error) {
	h := w.Net.Host(fmt.Sprintf("n%d", i))
	a := net.public()
	away := time.Duration(10+w.Rand.IntN(31)) * time.Millisecond
	h.Attach(w.Net.Internet, a, vpntest.Link{Delay: away})
	n, err := w.Node(h)
	if err != nil {
		return nil, err
	}
	n.away = away
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
	b.WriteString("| nodes | idle, B/s a node | of that probes, handshakes, gossip | the busiest node | churn, B/s a node | the busiest | a join is known after | a heal after | sent until all have started, KiB a node | the busiest | tunnels a node, most | heap a node | goroutines a node | processor a node |\n")
	b.WriteString("|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, s := range sizes {
		fmt.Fprintf(&b, "| %d | %.0f | %.0f, %.0f, %.0f | %.0f | %.0f | %.0f | %.2f s | %.2f s | %.0f | %.0f | %.1f, %d | %d KiB | %.0f | %.3f %% |\n", s.Nodes,
			s.Idle.Mean, s.Idle.Probes, s.Idle.Handshakes, s.Idle.Data, s.Idle.Most, s.Churn.Mean, s.Churn.Most,
			s.Join.Seconds(), s.Heal.Seconds(), s.Start.Mean/1024, s.Start.Most/1024, s.Tunnels, s.MostTuns, s.Heap>>10, s.Goroutines, 100*s.CPU.Hours())
	}
	return b.String()
}
