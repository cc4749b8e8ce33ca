// SPDX-License-Identifier: MIT

package vpn

import (
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/ip"
	"mesh.internal/mesh/vpn/link"
	"mesh.internal/mesh/vpn/vpntest"
)

// testNode is a node that does not run, with its mesh's CA.
func testNode(t testing.TB, name string) (*Node, *identity.CA) {
	ca, err := identity.NewCA("mesh")
	if err != nil {
		t.Fatal(err)
	}
	return nodeOf(t, ca, name, 1), ca
}

func nodeOf(t testing.TB, ca *identity.CA, name string, i byte) *Node {
	k, wg, err := identity.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	a6, err := ca.Addr6(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	c, err := ca.Issue(name, "mesh.internal", []netip.Addr{netip.AddrFrom4([4]byte{10, 11, 0, i}), a6}, &k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.New(ca, []*x509.Certificate{c}, k, wg)
	if err != nil {
		t.Fatal(err)
	}
	n, err := New(Config{Identity: id, Log: slog.New(slog.DiscardHandler), Locals: func() ([]netip.Addr, error) { return nil, nil },
		Fit: identity.Fit{Can: true, Fsync: 1234567, Boot: time.Now().Truncate(time.Hour)}}) // finer than a record has it
	if err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	n.announce(0)
	n.mu.Unlock()
	return n
}

// TestAnnounceOnce is a node that has nothing new to say, and whose record must stay the same: each new one makes all the
// others look at it.
func TestAnnounceOnce(t *testing.T) {
	n, _ := testNode(t, "n0")
	before := n.Records()[0].Seq
	n.mu.Lock()
	n.announce(0)
	n.mu.Unlock()
	if after := n.Records()[0].Seq; after != before {
		t.Errorf("the record %d became %d, which says the same", before, after)
	}
}

// FuzzMessage gives a node control messages of a member that is hostile. It must stay as it is, but for the one eviction
// that is signed as it must be.
func FuzzMessage(f *testing.F) {
	n, ca := testNode(f, "n0")
	other, gone := nodeOf(f, ca, "evil", 2), nodeOf(f, ca, "gone", 3)
	if err := n.Learn(other.Records()[0].Bytes()); err != nil {
		f.Fatal(err)
	}
	t, err := ca.Evict(gone.cfg.Identity.Node, "n0", "lost", time.Now())
	if err != nil {
		f.Fatal(err)
	}
	from := other.cfg.Identity.Node.Addrs[1]
	all := n.known.whole()
	for _, m := range []message{{Record: other.Records()[0].Bytes()}, {Record: gone.Records()[0].Bytes()}, {Tombstone: t.Bytes()},
		{Want: []uint64{place(kindRecord, "n0"), 1}}, all, {Sums: &sums{Span: span{}, Sums: make([]uint64, fan)}},
		{List: &list{Span: span{}.part(3), Items: []entry{{At: 3 << 60, Serial: 1, Seq: 1}}}}} {
		b, err := encMode.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n.receive(from, b)
		for _, r := range n.Records() {
			if !slices.Contains([]string{"n0", "evil", "gone"}, r.Node.Name) {
				t.Fatalf("a record of %s", r.Node.Name)
			}
		}
		if x := n.exchanges["evil"]; x != nil && len(x.waiting) > len(n.known.all) {
			t.Fatalf("%d pushes wait", len(x.waiting))
		}
	})
}

// FuzzPacket gives the seam packets of the engine and of the kernel.
func FuzzPacket(f *testing.F) {
	a := netip.MustParseAddr("fd00::1")
	f.Add(packet(a, a, []byte("x")))
	f.Add([]byte{0x45})
	f.Fuzz(func(t *testing.T, b []byte) {
		from, _, ok := ip.Addrs(b)
		if isControl(b) && (!ok || !from.Is6()) {
			t.Fatalf("a control packet from %v", from)
		}
	})
}

// running gives a node that does not run a seam, whose queue shows what it sends.
func (n *Node) running(t testing.TB) *seam {
	s, err := newSeam(vpntest.NewTUN(), 1380)
	if err != nil {
		t.Fatal(err)
	}
	n.seam = s
	return s
}

// sent takes the messages out of the seam.
func (s *seam) sent(t testing.TB) (all []message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.injected {
		var m message
		if err := decMode.Unmarshal(p[controlHead:], &m); err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
	s.injected = nil
	return all
}

// sessionWith makes a node a peer with whom the engine has a session, or none.
func (n *Node) sessionWith(t testing.TB, name string, session bool) {
	t.Helper()
	if n.link == nil {
		n.link = link.New(nil, n.cfg.Identity.WG, 1412)
	}
	p, err := n.link.Peer(name, n.records[name].WG)
	if err != nil {
		t.Fatal(err)
	}
	if session {
		n.link.Send([][]byte{{transportData}}, p)
	}
	n.peers[name] = p
}

// TestWithoutSession has something to push to a peer without a session: one thing in a second, and nothing is left in the end.
func TestWithoutSession(t *testing.T) {
	n, ca := testNode(t, "n0")
	s := n.running(t)
	if err := n.Learn(nodeOf(t, ca, "n1", 1).Records()[0].Bytes()); err != nil {
		t.Fatal(err)
	}
	n.sessionWith(t, "n1", false)
	push := func() {
		for i := range 1000 {
			at := place(kindRecord, fmt.Sprintf("node-%d", i))
			n.known.put(newStatement(kindRecord, fmt.Sprintf("node-%d", i), version{1, 1}, fmt.Appendf(nil, "record %d", i)))
			n.push("n1", at)
		}
	}
	push()
	start := time.Now()
	now, sent := start, 0
	for again := pushEvery; again > 0; now = now.Add(again) {
		again = n.pushSome(now)
		sent += len(s.sent(t))
	}
	if took := now.Sub(start); sent > 11 || took > sessionLasts+time.Second || len(n.exchanges["n1"].queued) > 0 {
		t.Errorf("%d were pushed in %s without a session, and %d still wait", sent, took, len(n.exchanges["n1"].queued))
	}
	push()
	n.pushSome(now)
	n.sessionWith(t, "n1", true)
	s.sent(t)
	if n.pushSome(now); len(s.sent(t)) != pushes {
		t.Error("nothing is pushed when there is a session")
	}
}

// TestPace gives a node a thousand records that another lacks, and five versions of one: they go out a few at a time, of
// each only the newest, and none that the other has sent meanwhile.
func TestPace(t *testing.T) {
	n, ca := testNode(t, "n0")
	s := n.running(t)
	other := nodeOf(t, ca, "n1", 1)
	if err := n.Learn(other.Records()[0].Bytes()); err != nil {
		t.Fatal(err)
	}
	n.sessionWith(t, "n1", true)
	from := other.cfg.Identity.Node.Addrs[1]
	for i := range 1000 {
		n.known.put(newStatement(kindRecord, fmt.Sprintf("node-%d", i), version{1, 1}, fmt.Appendf(nil, "record %d", i)))
	}
	for i := range 5 {
		n.mu.Lock()
		n.known.put(newStatement(kindRecord, "node-7", version{2, uint64(i)}, fmt.Appendf(nil, "version %d", i)))
		n.push("n1", place(kindRecord, "node-7"))
		n.mu.Unlock()
	}
	ask, _ := encMode.Marshal((&digest{}).whole()) // of one who knows nothing
	for range 10 {
		n.receive(from, ask)
	}
	again, _ := encMode.Marshal(message{Record: []byte("record 8")})
	n.receive(from, again)
	seen := map[string]int{}
	for rounds := 1; ; rounds++ {
		more := n.pushSome(time.Now())
		sent := s.sent(t)
		if len(sent) > pushes {
			t.Fatalf("%d pushes at a time", len(sent))
		}
		for _, m := range sent {
			seen[string(m.Record)]++
		}
		if more == 0 {
			t.Logf("%d rounds of %s", rounds, pushEvery)
			break
		}
	}
	for raw, times := range seen {
		if times != 1 {
			t.Errorf("%q is pushed %d times", raw, times)
		}
	}
	if seen["version 4"] != 1 || seen["version 3"] != 0 || seen["record 8"] != 0 || len(seen) != 1000-1+2 { // and those of n0 and n1
		t.Errorf("%d statements are pushed", len(seen))
	}
}

// TestBudget counts what a node takes from a hostile one in ten seconds: messages, and records that must be verified.
func TestBudget(t *testing.T) {
	n, ca := testNode(t, "n0")
	other, third := nodeOf(t, ca, "evil", 2), nodeOf(t, ca, "good", 3)
	for _, x := range []*Node{other, third} {
		if err := n.Learn(x.Records()[0].Bytes()); err != nil {
			t.Fatal(err)
		}
	}
	from := other.cfg.Identity.Node.Addrs[1]
	forged := slices.Clone(third.Records()[0].Bytes())
	forged[len(forged)-1] ^= 1
	for i := range 1000 {
		n.known.put(newStatement(kindRecord, fmt.Sprintf("node-%d", i), version{1, 1}, fmt.Appendf(nil, "record %d", i)))
	}
	const seconds = 10
	for what, c := range map[string]struct {
		m    message
		most int
	}{
		"garbage":             {message{}, budgetMost + seconds*budgetRefill},
		"forged records":      {message{Record: forged}, (budgetMost+seconds*budgetRefill)/costVerify + 1},
		"forged tombstones":   {message{Tombstone: forged}, (budgetMost+seconds*budgetRefill)/costVerify + 1},
		"the whole each time": {message{List: &list{}}, (budgetMost+seconds*budgetRefill)/(costAnswer+len(n.known.all)/costWalk) + 1},
		"sixteen answers":     {message{Sums: &sums{Sums: slices.Repeat([]uint64{1}, fan)}}, (budgetMost+seconds*budgetRefill)/(costAnswer*fan) + 1},
	} {
		b, err := encMode.Marshal(c.m)
		if err != nil {
			t.Fatal(err)
		}
		n.budgets.forget(from)
		now := time.Unix(1e9, 0)
		taken := 0
		for range 1000 * seconds { // a message each millisecond
			now = now.Add(time.Millisecond)
			if n.budgets.allow(from, now) {
				taken++
				n.budgets.charge(from, n.receive(from, b))
			}
		}
		t.Logf("%s: %d of %d messages are taken in %d s", what, taken, 1000*seconds, seconds)
		if taken > c.most || taken == 0 {
			t.Errorf("%s: %d are taken, want at most %d", what, taken, c.most)
		}
		if !n.budgets.allow(third.cfg.Identity.Node.Addrs[1], now) {
			t.Errorf("%s: another node suffers", what)
		}
	}
	if x := n.exchanges["evil"]; len(x.waiting) > len(n.known.all) {
		t.Errorf("%d pushes wait", len(x.waiting))
	}
}

// TestHostileTombstones gives a node tombstones that do not count, and tombstones again that no longer do.
func TestHostileTombstones(t *testing.T) {
	n, ca := testNode(t, "n0")
	other, gone := nodeOf(t, ca, "evil", 2), nodeOf(t, ca, "gone", 3)
	for _, x := range []*Node{other, gone} {
		if err := n.Learn(x.Records()[0].Bytes()); err != nil {
			t.Fatal(err)
		}
	}
	from := other.cfg.Identity.Node.Addrs[1]
	push := func(t2 *identity.Tombstone) {
		b, err := encMode.Marshal(message{Tombstone: t2.Bytes()})
		if err != nil {
			t.Fatal(err)
		}
		n.receive(from, b)
	}
	has := func(name string) bool { return n.records[name] != nil }
	mesh2, _ := identity.NewCA("mesh")
	forged, _ := mesh2.Evict(gone.cfg.Identity.Node, "n0", "", time.Now())
	push(forged)
	// What a mere member can sign: its own key in the place of the mesh's.
	member, _ := (&identity.CA{Cert: ca.Cert, Key: other.cfg.Identity.Key}).Evict(gone.cfg.Identity.Node, "evil", "", time.Now())
	if member != nil {
		t.Error("a member's tombstone is one")
	}
	if !has("gone") || len(n.tombstones) != 0 {
		t.Fatal("a forged tombstone counts")
	}
	good, err := ca.Evict(gone.cfg.Identity.Node, "n0", "", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	before := sum(n.known.all)
	push(good)
	if has("gone") || len(n.tombstones) != 1 || sum(n.known.all) == before {
		t.Fatal("the tombstone does not count")
	}
	// The record again, from another: it is refused, and the sender is told why.
	record, _ := encMode.Marshal(message{Record: gone.Records()[0].Bytes()})
	n.exchange("evil").waiting = nil
	n.receive(from, record)
	if has("gone") || !slices.Equal(n.exchange("evil").waiting, []uint64{place(kindTombstone, "gone")}) {
		t.Errorf("after the record again: known %v, waiting %v", has("gone"), n.exchange("evil").waiting)
	}
	back := nodeOf(t, ca, "gone", 3) // a new invitation, a later certificate
	if back.cfg.Identity.Node.Serial.Cmp(gone.cfg.Identity.Node.Serial) <= 0 {
		t.Fatal("the later certificate has no later serial number")
	}
	if err := n.Learn(back.Records()[0].Bytes()); err != nil {
		t.Fatal(err)
	}
	push(good) // again
	older := gone.cfg.Identity.Node
	older.Serial = new(big.Int).Sub(older.Serial, big.NewInt(1))
	replay, _ := ca.Evict(older, "n0", "", time.Now())
	push(replay)
	if !has("gone") || n.tombstones["gone"].Serial.Cmp(good.Serial) != 0 {
		t.Error("an old tombstone counts against a new certificate")
	}
	// One for a certificate that does not exist yet holds for those up to it.
	later := back.cfg.Identity.Node
	later.Serial = new(big.Int).Lsh(later.Serial, 1)
	future, _ := ca.Evict(later, "n0", "", time.Now())
	push(future)
	if has("gone") || n.Learn(back.Records()[0].Bytes()) == nil {
		t.Error("a tombstone with a later serial number does not count")
	}
	// Of itself, and of its own name's next holder.
	own, _ := ca.Evict(n.cfg.Identity.Node, "n0", "", time.Now())
	push(own)
	if !n.Evicted(n.cfg.Identity.Node) || n.Records()[0].Node.Name != "n0" {
		t.Error("a node does not know that it was evicted, or knows itself no more")
	}
	if _, ok := n.known.get(place(kindRecord, "n0")); ok {
		t.Error("an evicted node goes on to spread its record")
	}
}

// TestTombstonesBound fills a node with as many tombstones as it keeps, and lets another have them by comparison.
func TestTombstonesBound(t *testing.T) {
	if testing.Short() {
		t.Skip("makes and checks ten thousand signatures")
	}
	n, ca := testNode(t, "n0")
	n.cfg.StateDir = t.TempDir()
	tomb := func(i int) []byte {
		x, err := ca.Evict(identity.Node{Name: fmt.Sprintf("gone-%d", i), Serial: big.NewInt(1)}, "n0", "", time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return x.Bytes()
	}
	for i := range maxTombstones {
		if news, err := n.bury(tomb(i), "n1"); !news || err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.bury(tomb(maxTombstones), "n1"); err == nil || len(n.tombstones) != maxTombstones {
		t.Errorf("one more: %v, %d known", err, len(n.tombstones))
	}
	if news, err := n.bury(tomb(3), "n1"); news || err != nil {
		t.Errorf("one again: %v %v", news, err)
	}
	other := nodeOf(t, ca, "other", 2)
	if err := n.Learn(other.Records()[0].Bytes()); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Evict("other", ""); err == nil {
		t.Error("one more is evicted")
	}
	begin := time.Now()
	if err := n.saveTombstones(); err != nil {
		t.Fatal(err)
	}
	other.cfg.StateDir = n.cfg.StateDir
	other.loadTombstones()
	info, err := os.Stat(filepath.Join(n.cfg.StateDir, tombstonesFile))
	if err != nil || len(other.tombstones) != maxTombstones || info.Mode().Perm() != 0o600 {
		t.Fatalf("%d come back from the disk, %v", len(other.tombstones), err)
	}
	t.Logf("%d bytes on disk, written and read in %s", info.Size(), time.Since(begin))
}
