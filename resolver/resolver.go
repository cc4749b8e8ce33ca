// SPDX-License-Identifier: MIT

package resolver

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"mesh.internal/mesh/resolver/store"
)

// Config is what a Resolver needs. All fields but Store and LearnNode are required.
type Config struct {
	Zone     string
	Prefixes []netip.Prefix // IPv4 first: addresses for new nodes come from it
	Signer   store.Signer   // this node
	Verifier store.Verifier // every member that SetNodes has named
	StateDir string         // names.json, names.log and own.json live here
	Log      *slog.Logger

	Store      store.Store               // nil: names come from SetNodes and the disk alone
	LearnNode  func(record []byte) error // takes node records found in the store; may call SetNodes
	LastResort bool                      // where none of a service is usable, names lead to all of them
}

// Bounds in time.
const (
	buildEvery = 25 * time.Millisecond // at most one View in this time
	saveEvery  = time.Second           // at most one write of the cache in this time
	retryFirst = 200 * time.Millisecond
	retryMost  = 2 * time.Second
	callLimit  = 5 * time.Second // of one call to the store
	loadLimit  = 5 * time.Minute // of loading all of it, each part of which has a limit of its own
)

// Resolver keeps the View. Its methods are safe for concurrent use.
type Resolver struct {
	cfg     Config
	view    atomic.Pointer[View]
	builder *builder // Run's alone

	built   chan struct{} // closed by Run when there is a View of what the disk has
	loaded  chan struct{} // closed by Run when the disk has been read: until then own is not to be changed
	writing sync.Mutex    // held while this node's values in the store are brought in line; taken before mu

	mu       sync.Mutex // guards the fields below; never held across a call to Store, LearnNode or the disk
	changed  chan struct{}
	nodes    map[string]Node
	values   map[string]*value // by key
	stale    map[string]bool   // keys of which the View may not have what values say; nil: all, and nodes
	unkept   map[string]bool   // keys of which the disk may not have what values say; nil: all
	seqs     map[string]uint64 // highest sequence ever seen of a key, also after its deletion
	rev      int64
	lastSeen map[string]time.Time // keys of values that the store lacks since it began anew
	heard    map[string]time.Time // by owner: when something of it was last found in such a store
	forgetAt time.Time            // when forget has something to do; zero: never
	followed bool                 // values are, or were in this run, the store's own
	state    StoreState
	own      ownState
	dirty    chan struct{} // capacity 1: something to build a View from has changed
	unsaved  chan struct{} // capacity 1: the cache on disk is behind
	behind   chan struct{} // capacity 1: this node's values in the store may be behind
	untold   chan struct{} // capacity 1: what the store has of the health of this node's services is behind
}

// value is a value of the store with what was found of it.
type value struct {
	kv  store.KV
	val store.Value
	err error // nil: verified; ErrUnknownOwner and ErrEvicted: to be tried again when nodes change

	later   store.KV // what the store has instead, where it was not taken in place of this one
	refused error    // why a later value of the store was not taken in place of this one; nil: this is what the store has
}

// bad is why what the store has under the key is not accepted, other than that its owner is not, or no more, a member.
func (v *value) bad() error {
	switch {
	case v.refused != nil:
		return v.refused
	case errors.Is(v.err, store.ErrUnknownOwner), errors.Is(v.err, store.ErrEvicted):
		return nil
	}
	return v.err
}

// StoreState says how things stand with the store.
type StoreState struct {
	State    string    `json:"state"` // "none", "connecting", "ok" or "unreachable"
	Since    time.Time `json:"since"`
	Revision int64     `json:"revision"`
	Err      string    `json:"error,omitempty"`   // why it is unreachable
	Refused  []string  `json:"refused,omitempty"` // keys whose values were not accepted, at most 20
	Waiting  []string  `json:"waiting,omitempty"` // own hosts and groups ("@name") that are not in the store yet, and why
	LastSeen *LastSeen `json:"last_seen,omitempty"`
}

// New returns a Resolver that knows nothing yet.
func New(cfg Config) *Resolver {
	r := &Resolver{cfg: cfg, built: make(chan struct{}), loaded: make(chan struct{}), changed: make(chan struct{}), nodes: map[string]Node{}, values: map[string]*value{}, seqs: map[string]uint64{},
		lastSeen: map[string]time.Time{}, heard: map[string]time.Time{},
		dirty: make(chan struct{}, 1), unsaved: make(chan struct{}, 1), behind: make(chan struct{}, 1), untold: make(chan struct{}, 1)}
	r.state = StoreState{State: "none", Since: time.Now()}
	r.view.Store(Build(Parts{Zone: cfg.Zone, Prefixes: cfg.Prefixes, Built: time.Now()}))
	return r
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// View returns the current View.
func (r *Resolver) View() *View { return r.view.Load() }

// Built returns a channel that is closed when View is of what is known, not the empty one of the beginning.
func (r *Resolver) Built() <-chan struct{} { return r.built }

// Changed returns a channel that is closed when View has changed after this call.
func (r *Resolver) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// State returns how things stand with the store.
func (r *Resolver) State() StoreState {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.state
	s.Revision = r.rev
	for key, v := range r.values {
		if err := v.bad(); err != nil && len(s.Refused) < 20 {
			s.Refused = append(s.Refused, key+": "+err.Error())
		}
	}
	s.Waiting, s.LastSeen = r.own.waiting(), r.missing()
	return s
}

// SetNodes says which members are known: the whole set, from verified records.
func (r *Resolver) SetNodes(nodes []Node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := make(map[string]Node, len(nodes))
	for _, n := range nodes {
		now[n.Name] = n
	}
	if maps.EqualFunc(now, r.nodes, func(a, b Node) bool { return a.Key == b.Key && slices.Equal(a.Addrs, b.Addrs) }) {
		return
	}
	for key, v := range r.values {
		o := v.val.Owner
		if (errors.Is(v.err, store.ErrUnknownOwner) || errors.Is(v.err, store.ErrEvicted)) && now[o].Name != "" || now[o].Key != r.nodes[o].Key {
			r.check(key, v)
			r.renew(key)
			if v.err != nil && v.refused != nil { // its owner has gone, and with it what stood against the later one
				v = &value{kv: v.later}
				r.check(key, v)
				r.values[key] = v
			}
		}
	}
	r.nodes, r.stale = now, nil
	poke(r.dirty)
}

// Run keeps the View until ctx ends.
func (r *Resolver) Run(ctx context.Context) error {
	r.loadDisk()
	close(r.loaded)
	var wg sync.WaitGroup
	defer wg.Wait()
	if r.cfg.Store != nil {
		r.setState("connecting", nil)
		wg.Go(func() { r.follow(ctx) })
		wg.Go(func() { r.write(ctx) })
		wg.Go(func() { r.tellHealth(ctx) })
	}
	wg.Go(func() { r.save(ctx) })
	r.build()
	close(r.built)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.dirty:
		case <-r.later():
		}
		r.build()
		if !sleep(ctx, buildEvery) {
			return nil
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

func (r *Resolver) setState(s string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state.State != s {
		r.state.State, r.state.Since = s, time.Now()
		r.cfg.Log.Info("store", "state", s, "err", err)
	}
	r.state.Err = ""
	if err != nil {
		r.state.Err = err.Error()
	}
}

// follow loads the store and follows it from there; after any gap or loss it starts over, so that no change is missed:
// what was deleted meanwhile is missing from the load.
func (r *Resolver) follow(ctx context.Context) {
	wait := retryFirst
	for ctx.Err() == nil {
		call, cancel := context.WithTimeout(ctx, loadLimit)
		kvs, rev, err := r.cfg.Store.Load(call)
		cancel()
		if err == nil {
			r.replace(kvs, rev)
			r.setState("ok", nil)
			poke(r.behind)
			poke(r.untold)
			wait = retryFirst
			err = r.cfg.Store.Follow(ctx, rev, r.apply)
			r.mu.Lock()
			clear(r.heard) // nobody can be heard now
			r.mu.Unlock()
			if errors.Is(err, store.ErrGap) {
				continue
			}
		}
		if ctx.Err() != nil {
			return
		}
		r.setState("unreachable", err)
		if !sleep(ctx, wait/2+rand.N(wait)) {
			return
		}
		wait = min(2*wait, retryMost)
	}
}

// replace takes the whole content of the store. What is missing was deleted, unless the store has begun anew.
func (r *Resolver) replace(kvs []store.KV, rev int64) {
	seen := make(map[string]bool, len(kvs))
	changes := make([]store.Change, 0, len(kvs))
	for _, kv := range kvs {
		seen[kv.Key] = true
		changes = append(changes, store.Change{KV: kv})
	}
	r.mu.Lock()
	anew := r.anew(kvs, rev)
	if anew {
		r.begin(time.Now())
	}
	for key := range r.values {
		if _, kept := r.lastSeen[key]; !seen[key] && !kept {
			delete(r.values, key)
			r.renew(key)
		}
	}
	r.followed = true
	r.mu.Unlock()
	r.apply(rev, changes)
	if anew {
		r.mu.Lock()
		self := store.NodeKey(r.cfg.Signer.Name())
		r.seqs[self]++ // so that it is written anew, by which others know that we were here
		r.renew(self)
		r.mu.Unlock()
	}
}

// apply takes changes of the store.
func (r *Resolver) apply(rev int64, changes []store.Change) {
	var records [][]byte
	r.mu.Lock()
	for _, c := range changes {
		if strings.HasPrefix(c.Key, store.LockPrefix) {
			continue
		}
		old, self := r.values[c.Key], r.cfg.Signer.Name()
		changed := func() {
			if strings.HasPrefix(c.Key, self+"/") || old != nil && (old.val.Owner == self || old.val.To == self) {
				poke(r.behind) // somebody else, perhaps, has changed what is ours, or a claim that was
				poke(r.untold)
			}
		}
		if c.Deleted {
			changed()
			r.renew(c.Key)
			delete(r.values, c.Key)
			delete(r.lastSeen, c.Key)
			continue
		}
		_, before := r.lastSeen[c.Key] // then what we know is another store's
		r.found(c.Key)
		if old != nil && old.kv.Modified == c.Modified && string(old.kv.Value) == string(c.Value) {
			if before || old.refused != nil {
				r.renew(c.Key)
			}
			old.refused = nil
			continue
		}
		r.renew(c.Key)
		v := &value{kv: c.KV}
		r.check(c.Key, v)
		if !r.wanted(c.Key, v) {
			changed()
		}
		if v.val.To == self {
			poke(r.behind) // something is given to us
		}
		if err := handedOver(c.Key, old, v); err != nil && !before {
			v.err = err
		}
		if old != nil && old.err == nil && v.err != nil && !errors.Is(v.err, store.ErrUnknownOwner) && !errors.Is(v.err, store.ErrEvicted) {
			r.cfg.Log.Warn("a changed value in the store is not accepted; the last good one stays", "key", c.Key, "err", v.err)
			old.refused, old.later = v.err, c.KV
			continue
		}
		r.values[c.Key] = v
		if strings.HasSuffix(c.Key, "/node") && len(v.val.Record) > 0 {
			records = append(records, v.val.Record)
		}
	}
	r.rev = rev
	poke(r.dirty)
	poke(r.unsaved)
	r.mu.Unlock()
	if r.cfg.LearnNode == nil {
		return
	}
	for _, rec := range records {
		if err := r.cfg.LearnNode(rec); err != nil {
			r.cfg.Log.Warn("a node record in the store is not accepted", "err", err)
		}
	}
}

// wanted reports whether a value is ours and just what it should be. r.mu is held.
func (r *Resolver) wanted(key string, v *value) bool {
	owner, rest, _ := strings.Cut(key, "/")
	w := r.own.values[rest]
	if w == nil || v.err != nil || owner != r.cfg.Signer.Name() {
		return false
	}
	want := w.Value
	want.Owner = owner
	return same(v.val, want)
}

// check verifies a value as one under key. r.mu is held.
func (r *Resolver) check(key string, v *value) {
	v.val, v.err = store.Open(key, v.kv.Value, r.cfg.Verifier)
	if v.err != nil {
		return
	}
	if v.val.Seq < r.seqs[key] {
		v.err = errors.New("an older value has been put back")
		return
	}
	owner, rest, _ := strings.Cut(key, "/")
	kind, name, _ := strings.Cut(rest, "/")
	switch {
	case owner == "_claims":
		return
	case owner != v.val.Owner:
		v.err = errors.New("it lies below another node's name")
	case (slices.Contains(kinds, kind) || kind == kindServices) && name != v.val.Name:
		v.err = errors.New("it lies under another name")
	default:
		v.err = CheckMeta(v.val.Meta)
	}
	if v.err == nil {
		r.seqs[key] = v.val.Seq
	}
}

// renew has the next View, and the disk, look at a key again. r.mu is held.
func (r *Resolver) renew(key string) {
	if r.stale != nil {
		r.stale[key] = true
	}
	if r.unkept != nil {
		r.unkept[key] = true
	}
}

// show tells the builder what of a View goes by the value of a key. r.mu is held.
func (r *Resolver) show(b *builder, key string) {
	owner, rest, _ := strings.Cut(key, "/")
	kind, name, _ := strings.Cut(rest, "/")
	switch {
	case owner == "_claims" && kind == "names":
		for _, w := range slices.Clone(b.byName[name]) {
			r.show(b, w.key)
		}
		for key, s := range b.services {
			if s.Type == name {
				r.show(b, key)
			}
		}
	case owner == "_claims" && kind == "groups":
		for key, g := range b.groups {
			if g.Name == name {
				r.show(b, key)
			}
		}
	case rest == "health":
		for key, s := range b.services {
			if s.Owner == owner {
				r.show(b, key)
			}
		}
	case kind == kindHosts:
		if v := r.accepted(key); v != nil {
			s, ok := r.static(key, v)
			b.putHost(key, &s, ok)
		} else {
			b.putHost(key, nil, false)
		}
	case kind == kindGroups:
		if v := r.accepted(key); v != nil {
			b.putGroup(key, &StaticGroup{groupOf(v.val), Standing{Created: r.created(key, v), Claimed: r.holder(store.GroupClaimKey(v.val.Name)) == v.val.Owner}})
		} else {
			b.putGroup(key, nil)
		}
	case kind == kindServices:
		if v := r.accepted(key); v != nil && v.val.Service != nil {
			s := r.service(v.val)
			b.putService(key, &s)
		} else {
			b.putService(key, nil)
		}
	}
}

// accepted is the value of a key, nil for none that counts. r.mu is held.
func (r *Resolver) accepted(key string) *value {
	if v := r.values[key]; v != nil && v.err == nil {
		return v
	}
	return nil
}

func hostOf(v store.Value) Host {
	return Host{Name: v.Name, Owner: v.Owner, Addrs: v.Addrs, Aliases: v.Aliases, Meta: v.Meta}
}

func groupOf(v store.Value) Group { return Group{Name: v.Name, Owner: v.Owner, Members: v.Members} }

func (r *Resolver) build() {
	r.mu.Lock()
	r.forget(time.Now())
	if r.stale == nil {
		r.builder = newBuilder(Parts{Zone: r.cfg.Zone, Prefixes: r.cfg.Prefixes, LastResort: r.cfg.LastResort, Nodes: slices.Collect(maps.Values(r.nodes))})
		r.stale = make(map[string]bool, len(r.values))
		for key := range r.values {
			if owner, rest, _ := strings.Cut(key, "/"); owner != "_claims" && rest != "health" { // which say something of other values
				r.stale[key] = true
			}
		}
	}
	for key := range r.stale {
		r.show(r.builder, key)
	}
	r.stale = map[string]bool{}
	rev := r.rev
	r.mu.Unlock()
	r.view.Store(r.builder.next(rev, time.Now()))
	r.mu.Lock()
	close(r.changed)
	r.changed = make(chan struct{})
	r.mu.Unlock()
}

// WaitRevision waits until the View holds everything up to a revision of the store.
func (r *Resolver) WaitRevision(ctx context.Context, rev int64) error {
	for {
		c := r.Changed()
		if r.View().Revision >= rev {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c:
		}
	}
}

func (r *Resolver) cacheFile() string { return filepath.Join(r.cfg.StateDir, "names.json") }
func (r *Resolver) logFile() string   { return filepath.Join(r.cfg.StateDir, "names.log") }
func (r *Resolver) ownFile() string   { return filepath.Join(r.cfg.StateDir, "own.json") }
