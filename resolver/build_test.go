// SPDX-License-Identifier: MIT

package resolver

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"mesh.internal/mesh/resolver/store"
)

// anew makes a View of all parts at once, as builder must one after the other.
func anew(p Parts) *View {
	v := &View{Zone: p.Zone, Prefixes: p.Prefixes, Revision: p.Revision, Built: p.Built}
	byName, below, byAddr := map[string]*Host{}, map[string]int{}, map[netip.Addr]*Host{}
	var hosts []Host
	refuse := func(name, owner string, err error) {
		v.Conflicts = append(v.Conflicts, Conflict{name, owner, err.Error()})
	}
	taken := map[string]string{}        // name → owner
	nodeAddr := map[netip.Addr]string{} // a node's address → the node
	for _, n := range p.Nodes {
		if err := CheckName(n.Name, n.Name); err != nil {
			refuse(n.Name, n.Name, err)
			continue
		}
		if _, dup := taken[n.Name]; dup {
			continue
		}
		taken[n.Name] = n.Name
		for _, a := range n.Addrs {
			nodeAddr[a] = n.Name
		}
		hosts = append(hosts, Host{Name: n.Name, Owner: n.Name, Node: true, Addrs: n.Addrs})
		below["node"]++
	}
	statics := slices.Clone(p.Hosts)
	slices.SortFunc(statics, func(a, b Static) int {
		return cmp.Or(a.Standing.compare(b.Standing), strings.Compare(a.Owner, b.Owner), strings.Compare(a.Name, b.Name))
	})
	for _, s := range statics {
		h := s.Host
		err := CheckName(h.Name, h.Owner)
		if err == nil {
			err = checkAddrs(h.Addrs, p.Prefixes)
		}
		if by := s.Taken[h.Name]; err == nil && by != "" {
			err = fmt.Errorf("the name is %w: %s has claimed it", ErrTaken, by)
		}
		if by, dup := taken[h.Name]; err == nil && dup {
			err = fmt.Errorf("the name is %w: it belongs to %s", ErrTaken, by)
		}
		for _, a := range h.Addrs {
			if by := nodeAddr[a]; err == nil && by != "" && by != h.Owner {
				err = fmt.Errorf("address %s is %w: it belongs to %s", a, ErrTaken, by)
			}
		}
		if err != nil {
			refuse(h.Name, h.Owner, err)
			continue
		}
		taken[h.Name] = h.Owner
		h.Aliases = nil
		h.Node = false
		size := namesSize(h.Name, p.Zone)
		for _, al := range s.Aliases {
			err := CheckName(al, h.Owner)
			if size += namesSize(al, p.Zone); err == nil && size > maxNames {
				err = fmt.Errorf("%s has more aliases than a host may have: %d bytes in all forms, at most %d", h.Name, size, maxNames)
			}
			if err == nil && (wildcard(al) || wildcard(h.Name)) {
				err = fmt.Errorf("%s has the alias %s: a wildcard is and has none", h.Name, al)
			}
			if by := s.Taken[al]; err == nil && by != "" {
				err = fmt.Errorf("the alias is %w: %s has claimed it", ErrTaken, by)
			}
			if by, dup := taken[al]; err == nil && dup {
				err = fmt.Errorf("the alias is %w: it belongs to %s", ErrTaken, by)
			}
			if err != nil {
				refuse(al, h.Owner, err)
				continue
			}
			taken[al] = h.Owner
			h.Aliases = append(h.Aliases, al)
		}
		hosts = append(hosts, h)
	}
	for i := range hosts { // nodes first, then the others as they were let in
		h := &hosts[i]
		if wildcard(h.Name) {
			v.wild = append(v.wild, h)
		} else {
			v.hosts = append(v.hosts, h)
			for _, a := range h.Addrs {
				if byAddr[a] == nil {
					byAddr[a] = h
				}
			}
		}
		for _, n := range append([]string{h.Name}, h.Aliases...) {
			byName[n] = h
			for p := range parents(n) {
				below[p]++
			}
		}
	}
	sorted := func(a, b *Host) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(v.hosts, sorted)
	slices.SortFunc(v.wild, sorted)
	v.byName.base, v.below.base, v.byAddr.base, v.byService, v.emptyService = byName, below, byAddr, map[string]*Host{}, map[string]bool{}
	v.admitGroups(p.Groups, refuse)
	v.admitServices(p.Services, p.LastResort, refuse)
	return v
}

// parts are all that a Resolver knows.
func parts(r *Resolver) Parts {
	p := Parts{Zone: r.cfg.Zone, Prefixes: r.cfg.Prefixes, LastResort: r.cfg.LastResort, Revision: r.rev}
	for _, name := range slices.Sorted(maps.Keys(r.nodes)) {
		p.Nodes = append(p.Nodes, r.nodes[name])
	}
	for _, key := range slices.Sorted(maps.Keys(r.values)) {
		v := r.values[key]
		if v.err != nil {
			continue
		}
		switch key {
		case store.HostKey(v.val.Owner, v.val.Name):
			if h, ok := r.static(key, v); ok {
				p.Hosts = append(p.Hosts, h)
			}
		case store.GroupKey(v.val.Owner, v.val.Name):
			p.Groups = append(p.Groups, StaticGroup{groupOf(v.val), Standing{Created: r.created(key, v), Claimed: r.holder(store.GroupClaimKey(v.val.Name)) == v.val.Owner}})
		case store.ServiceKey(v.val.Owner, v.val.Name):
			if v.val.Service != nil {
				p.Services = append(p.Services, r.service(v.val))
			}
		}
	}
	return p
}

// describe is all that a View says, of the names and addresses that walk makes.
func describe(v *View) string {
	var b strings.Builder
	one := func(h *Host) string {
		if h == nil {
			return "-"
		}
		return fmt.Sprintf("%+v", *h)
	}
	for h := range v.All() {
		fmt.Fprintln(&b, one(h))
	}
	for _, h := range v.Wildcards() {
		fmt.Fprintln(&b, "wild", one(h))
	}
	for _, n := range append(slices.Clone(walkNames), "y.bkero", "http.service", "service", "web.http.service", "node", "bkero.node", "a.node") {
		h, known := v.Lookup(n)
		fmt.Fprintln(&b, "name", n, known, one(h))
	}
	for _, a := range walkAddrs {
		h, _ := v.Reverse(a)
		fmt.Fprintln(&b, "addr", a, one(h))
	}
	for _, g := range v.Groups() {
		fmt.Fprintln(&b, "group", g.Name, g.Owner, g.Members, g.Unknown)
		for _, h := range g.Hosts {
			fmt.Fprintln(&b, "  ", one(h))
		}
	}
	for _, s := range v.Services() {
		fmt.Fprintf(&b, "service %+v\n", *s)
	}
	for _, c := range v.Conflicts {
		fmt.Fprintln(&b, "conflict", c)
	}
	return b.String()
}

var (
	walkOwners = []string{"spencer", "bkero", "nibz", "eve"}
	walkNames  = []string{"a", "b", "c", "d", "x.bkero", "y.x.bkero", "*.bkero", "*.x.nibz", "z.nibz", "bkero", "nibz", "http", "localhost"}
	walkAddrs  = []netip.Addr{netip.MustParseAddr("10.11.1.1"), netip.MustParseAddr("10.11.1.2"), netip.MustParseAddr("10.11.1.3"), netip.MustParseAddr("fd00:1::7"),
		netip.MustParseAddr("10.11.0.2"), netip.MustParseAddr("10.99.0.1")}
)

// keeps is all that a Resolver keeps on disk, or has read from there and not looked at, but sequences.
func keeps(r *Resolver, all bool) string {
	var b strings.Builder
	fmt.Fprintln(&b, r.rev)
	for _, key := range slices.Sorted(maps.Keys(r.values)) {
		if v := r.values[key]; all || v.keep() {
			fmt.Fprintln(&b, key, string(v.kv.Value), v.kv.Created, v.kv.Modified)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(r.lastSeen)) {
		fmt.Fprintln(&b, "last seen", key, r.lastSeen[key].UnixNano())
	}
	return b.String()
}

// evictable verifies by a set of members that changes.
type evictable map[string]error

func (e evictable) Verify(owner string, msg, sig []byte) error {
	if err, known := e[owner]; !known || err != nil {
		return cmp.Or(err, store.ErrUnknownOwner)
	}
	return members{owner}.Verify(owner, msg, sig)
}

// walk changes what a Resolver knows as choices say, and holds each View that it makes step by step against one made anew. It
// counts what it saw.
func walk(t *testing.T, choices []byte, saw map[string]int) {
	pick := func(n int) int {
		if len(choices) == 0 {
			return 0
		}
		c := int(choices[0]) % n
		choices = choices[1:]
		return c
	}
	name := func() string { return walkNames[pick(len(walkNames))] }
	known := evictable{}
	cfg := Config{Zone: "mesh.internal", Prefixes: prefixes, Signer: member("spencer"), Verifier: known, StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
	r := New(cfg)
	r.own = ownList{}.state()
	rev, seq, builds := int64(0), uint64(0), 0
	present := map[string]store.KV{}
	seal := func(owner, key string, v store.Value) store.Change {
		seq++
		rev++
		v.Seq = seq
		b, err := store.Seal(key, v, member(owner))
		if err != nil {
			t.Fatal(err)
		}
		kv := store.KV{Key: key, Value: b, Created: rev, Modified: rev}
		if old, ok := present[key]; ok {
			kv.Created = old.Created
		}
		present[key] = kv
		return store.Change{KV: kv}
	}
	setNodes := func() {
		clear(known)
		var list []Node
		for i, o := range walkOwners {
			switch pick(6) {
			case 0: // not known
			case 1:
				known[o] = store.ErrEvicted
			default:
				known[o] = nil
				list = append(list, Node{Name: o, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 11, 0, byte(1 + i)})}, Key: fmt.Sprint(o, pick(2))})
			}
		}
		r.SetNodes(list)
	}
	setNodes()
	for len(choices) > 0 {
		var changes []store.Change
		for range 1 + pick(3) {
			owner := walkOwners[pick(len(walkOwners))]
			to := ""
			if pick(5) == 0 {
				to = walkOwners[pick(len(walkOwners))]
			}
			switch op := pick(16); op {
			case 0, 1, 2, 3:
				v := store.Value{Name: name(), To: to}
				for range 1 + pick(2) {
					v.Addrs = append(v.Addrs, walkAddrs[pick(len(walkAddrs))])
				}
				for range pick(3) {
					v.Aliases = append(v.Aliases, name())
				}
				changes = append(changes, seal(owner, store.HostKey(owner, v.Name), v))
			case 4, 5, 6:
				v := store.Value{Name: name(), To: to}
				if pick(5) == 0 {
					v.For = "eve"
				}
				changes = append(changes, seal(owner, store.NameClaimKey(v.Name), v))
			case 7:
				v := store.Value{Name: []string{"g", "h"}[pick(2)]}
				for range pick(4) {
					v.Members = append(v.Members, []string{"", "@"}[pick(2)]+append(walkNames, "g", "h")[pick(len(walkNames)+2)])
				}
				changes = append(changes, seal(owner, store.GroupKey(owner, v.Name), v))
			case 8:
				n := []string{"g", "h"}[pick(2)]
				changes = append(changes, seal(owner, store.GroupClaimKey(n), store.Value{Name: n}))
			case 9:
				s := &store.Service{Type: []string{"http", "a"}[pick(2)], Proto: "tcp", Port: 80, Host: []string{"", "a", "x.bkero"}[pick(3)]}
				if pick(2) == 0 {
					s.Tags = []string{"web"}
				}
				n := fmt.Sprint("s", pick(2))
				changes = append(changes, seal(owner, store.ServiceKey(owner, n), store.Value{Name: n, Service: s}))
			case 10:
				changes = append(changes, seal(owner, store.HealthKey(owner), store.Value{Health: map[string]store.Health{"s0": {State: []string{"passing", "critical"}[pick(2)]}}}))
			case 11, 12:
				if keys := slices.Sorted(maps.Keys(present)); len(keys) > 0 {
					key := keys[pick(len(keys))]
					delete(present, key)
					rev++
					changes = append(changes, store.Change{KV: store.KV{Key: key, Modified: rev}, Deleted: true})
				}
			case 13:
				if pick(2) == 0 {
					setNodes()
				}
			case 14:
				r.SetHealth(map[string]Health{"s0": {State: []State{Passing, Critical}[pick(2)]}})
			case 15: // the connection was lost: all is loaded again, now and then from a store that begins anew
				if pick(4) == 0 {
					for key := range present {
						if pick(2) == 0 {
							delete(present, key)
						}
					}
					r.mu.Lock()
					r.rev = rev + 100
					r.mu.Unlock()
				}
				all := slices.Collect(maps.Values(present))
				slices.SortFunc(all, func(a, b store.KV) int { return cmp.Compare(a.Modified, b.Modified) })
				changes = nil
				r.replace(all, rev)
			}
		}
		if len(changes) > 0 {
			r.apply(rev, changes)
		}
		if pick(8) == 0 && len(r.lastSeen) > 0 {
			r.mu.Lock()
			r.drop(slices.Min(slices.Collect(maps.Keys(r.lastSeen))))
			r.mu.Unlock()
		}
		if pick(8) == 0 {
			r.saveCache()
			kept := New(cfg)
			kept.loadDisk()
			if got, want := keeps(kept, true), keeps(r, false); got != want {
				t.Fatalf("the disk has\n%s\nwant\n%s", got, want)
			}
			for key, seq := range r.seqs {
				if kept.seqs[key] < seq {
					t.Fatalf("the disk has sequence %d of %s, want %d", kept.seqs[key], key, seq)
				}
			}
			if size(r.logFile()) > 0 {
				saw["logs"]++
			}
			if pick(3) == 0 { // it goes on with what the disk has
				r.mu.Lock()
				r.unkept = kept.unkept
				r.mu.Unlock()
			}
		}
		if pick(3) == 0 {
			continue // one View for several changes
		}
		before := r.View()
		was := describe(before)
		r.build()
		builds++
		got, want := describe(r.View()), describe(anew(parts(r)))
		if got != want {
			t.Fatalf("after %d Views:\n%s\nmade anew:\n%s", builds, got, want)
		}
		if describe(before) != was {
			t.Fatal("a View has changed")
		}
		saw["views"]++
		saw["conflicts"] += len(r.View().Conflicts)
		saw["groups"] += len(r.View().Groups())
		saw["services"] += len(r.View().ServiceHosts())
		saw["last seen"] += len(r.lastSeen)
		saw["wildcards"] += len(r.View().Wildcards())
		for _, v := range r.values {
			switch {
			case errors.Is(v.err, store.ErrEvicted):
				saw["evicted"]++
			case v.val.To != "":
				saw["given"]++
			}
		}
	}
}

// TestViews holds Views that are made step by step against those made anew, along random walks.
func TestViews(t *testing.T) {
	saw := map[string]int{}
	for seed := range uint64(80) {
		rng := rand.New(rand.NewPCG(seed, 1))
		choices := make([]byte, 1500)
		for i := range choices {
			choices[i] = byte(rng.Uint32())
		}
		walk(t, choices, saw)
	}
	for _, what := range []string{"views", "conflicts", "groups", "services", "last seen", "wildcards", "evicted", "given", "logs"} {
		if saw[what] < 100 {
			t.Errorf("walks saw %d %s: they are held against too little", saw[what], what)
		}
	}
	t.Log(saw)
}

func FuzzViews(f *testing.F) {
	f.Add([]byte("mesh"))
	f.Fuzz(func(t *testing.T, choices []byte) { walk(t, choices[:min(len(choices), 4000)], map[string]int{}) })
}

// FuzzLog reads names.log, which may be anything after a crash.
func FuzzLog(f *testing.F) {
	f.Add([]byte("{\"revision\":3,\"keys\":[{\"key\":\"a/hosts/b\",\"value\":\"x\",\"seq\":1},{\"key\":\"c\"}]}\n{\"rev"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := New(Config{Zone: "mesh.internal", Prefixes: prefixes, Signer: member("spencer"), Verifier: everybody, StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
		if err := os.WriteFile(r.logFile(), b, 0o600); err != nil {
			t.Fatal(err)
		}
		r.loadDisk()
		r.build()
		r.saveCache()
		again := New(r.cfg)
		if again.loadDisk(); keeps(again, true) != keeps(r, false) {
			t.Fatalf("kept is\n%s\nwant\n%s", keeps(again, true), keeps(r, false))
		}
	})
}

// TestTable holds a table against a map, beyond the size from which on what it adds goes into its base.
func TestTable(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var tab table[int, int]
	is := map[int]int{}
	for range 2000 {
		changes := map[int]int{}
		for range rng.IntN(4) {
			changes[rng.IntN(1000)] = rng.IntN(3)
		}
		tab = tab.with(changes)
		maps.Copy(is, changes)
		for range 20 {
			if k := rng.IntN(1000); tab.get(k) != is[k] {
				t.Fatalf("%d is %d, want %d", k, tab.get(k), is[k])
			}
		}
	}
}

// BenchmarkChange makes a View after one of many hosts has changed.
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{100, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := Parts{Zone: "mesh.internal", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Nodes: nodes(everybody...)}
			at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1 + byte(i>>16), byte(i >> 8), byte(i)}) }
			for i := range n {
				p.Hosts = append(p.Hosts, Static{Host: Host{Name: fmt.Sprintf("h%06d", i), Owner: "nibz", Addrs: []netip.Addr{at(i + 1)}}, Standing: Standing{Created: int64(i)}})
			}
			bl := newBuilder(p)
			for i := range p.Hosts {
				bl.putHost(p.Hosts[i].Name, &p.Hosts[i], true)
			}
			bl.next(1, time.Time{})
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++
				h := p.Hosts[i%n]
				h.Addrs = []netip.Addr{at(200_000 + i%(1<<20))}
				bl.putHost(h.Name, &h, true)
				bl.next(int64(i), time.Time{})
			}
		})
	}
}
