// SPDX-License-Identifier: MIT

package resolver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"mesh.internal/mesh/resolver/store"
)

// What this node publishes is kept on disk as the state that should be (own.json), and the store is brought in line
// with it whenever the store can be reached: so a write made while it is away lands later, and what somebody else
// deletes comes back.

// ownState is what this node wants to be in the store.
type ownState struct {
	complete map[string]bool      // kinds of which values lists all: what it does not list is to be deleted from the store
	values   map[string]*ownValue // by key below the node's name: "hosts/printer", "groups/friends"
	taken    map[string]uint64    // what others gave to this node: key → sequence, so that it is taken once
	addrs    []netip.Addr         // the node's own
	record   []byte
	health   map[string]Health // of its services, by name
}

// kinds of values that people add, and that own.json has.
var kinds = []string{kindHosts, kindGroups, kindNames}

const (
	kindHosts    = "hosts"
	kindGroups   = "groups"
	kindNames    = "names"    // that are kept
	kindServices = "services" // of which SetServices says what should be, so own.json does not
)

// ownValue is a host, a group or a kept name.
type ownValue struct {
	store.Value // without owner and sequence, which it gets when it is written
	landed      bool
	err         error // why it has not landed
}

// why is why a value has not landed.
func (v *ownValue) why() string {
	if v.err != nil {
		return v.err.Error()
	}
	return "not in the store yet"
}

func (o *ownState) waiting() []string {
	var out []string
	for key, v := range o.values {
		name := v.Name
		switch kind, _, _ := strings.Cut(key, "/"); kind {
		case kindGroups:
			name = "@" + name
		case kindNames:
			name += " (kept)"
		case kindServices:
			name += " (service)"
		}
		if !v.landed {
			out = append(out, name+": "+v.why())
		}
	}
	slices.Sort(out)
	return out
}

// ownList is own.json.
type ownList struct {
	Complete []string          `json:"complete"` // kinds of which nothing is missing
	Hosts    []Host            `json:"hosts"`
	Groups   []Group           `json:"groups"`
	Names    []string          `json:"names"`        // that are kept
	To       map[string]string `json:"to,omitempty"` // what is being given away: key → node
	Taken    map[string]uint64 `json:"taken,omitempty"`
}

// UnmarshalJSON reads the form of before there were groups too: the list of hosts alone, which was complete.
func (l *ownList) UnmarshalJSON(b []byte) error {
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("[")) {
		l.Complete = []string{kindHosts}
		return json.Unmarshal(b, &l.Hosts)
	}
	type plain ownList
	return json.Unmarshal(b, (*plain)(l))
}

func (l ownList) state() ownState {
	o := ownState{complete: map[string]bool{}, values: map[string]*ownValue{}, taken: map[string]uint64{}}
	maps.Copy(o.taken, l.Taken)
	for _, k := range l.Complete {
		o.complete[k] = true
	}
	for _, h := range l.Hosts {
		o.values[kindHosts+"/"+h.Name] = &ownValue{Value: valueOf(h)}
	}
	for _, g := range l.Groups {
		o.values[kindGroups+"/"+g.Name] = &ownValue{Value: store.Value{Name: g.Name, Members: g.Members}}
	}
	for _, n := range l.Names {
		o.values[kindNames+"/"+n] = &ownValue{Value: store.Value{Name: n}}
	}
	for key, to := range l.To {
		if v := o.values[key]; v != nil {
			v.To = to
		}
	}
	return o
}

// said is what a value says, without when and by whom.
func said(v store.Value) store.Value {
	return store.Value{Name: v.Name, Addrs: v.Addrs, Aliases: v.Aliases, Members: v.Members, Meta: v.Meta, To: v.To, Service: v.Service}
}

// valueOf is a host as it is kept.
func valueOf(h Host) store.Value {
	return store.Value{Name: h.Name, Addrs: h.Addrs, Aliases: h.Aliases, Meta: h.Meta}
}

// saveOwn writes own.json. r.mu is held: the file is small and its order matters.
func (r *Resolver) saveOwn() error {
	l := ownList{Hosts: []Host{}, Groups: []Group{}, Names: []string{}, To: map[string]string{}, Taken: r.own.taken}
	for _, k := range kinds {
		if r.own.complete[k] {
			l.Complete = append(l.Complete, k)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(r.own.values)) {
		v := r.own.values[key].Value
		v.Owner = r.cfg.Signer.Name()
		switch kind, _, _ := strings.Cut(key, "/"); kind {
		case kindHosts:
			l.Hosts = append(l.Hosts, hostOf(v))
		case kindGroups:
			l.Groups = append(l.Groups, groupOf(v))
		case kindNames:
			l.Names = append(l.Names, v.Name)
		}
		if v.To != "" {
			l.To[key] = v.To
		}
	}
	if err := writeJSON(r.ownFile(), l); err != nil {
		return fmt.Errorf("keeping on disk what was added here: %w", err)
	}
	return nil
}

// SetSelf says what this node publishes of itself.
func (r *Resolver) SetSelf(addrs []netip.Addr, record []byte) {
	r.mu.Lock()
	r.own.addrs, r.own.record = addrs, record
	r.mu.Unlock()
	poke(r.behind)
}

// AddGroup adds members to a group of this node, which it makes if there is none: hosts by their names relative to the
// zone, and other groups as "@name". What is landed and of errors holds as for AddHost.
func (r *Resolver) AddGroup(ctx context.Context, name string, members ...string) (landed bool, err error) {
	self := r.cfg.Signer.Name()
	if err := CheckGroup(Group{Name: name, Owner: self, Members: members}); err != nil {
		return false, err
	}
	if other := r.View().Group(name); other != nil && other.Owner != self {
		return false, fmt.Errorf("the name @%s is %w: it belongs to %s", name, ErrTaken, other.Owner)
	}
	return r.want(ctx, kindGroups+"/"+name, func(v store.Value) (store.Value, error) {
		v.Name, v.Members = name, slices.Clone(v.Members)
		for _, m := range members {
			if !slices.Contains(v.Members, m) {
				v.Members = append(v.Members, m)
			}
		}
		return v, nil
	})
}

// RemoveGroup removes members from a group of this node; all of it, if none are given.
func (r *Resolver) RemoveGroup(ctx context.Context, name string, members ...string) (landed bool, err error) {
	key := kindGroups + "/" + name
	other := r.View().Group(name)
	missing := fmt.Errorf("no group @%s was added here", name)
	if other != nil && other.Owner != r.cfg.Signer.Name() {
		missing = fmt.Errorf("@%s was added on %s: change it there", name, other.Owner)
	}
	if len(members) == 0 {
		landed, added, err := r.unwant(ctx, key)
		if !added {
			return false, missing
		}
		return landed, err
	}
	return r.want(ctx, key, func(v store.Value) (store.Value, error) {
		if v.Name == "" {
			return v, missing
		}
		for _, m := range members {
			if !slices.Contains(v.Members, m) {
				return v, fmt.Errorf("%s is not a member of @%s by that name: its members are %s", m, name, strings.Join(v.Members, " "))
			}
		}
		v.Members = slices.DeleteFunc(slices.Clone(v.Members), func(m string) bool { return slices.Contains(members, m) })
		return v, nil
	})
}

// want keeps what change makes of this node's value (zero if there is none) as what should be, and brings the store in
// line. change is called with r.mu held. Where somebody else holds what it needs, the value is as before.
func (r *Resolver) want(ctx context.Context, key string, change func(store.Value) (store.Value, error)) (landed bool, err error) {
	if err := r.waitLoaded(ctx); err != nil {
		return false, err
	}
	r.mu.Lock()
	before, mine := r.own.values[key], &ownValue{}
	if before != nil {
		mine.Value = before.Value
	}
	if mine.Value, err = change(mine.Value); err == nil {
		_, err = store.Seal(r.cfg.Signer.Name()+"/"+key, mine.Value, r.cfg.Signer) // what is too large would never land
	}
	if err == nil {
		r.own.values[key] = mine
		err = r.saveOwn()
	}
	r.mu.Unlock()
	if err != nil {
		return false, err
	}
	rev, err := r.reconcile(ctx, key)
	if err != nil {
		poke(r.behind) // write tries until it is done, also where the store is there and refuses
	}
	r.mu.Lock()
	landed, conflict := mine.landed, errors.Is(mine.err, ErrTaken)
	if conflict {
		err = mine.err
		if r.own.values[key] == mine {
			if delete(r.own.values, key); before != nil {
				r.own.values[key] = before
			}
			err = errors.Join(err, r.saveOwn())
		}
	}
	r.mu.Unlock()
	switch {
	case conflict:
		return false, err
	case landed:
		return true, r.WaitRevision(ctx, rev)
	}
	return false, nil // err is the store's; State tells it
}

// unwant removes a value of this node; added reports whether there was one.
func (r *Resolver) unwant(ctx context.Context, key string) (landed, added bool, err error) {
	if err := r.waitLoaded(ctx); err != nil {
		return false, true, err
	}
	r.mu.Lock()
	if r.own.values[key] == nil {
		r.mu.Unlock()
		return false, false, nil
	}
	delete(r.own.values, key)
	err = r.saveOwn()
	r.mu.Unlock()
	if err != nil {
		return false, true, err
	}
	rev, err := r.reconcile(ctx, "")
	if err != nil {
		poke(r.behind)
		return false, true, nil // it is gone from own.json, and leaves the store when that is back
	}
	return true, true, r.WaitRevision(ctx, rev)
}

// storeIn is how long a store that is not there is waited for, where nothing can be done without it: it may just be starting,
// or its next member taking the lead.
const storeIn = 10 * time.Second

func (r *Resolver) waitStore(ctx context.Context) error {
	for end := time.Now().Add(storeIn); ; {
		s := r.State()
		if s.State == "ok" {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("the store is %s: %s", s.State, s.Err)
		}
		if !sleep(ctx, storeIn/100) {
			return ctx.Err()
		}
	}
}

func (r *Resolver) waitLoaded(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-r.loaded:
		return nil
	}
}

// write brings the store in line whenever it may be behind, until ctx ends.
func (r *Resolver) write(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.behind:
		}
		if _, err := r.reconcile(ctx, ""); err != nil && ctx.Err() == nil {
			r.cfg.Log.Debug("the store is behind", "err", err)
			if !sleep(ctx, time.Second) {
				return
			}
			if r.State().State == "ok" { // otherwise follow pokes when it is back
				poke(r.behind)
			}
		}
	}
}

// reconcile makes this node's part of the store what own says, as far as it can, and returns the last revision it made. With
// only, the key of a value that was just changed, it may leave the rest to write: so what a change costs does not go by how
// much this node has.
func (r *Resolver) reconcile(ctx context.Context, only string) (int64, error) {
	if r.cfg.Store == nil {
		return 0, errors.New("this node has no store")
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()

	r.mu.Lock()
	if r.state.State != "ok" {
		defer r.mu.Unlock()
		return 0, fmt.Errorf("the store is %s", r.state.State)
	}
	if v := r.own.values[only]; v != nil && v.To == "" && !slices.ContainsFunc(kinds, func(k string) bool { return !r.own.complete[k] }) {
		r.mu.Unlock()
		rev, err := r.publish(ctx, only, v.Value)
		r.mu.Lock()
		v.landed, v.err = err == nil, err
		r.mu.Unlock()
		return rev, err
	}
	self := r.cfg.Signer.Name()
	err := r.adopt()
	if err == nil && r.accept() {
		err = r.saveOwn()
	}
	if err != nil {
		r.mu.Unlock()
		return 0, err
	}
	var gone []string
	prefix := self + "/"
	for key, v := range r.values {
		key, ours := strings.CutPrefix(key, prefix)
		if !ours {
			continue
		}
		kind, _, _ := strings.Cut(key, "/")
		if r.own.complete[kind] && r.own.values[key] == nil && v.kv.Modified != 0 {
			gone = append(gone, key)
			if _, already := r.lastSeen[self+"/"+key]; already {
				r.drop(self + "/" + key)
				poke(r.dirty)
			}
		}
	}
	node := r.own
	want := maps.Clone(r.own.values)
	said := r.has(store.NodeKey(self), store.Value{Owner: self, Addrs: node.addrs, Record: node.record})
	r.mu.Unlock()

	var last int64
	var errs []error
	note := func(rev int64, err error) {
		last = max(last, rev)
		errs = append(errs, err)
	}
	for key, v := range want {
		rev, err := r.publish(ctx, key, v.Value)
		done := v.To != "" && errors.Is(err, ErrTaken) && r.parted(ctx, v.Value)
		r.mu.Lock()
		v.landed, v.err = err == nil, err
		if done && r.own.values[key] == v {
			delete(r.own.values, key)
			gone = append(gone, key)
			note(0, r.saveOwn())
		}
		r.mu.Unlock()
		if !errors.Is(err, ErrTaken) {
			note(rev, err)
		}
	}
	for _, key := range gone {
		note(r.withdraw(ctx, key))
	}
	if node.record != nil && !said { // last: in a store that has begun anew it says that all else has been tried
		kv, err := r.cfg.Store.Get(ctx, store.NodeKey(self))
		if err != nil {
			note(0, err)
		} else {
			note(r.put(ctx, store.NodeKey(self), kv, store.Value{Addrs: node.addrs, Record: node.record}, nil, nil))
		}
	}
	return last, errors.Join(errs...)
}

// adopt makes complete what is not, as on a new disk: what the store has of ours is what should be. r.mu is held.
func (r *Resolver) adopt() error {
	changed := false
	for _, kind := range kinds {
		if r.own.complete[kind] {
			continue
		}
		for key, v := range r.values {
			key, ours := strings.CutPrefix(key, r.cfg.Signer.Name()+"/")
			if ours && v.err == nil && strings.HasPrefix(key, kind+"/") && r.own.values[key] == nil {
				r.own.values[key] = &ownValue{Value: said(v.val)}
			}
		}
		r.own.complete[kind], changed = true, true
	}
	if !changed {
		return nil
	}
	return r.saveOwn()
}

// put writes a value of ours in place of kv, unless that is it already; more are changes that go with it.
func (r *Resolver) put(ctx context.Context, key string, kv store.KV, v store.Value, conds []store.Cond, more []store.Op) (int64, error) {
	v.Owner = r.cfg.Signer.Name()
	old, err := store.Open(key, kv.Value, r.cfg.Verifier)
	r.mu.Lock()
	seq := r.seqs[key]
	r.mu.Unlock()
	if err == nil && old.Seq >= seq && len(more) == 0 && same(old, v) {
		return kv.Modified, nil
	}
	v.Seq = max(uint64(time.Now().UnixMilli()), seq+1, old.Seq+1)
	b, err := store.Seal(key, v, r.cfg.Signer)
	if err != nil {
		return 0, err
	}
	return r.cfg.Store.Commit(ctx, append(conds, store.Cond{Key: key, Rev: kv.Modified}), append(more, store.Op{Key: key, Value: b}))
}

// same reports whether two values say the same, whenever they were said.
func same(a, b store.Value) bool {
	return a.Owner == b.Owner && a.Name == b.Name && a.To == b.To && slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.Aliases, b.Aliases) &&
		slices.Equal(a.Members, b.Members) && maps.Equal(a.Meta, b.Meta) && bytes.Equal(a.Record, b.Record) && sameService(a.Service, b.Service)
}

// claim is a key under _claims, and what it is for in words.
type claim struct{ key, what string }

// claims are what a value takes from what all share: names of one label, and addresses that are not the node's own.
func (r *Resolver) claims(key string, v store.Value) []claim {
	r.mu.Lock()
	own := r.own.addrs
	r.mu.Unlock()
	if strings.HasPrefix(key, kindServices+"/") {
		return nil // whoever offers one is among those who do
	}
	claimKey, what := store.NameClaimKey, "the name "
	if strings.HasPrefix(key, kindGroups) {
		claimKey, what = store.GroupClaimKey, "the name @"
	}
	var out []claim
	for _, n := range append([]string{v.Name}, v.Aliases...) {
		if !strings.Contains(n, ".") {
			out = append(out, claim{claimKey(n), what + n})
		}
	}
	for _, a := range v.Addrs {
		if !slices.Contains(own, a) {
			out = append(out, claim{store.AddrClaimKey(a.String()), "address " + a.String()})
		}
	}
	return out
}

// publish writes a value with the claims that it needs, all or nothing, and gives up those that it needs no more.
func (r *Resolver) publish(ctx context.Context, key string, v store.Value) (int64, error) {
	if rev, ok := r.inPlace(key, v); ok {
		return rev, nil
	}
	full := r.cfg.Signer.Name() + "/" + key
	var conds []store.Cond
	var more []store.Op
	for _, c := range r.claims(key, v) {
		rev, held, err := r.free(ctx, c.key, c.what)
		if err != nil {
			return 0, err
		}
		if held.Owner == r.cfg.Signer.Name() && held.To == v.To {
			continue
		}
		b, err := store.Seal(c.key, store.Value{Seq: max(uint64(time.Now().UnixMilli()), held.Seq+1), Name: v.Name, To: v.To}, r.cfg.Signer)
		if err != nil {
			return 0, err
		}
		conds, more = append(conds, store.Cond{Key: c.key, Rev: rev}), append(more, store.Op{Key: c.key, Value: b})
	}
	old, err := r.cfg.Store.Get(ctx, full)
	if err != nil {
		return 0, err
	}
	spare := r.giveUp(ctx, key, old.Value)
	if len(more)+len(spare) <= mostParts {
		more, spare = append(more, spare...), nil
	}
	rev, err := r.put(ctx, full, old, v, conds, more)
	if err == nil && len(spare) > 0 { // too much for one transaction: nothing but that they are free comes later
		rev, err = r.cfg.Store.Commit(ctx, nil, spare)
	}
	return rev, err
}

// has reports whether the store was last seen to have v, put there by its owner last. r.mu is held.
func (r *Resolver) has(key string, v store.Value) bool {
	has := r.stored(key)
	return has != nil && has.err == nil && has.refused == nil && same(has.val, v) && has.val.Seq >= r.seqs[key]
}

// inPlace reports whether the store has a value of ours and all its claims, as far as it was followed: then there is nothing
// to ask it. What changes there later is heard of, and looked at again.
func (r *Resolver) inPlace(key string, v store.Value) (rev int64, ok bool) {
	claims := r.claims(key, v)
	r.mu.Lock()
	defer r.mu.Unlock()
	v.Owner = r.cfg.Signer.Name()
	if !r.has(v.Owner+"/"+key, v) {
		return 0, false
	}
	for _, c := range claims {
		x := r.stored(c.key)
		if x == nil || x.err != nil || x.refused != nil || x.val.Owner != v.Owner || x.val.To != v.To || x.val.For != "" {
			return 0, false
		}
	}
	return r.values[v.Owner+"/"+key].kv.Modified, true
}

// giveUp are the deletions of those claims of a value of ours, as the store has it, that nothing of ours needs any more.
func (r *Resolver) giveUp(ctx context.Context, key string, old []byte) (ops []store.Op) {
	v, err := store.Peek(old)
	if err != nil {
		return nil
	}
	r.mu.Lock()
	want := maps.Clone(r.own.values)
	r.mu.Unlock()
	spare := map[string]bool{}
	for _, c := range r.claims(key, v) {
		spare[c.key] = true
	}
	need := func(key string) {
		if x := want[key]; x != nil && len(spare) > 0 {
			for _, c := range r.claims(key, x.Value) {
				delete(spare, c.key)
			}
		}
	}
	need(key) // first: most changes leave nothing to spare
	for k := range want {
		need(k)
	}
	for _, c := range slices.Sorted(maps.Keys(spare)) {
		ops = append(ops, r.ownClaim(ctx, c)...)
	}
	return ops
}

// free reports whether a claim can be made, or changed, at revision rev. held is what is there and may be replaced: our own,
// or one that is given to us; zero for none. The error wraps ErrTaken where it is somebody else's.
func (r *Resolver) free(ctx context.Context, key, what string) (rev int64, held store.Value, err error) {
	none := store.Value{}
	kv, err := r.cfg.Store.Get(ctx, key)
	if err == nil && kv.Modified == 0 {
		err = r.missed(key, what)
	}
	if err != nil || kv.Modified == 0 {
		return 0, none, err
	}
	self := r.cfg.Signer.Name()
	v, err := store.Open(key, kv.Value, r.cfg.Verifier)
	switch {
	case err == nil && v.For == "" && (v.Owner == self || v.To == self):
		return kv.Modified, v, nil
	case r.stolen(key, kv): // deleted first: a key that is created anew is a new claim, for those too who have seen only the other
		_, err := r.cfg.Store.Commit(ctx, []store.Cond{{Key: key, Rev: kv.Modified}}, []store.Op{{Key: key}})
		return 0, none, err
	case errors.Is(err, store.ErrUnknownOwner):
		return 0, none, fmt.Errorf("%s is %w: %s holds it, a node that is not known here yet", what, ErrTaken, v.Owner)
	case err != nil: // nobody's: whoever wrote it is no member
		return kv.Modified, none, nil
	case v.Expires != nil && time.Now().After(*v.Expires):
		return kv.Modified, none, nil
	case v.For != "":
		return 0, none, fmt.Errorf("%s is %w: %s has promised it to %s", what, ErrTaken, v.Owner, v.For)
	case v.To != "":
		return 0, none, fmt.Errorf("%s is %w: it belongs to %s, to whom %s has given it", what, ErrTaken, v.To, v.Owner)
	}
	return 0, none, fmt.Errorf("%s is %w: it belongs to %s", what, ErrTaken, v.Owner)
}

// withdraw deletes a value of ours and the claims that went with it.
func (r *Resolver) withdraw(ctx context.Context, key string) (int64, error) {
	full := r.cfg.Signer.Name() + "/" + key
	kv, err := r.cfg.Store.Get(ctx, full)
	if err != nil || kv.Modified == 0 {
		return kv.Modified, err
	}
	ops := append(r.giveUp(ctx, key, kv.Value), store.Op{Key: full})
	return r.cfg.Store.Commit(ctx, []store.Cond{{Key: full, Rev: kv.Modified}}, ops)
}

// ownClaim is the deletion of a claim, if we hold it.
func (r *Resolver) ownClaim(ctx context.Context, key string) []store.Op {
	kv, err := r.cfg.Store.Get(ctx, key)
	if err != nil || kv.Modified == 0 {
		return nil
	}
	if v, err := store.Open(key, kv.Value, r.cfg.Verifier); err != nil || v.Owner != r.cfg.Signer.Name() || v.For != "" {
		return nil
	}
	return []store.Op{{Key: key}}
}

// ClaimNode promises name and an IPv4 address to a node that is invited: addr, or the lowest free one if it is not
// valid. The promise holds until expires, and for as long as the node is known afterwards.
func (r *Resolver) ClaimNode(ctx context.Context, name string, addr netip.Addr, expires time.Time) (netip.Addr, error) {
	if r.cfg.Store == nil {
		return addr, errors.New("this node has no store, so it cannot make sure that nobody else gives the same address")
	}
	if err := CheckName(name, name); err != nil {
		return addr, err
	}
	if h := r.View().Host(name); h != nil {
		return addr, fmt.Errorf("the name %s is %w: it belongs to %s", name, ErrTaken, h.Owner)
	}
	if err := r.waitStore(ctx); err != nil {
		return addr, err
	}
	nameRev, _, err := r.free(ctx, store.NameClaimKey(name), "the name "+name)
	if err != nil {
		return addr, err
	}
	try := func(a netip.Addr) error {
		if err := checkAddrs([]netip.Addr{a}, r.cfg.Prefixes[:1]); err != nil {
			return err
		}
		if h, _ := r.View().Reverse(a); h != nil {
			return fmt.Errorf("address %s is %w: it belongs to %s", a, ErrTaken, r.View().FQDN(h))
		}
		key := store.AddrClaimKey(a.String())
		rev, held, err := r.free(ctx, key, "address "+a.String())
		if err == nil && held.Owner != "" {
			err = fmt.Errorf("address %s is %w: it was added here", a, ErrTaken)
		}
		if err != nil {
			return err
		}
		v := store.Value{Seq: uint64(time.Now().UnixMilli()), Name: name, For: name, Expires: &expires}
		ab, err1 := store.Seal(key, v, r.cfg.Signer)
		nb, err2 := store.Seal(store.NameClaimKey(name), v, r.cfg.Signer)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		_, err = r.cfg.Store.Commit(ctx, []store.Cond{{Key: key, Rev: rev}, {Key: store.NameClaimKey(name), Rev: nameRev}},
			[]store.Op{{Key: key, Value: ab}, {Key: store.NameClaimKey(name), Value: nb}})
		return err
	}
	if addr.IsValid() {
		err := try(addr)
		if errors.Is(err, store.ErrConflict) {
			err = fmt.Errorf("the name %s or address %s is %w: somebody else was first", name, addr, ErrTaken)
		}
		return addr, err
	}
	for a := r.cfg.Prefixes[0].Addr().Next(); r.cfg.Prefixes[0].Contains(a); a = a.Next() {
		err := try(a)
		if err == nil {
			return a, nil
		}
		if errors.Is(err, store.ErrConflict) {
			if nameRev, _, err = r.free(ctx, store.NameClaimKey(name), "the name "+name); err != nil {
				return addr, err
			}
			continue
		}
		if !errors.Is(err, ErrTaken) && a != lastAddr(r.cfg.Prefixes[0]) {
			return addr, err
		}
	}
	return addr, fmt.Errorf("no address of %s is free", r.cfg.Prefixes[0])
}

// clearMost is how many keys Clear deletes at once: etcd takes 128 operations by default.
const clearMost = 100

// Clear deletes what an evicted node has left in the store, and with it what was claimed by it or promised to it. It must
// not be a member any more.
func (r *Resolver) Clear(ctx context.Context, owner string) error {
	if r.cfg.Store == nil {
		return nil
	}
	if err := r.waitLoaded(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	state := r.state.State
	var ops []store.Op
	for key, v := range r.values {
		if strings.HasPrefix(key, owner+"/") || strings.HasPrefix(key, "_claims/") && (v.val.Owner == owner || v.val.For == owner) {
			ops = append(ops, store.Op{Key: key})
		}
	}
	r.mu.Unlock()
	if state != "ok" {
		return fmt.Errorf("the store is %s", state)
	}
	var rev int64
	for part := range slices.Chunk(ops, clearMost) {
		var err error
		if rev, err = r.cfg.Store.Commit(ctx, nil, part); err != nil {
			return err
		}
	}
	return r.WaitRevision(ctx, rev)
}
