// SPDX-License-Identifier: MIT

package resolver

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Build makes a View. Of several hosts that want one name a node wins, then the holder of the claim, then the older
// one; of groups likewise; the losers are in Conflicts. An address leads back to the node that has it, else to the first
// host that does.
func Build(p Parts) *View {
	b := newBuilder(p)
	key := func(i int) string { return fmt.Sprintf("%08d", i) }
	for i := range p.Hosts {
		b.putHost(key(i), &p.Hosts[i], true)
	}
	for i := range p.Groups {
		b.putGroup(key(i), &p.Groups[i])
	}
	for i := range p.Services {
		b.putService(key(i), &p.Services[i])
	}
	return b.next(p.Revision, p.Built)
}

// builder makes Views one after the other. What a View costs goes by what has changed since the last one, with which it
// shares the rest; nodes do not change. Who gets a name is decided anew among those only who want that name, or one that one
// of these wants: what others get does not depend on it. It is for one goroutine.
type builder struct {
	last       *View
	lastResort bool

	nodes    map[string]*Host
	nodeAddr map[netip.Addr]string // a node's address → the node
	noNodes  []Conflict            // nodes that may not enter

	wants  map[string]*want       // hosts of the store, by their keys
	byName map[string][]*want     // by each of their names and aliases
	byAddr map[netip.Addr][]*want // without wildcards
	losers map[*want]bool         // those with conflicts

	groups       map[string]StaticGroup // by key
	groupNames   map[string]bool        // hosts that any of them is written with
	noGroups     []Conflict
	services     map[string]StaticService // by key
	serviceNames map[string]bool          // hosts and types that any of them names
	noServices   []Conflict

	// Since the last View:
	staleNames    map[string]bool // somebody wants them who did not, or the other way round, or differently
	staleAddrs    map[netip.Addr]bool
	gone          []*Host // were in it, and nobody wants them now
	staleGroups   bool
	staleServices bool
	lost          bool // Conflicts are others, perhaps
}

// want is a host that the store has, and what became of it.
type want struct {
	Static
	key       string
	counts    bool // it is to be let in if it can
	host      *Host
	conflicts []Conflict
}

// compare puts first who is to be let in first.
func (w *want) compare(x *want) int {
	return cmp.Or(w.Standing.compare(x.Standing), strings.Compare(w.Owner, x.Owner), strings.Compare(w.Name, x.Name), strings.Compare(w.key, x.key))
}

// names are all that it wants.
func (w *want) names() []string { return append([]string{w.Name}, w.Aliases...) }

// newBuilder begins with a View of nodes alone.
func newBuilder(p Parts) *builder {
	b := &builder{lastResort: p.LastResort, nodes: map[string]*Host{}, nodeAddr: map[netip.Addr]string{}, wants: map[string]*want{}, byName: map[string][]*want{},
		byAddr: map[netip.Addr][]*want{}, losers: map[*want]bool{}, groups: map[string]StaticGroup{}, services: map[string]StaticService{},
		staleNames: map[string]bool{}, staleAddrs: map[netip.Addr]bool{}, last: &View{Zone: p.Zone, Prefixes: p.Prefixes}}
	var d delta
	addrs := map[netip.Addr]*Host{}
	for _, n := range slices.SortedStableFunc(slices.Values(p.Nodes), func(a, b Node) int { return strings.Compare(a.Name, b.Name) }) {
		if err := CheckName(n.Name, n.Name); err != nil {
			b.noNodes = append(b.noNodes, Conflict{n.Name, n.Name, err.Error()})
			continue
		}
		if b.nodes[n.Name] != nil {
			continue
		}
		h := &Host{Name: n.Name, Owner: n.Name, Node: true, Addrs: n.Addrs}
		b.nodes[n.Name] = h
		d.add(h)
		d.below[nodeTree[1:]]++
		for _, a := range n.Addrs {
			b.nodeAddr[a] = n.Name
			if addrs[a] == nil {
				addrs[a] = h
			}
		}
	}
	d.apply(b.last)
	b.last.byAddr = b.last.byAddr.with(addrs)
	b.last.Conflicts = b.noNodes
	return b
}

// putHost says what the store has under a key: nil for nothing. One that does not count is not let in, now.
func (b *builder) putHost(key string, s *Static, counts bool) {
	var was *Host
	if old := b.wants[key]; old != nil {
		was, b.lost = old.host, b.lost || len(old.conflicts) > 0
		delete(b.wants, key)
		delete(b.losers, old)
		for _, n := range old.names() {
			b.staleNames[n] = true
			without(b.byName, n, old)
		}
		for _, a := range old.Addrs {
			b.staleAddrs[a] = true
			without(b.byAddr, a, old)
		}
	}
	if s == nil {
		if was != nil {
			b.gone = append(b.gone, was)
		}
		return
	}
	w := &want{Static: *s, key: key, counts: counts, host: was}
	b.wants[key] = w
	for _, n := range w.names() {
		b.staleNames[n] = true
		b.byName[n] = append(b.byName[n], w)
	}
	if wildcard(w.Name) {
		return
	}
	for _, a := range w.Addrs {
		b.staleAddrs[a] = true
		b.byAddr[a] = append(b.byAddr[a], w)
	}
}

func without[K comparable](m map[K][]*want, k K, w *want) {
	if rest := slices.DeleteFunc(m[k], func(x *want) bool { return x == w }); len(rest) > 0 {
		m[k] = rest
	} else {
		delete(m, k)
	}
}

// putGroup says what group the store has under a key: nil for none.
func (b *builder) putGroup(key string, g *StaticGroup) {
	b.staleGroups = true
	if delete(b.groups, key); g != nil {
		b.groups[key] = *g
	}
}

// putService says what service the store has under a key: nil for none.
func (b *builder) putService(key string, s *StaticService) {
	b.staleServices = true
	if delete(b.services, key); s != nil {
		b.services[key] = *s
	}
}

// next makes the View of what there is now.
func (b *builder) next(revision int64, built time.Time) *View {
	v := *b.last
	v.Revision, v.Built = revision, built
	d := b.decide(&v)
	d.apply(&v)
	b.leadBack(&v)
	mentioned := func(in map[string]bool) bool {
		for n := range d.names {
			if in[n] {
				return true
			}
		}
		return false
	}
	if b.staleGroups || mentioned(b.groupNames) {
		b.writeGroups(&v)
		b.lost = true
	}
	if b.staleServices || mentioned(b.serviceNames) {
		b.writeServices(&v)
		b.lost = true
	}
	if b.lost {
		v.Conflicts = slices.Clone(b.noNodes)
		for _, w := range slices.SortedFunc(maps.Keys(b.losers), (*want).compare) {
			v.Conflicts = append(v.Conflicts, w.conflicts...)
		}
		v.Conflicts = append(append(v.Conflicts, b.noGroups...), b.noServices...)
	}
	b.staleNames, b.staleAddrs = map[string]bool{}, map[netip.Addr]bool{} // clear would take as long as for the largest change there was
	b.gone, b.staleGroups, b.staleServices, b.lost = nil, false, false, false
	b.last = &v
	return &v
}

// decide lets hosts in, of those who want a stale name, and of all who want one that one of these wants.
func (b *builder) decide(v *View) (d delta) {
	seen := map[*want]bool{}
	var again []*want
	for todo := slices.Collect(maps.Keys(b.staleNames)); len(todo) > 0; {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, w := range b.byName[n] {
			if seen[w] {
				continue
			}
			seen[w] = true
			again = append(again, w)
			for _, n := range w.names() {
				if !b.staleNames[n] {
					b.staleNames[n] = true
					todo = append(todo, n)
				}
			}
		}
	}
	slices.SortFunc(again, (*want).compare)
	for _, h := range b.gone {
		d.remove(h)
	}
	taken := map[string]string{} // name → owner
	var in []*Host
	for _, w := range again {
		was := w.host
		b.lost = b.lost || len(w.conflicts) > 0
		w.host, w.conflicts = b.admit(v, w, taken)
		if delete(b.losers, w); len(w.conflicts) > 0 {
			b.losers[w], b.lost = true, true
		}
		if was != nil && w.host != nil && was.same(w.host) {
			w.host = was
			continue
		}
		if was != nil {
			d.remove(was)
		}
		if w.host != nil {
			in = append(in, w.host)
		}
		if (was == nil) != (w.host == nil) && !wildcard(w.Name) {
			for _, a := range w.Addrs {
				b.staleAddrs[a] = true
			}
		}
		if was != nil && w.host != nil { // the address leads to another value of the same host
			for _, a := range w.host.Addrs {
				b.staleAddrs[a] = true
			}
		}
	}
	for _, h := range in { // when all names are free that others had
		d.add(h)
	}
	return d
}

// admit is the host that somebody may have who wants one, nil for none. taken are names that others have who were first.
func (b *builder) admit(v *View, w *want, taken map[string]string) (*Host, []Conflict) {
	if !w.counts {
		return nil, nil
	}
	var lost []Conflict
	refuse := func(name string, err error) { lost = append(lost, Conflict{name, w.Owner, err.Error()}) }
	holder := func(n string) string {
		if b.nodes[n] != nil {
			return n
		}
		return taken[n]
	}
	h := w.Host
	err := CheckName(h.Name, h.Owner)
	if err == nil {
		err = checkAddrs(h.Addrs, v.Prefixes)
	}
	if by := w.Taken[h.Name]; err == nil && by != "" {
		err = fmt.Errorf("the name is %w: %s has claimed it", ErrTaken, by)
	}
	if by := holder(h.Name); err == nil && by != "" {
		err = fmt.Errorf("the name is %w: it belongs to %s", ErrTaken, by)
	}
	for _, a := range h.Addrs {
		if by := b.nodeAddr[a]; err == nil && by != "" && by != h.Owner {
			err = fmt.Errorf("address %s is %w: it belongs to %s", a, ErrTaken, by)
		}
	}
	if err != nil {
		refuse(h.Name, err)
		return nil, lost
	}
	taken[h.Name] = h.Owner
	h.Aliases = nil
	h.Node = false
	size := namesSize(h.Name, v.Zone)
	for _, al := range w.Aliases {
		err := CheckName(al, h.Owner)
		if size += namesSize(al, v.Zone); err == nil && size > maxNames {
			err = fmt.Errorf("%s has more aliases than a host may have: %d bytes in all forms, at most %d", h.Name, size, maxNames)
		}
		if err == nil && (wildcard(al) || wildcard(h.Name)) {
			err = fmt.Errorf("%s has the alias %s: a wildcard is and has none", h.Name, al)
		}
		if by := w.Taken[al]; err == nil && by != "" {
			err = fmt.Errorf("the alias is %w: %s has claimed it", ErrTaken, by)
		}
		if by := holder(al); err == nil && by != "" {
			err = fmt.Errorf("the alias is %w: it belongs to %s", ErrTaken, by)
		}
		if err != nil {
			refuse(al, err)
			continue
		}
		taken[al] = h.Owner
		h.Aliases = append(h.Aliases, al)
	}
	return &h, lost
}

// leadBack sets which host stale addresses lead back to: the node's, else who was let in first.
func (b *builder) leadBack(v *View) {
	to := map[netip.Addr]*Host{}
	for a := range b.staleAddrs {
		if n := b.nodeAddr[a]; n != "" {
			continue // always the node's
		}
		var first *want
		for _, w := range b.byAddr[a] {
			if w.host != nil && (first == nil || w.compare(first) < 0) {
				first = w
			}
		}
		if to[a] = nil; first != nil {
			to[a] = first.host
		}
	}
	v.byAddr = v.byAddr.with(to)
}

// writeGroups lets groups in anew.
func (b *builder) writeGroups(v *View) {
	v.groups, b.noGroups, b.groupNames = nil, nil, map[string]bool{}
	groups := make([]StaticGroup, 0, len(b.groups))
	for _, g := range b.groups {
		groups = append(groups, g)
		for _, m := range g.Members {
			b.groupNames[m] = true
		}
	}
	v.admitGroups(groups, func(name, owner string, err error) {
		b.noGroups = append(b.noGroups, Conflict{name, owner, err.Error()})
	})
}

// writeServices lets services in anew, in the order of their keys, for there may be too many.
func (b *builder) writeServices(v *View) {
	v.services, v.standIns, v.byService, v.emptyService = nil, nil, map[string]*Host{}, map[string]bool{}
	b.noServices, b.serviceNames = nil, map[string]bool{}
	services := make([]StaticService, 0, len(b.services))
	for _, key := range slices.Sorted(maps.Keys(b.services)) {
		s := b.services[key]
		services = append(services, s)
		b.serviceNames[s.Host], b.serviceNames[s.Type] = true, true
	}
	v.admitServices(services, b.lastResort, func(name, owner string, err error) {
		b.noServices = append(b.noServices, Conflict{name, owner, err.Error()})
	})
}

// delta is what differs between two Views in their hosts. Removals come first.
type delta struct {
	hosts, wild map[string]*Host // by their own names; nil: gone
	names       map[string]*Host // by these and aliases
	below       map[string]int   // how many names there are more below a name
}

func (d *delta) remove(h *Host) { d.set(h, nil, -1) }
func (d *delta) add(h *Host)    { d.set(h, h, 1) }

func (d *delta) set(h, to *Host, n int) {
	if d.names == nil {
		*d = delta{map[string]*Host{}, map[string]*Host{}, map[string]*Host{}, map[string]int{}}
	}
	if wildcard(h.Name) {
		d.wild[h.Name] = to
	} else {
		d.hosts[h.Name] = to
	}
	for _, name := range append([]string{h.Name}, h.Aliases...) {
		d.names[name] = to
		for parent := range parents(name) {
			d.below[parent] += n
		}
	}
}

// parents yields the names above a name.
func parents(name string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for {
			_, rest, ok := strings.Cut(name, ".")
			if !ok || !yield(rest) {
				return
			}
			name = rest
		}
	}
}

func (d *delta) apply(v *View) {
	v.hosts, v.wild, v.byName = merge(v.hosts, d.hosts), merge(v.wild, d.wild), v.byName.with(d.names)
	below := map[string]int{}
	for name, n := range d.below {
		below[name] = v.below.get(name) + n
	}
	v.below = v.below.with(below)
}

// merge is hosts, which are sorted by name, with what has changed.
func merge(hosts []*Host, changes map[string]*Host) []*Host {
	if len(changes) == 0 {
		return hosts
	}
	out := make([]*Host, 0, len(hosts)+len(changes))
	for _, name := range slices.Sorted(maps.Keys(changes)) {
		i, found := slices.BinarySearchFunc(hosts, name, func(h *Host, n string) int { return strings.Compare(h.Name, n) })
		out = append(out, hosts[:i]...)
		if h := changes[name]; h != nil {
			out = append(out, h)
		}
		if found {
			i++
		}
		hosts = hosts[i:]
	}
	return append(out, hosts...)
}

// table is a map that does not change, and of which another is made that shares most of it. A zero value is none.
type table[K, V comparable] struct {
	base map[K]V
	more map[K]V // goes before base
}

func (t table[K, V]) get(k K) V {
	if v, ok := t.more[k]; ok {
		return v
	}
	return t.base[k]
}

// with is t with changes. more stays small beside base, so both ways cost little for a change.
func (t table[K, V]) with(changes map[K]V) table[K, V] {
	if len(changes) == 0 {
		return t
	}
	more := maps.Clone(changes)
	if len(t.more) > 0 {
		more = maps.Clone(t.more)
		maps.Copy(more, changes)
	}
	if len(more) < 64+len(t.base)/64 {
		return table[K, V]{t.base, more}
	}
	var none V
	base := maps.Clone(t.base)
	if base == nil {
		base = make(map[K]V, len(more))
	}
	for k, v := range more {
		if v == none {
			delete(base, k)
		} else {
			base[k] = v
		}
	}
	return table[K, V]{base: base}
}
