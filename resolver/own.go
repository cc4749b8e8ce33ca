// SPDX-License-Identifier: MIT

package resolver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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
	known  bool // own.json was there: what it does not list is to be deleted from the store
	hosts  map[string]*ownHost
	addrs  []netip.Addr // the node's own
	record []byte
}

type ownHost struct {
	Host
	landed bool
	err    error // why it has not landed
}

func (o *ownState) waiting() []string {
	var out []string
	for _, h := range o.hosts {
		switch {
		case h.landed:
		case h.err != nil:
			out = append(out, h.Name+": "+h.err.Error())
		default:
			out = append(out, h.Name+": not in the store yet")
		}
	}
	slices.Sort(out)
	return out
}

// SetSelf says what this node publishes of itself.
func (r *Resolver) SetSelf(addrs []netip.Addr, record []byte) {
	r.mu.Lock()
	r.own.addrs, r.own.record = addrs, record
	r.mu.Unlock()
	poke(r.behind)
}

// AddHost adds a host below this node's ownership, or changes one that it has. The host is kept on disk; landed reports
// whether the store has it already, and so every other node within moments. Errors wrap ErrTaken where somebody else
// holds the name or an address.
func (r *Resolver) AddHost(ctx context.Context, h Host) (landed bool, err error) {
	self := r.cfg.Signer.Name()
	h.Owner, h.Node = self, false
	for _, n := range append([]string{h.Name}, h.Aliases...) {
		if err := CheckName(n, self); err != nil {
			return false, err
		}
		if other, _ := r.View().Lookup(n); other != nil && (other.Owner != self || other.Node) {
			return false, fmt.Errorf("the name %s is %w: it belongs to %s", n, ErrTaken, other.Owner)
		}
	}
	if err := checkAddrs(h.Addrs, r.cfg.Prefixes); err != nil {
		return false, err
	}
	for _, a := range h.Addrs {
		if other, _ := r.View().Reverse(a); other != nil && other.Owner != self {
			return false, fmt.Errorf("address %s is %w: it belongs to %s", a, ErrTaken, r.View().FQDN(other))
		}
	}
	r.mu.Lock()
	before := r.own.hosts[h.Name]
	mine := &ownHost{Host: h}
	r.own.hosts[h.Name] = mine
	err = r.saveOwn()
	r.mu.Unlock()
	if err != nil {
		return false, err
	}
	rev, err := r.reconcile(ctx)
	r.mu.Lock()
	landed, conflict := mine.landed, errors.Is(mine.err, ErrTaken)
	if conflict {
		err = mine.err
		if delete(r.own.hosts, h.Name); before != nil {
			r.own.hosts[h.Name] = before
		}
		err = errors.Join(err, r.saveOwn())
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

// RemoveHost removes a host that this node has added.
func (r *Resolver) RemoveHost(ctx context.Context, name string) (landed bool, err error) {
	r.mu.Lock()
	if r.own.hosts[name] == nil {
		r.mu.Unlock()
		if other, _ := r.View().Lookup(name); other != nil && other.Node {
			return false, fmt.Errorf("%s is a node, not a host that was added", name)
		} else if other != nil && other.Owner != r.cfg.Signer.Name() {
			return false, fmt.Errorf("%s was added on %s: remove it there", name, other.Owner)
		}
		return false, fmt.Errorf("no host %s was added here", name)
	}
	delete(r.own.hosts, name)
	err = r.saveOwn()
	r.mu.Unlock()
	if err != nil {
		return false, err
	}
	rev, err := r.reconcile(ctx)
	if err != nil {
		return false, nil // it is gone from own.json, and leaves the store when that is back
	}
	return true, r.WaitRevision(ctx, rev)
}

// saveOwn writes own.json. r.mu is held: the file is small and its order matters.
func (r *Resolver) saveOwn() error {
	list := []Host{}
	for _, h := range r.own.hosts {
		list = append(list, h.Host)
	}
	slices.SortFunc(list, func(a, b Host) int { return strings.Compare(a.Name, b.Name) })
	if err := writeJSON(r.ownFile(), list); err != nil {
		return fmt.Errorf("keeping the hosts added here on disk: %w", err)
	}
	r.own.known = true
	return nil
}

// write brings the store in line whenever it may be behind, until ctx ends.
func (r *Resolver) write(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.behind:
		}
		if _, err := r.reconcile(ctx); err != nil && ctx.Err() == nil {
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

// reconcile makes this node's part of the store what own says, as far as it can, and returns the last revision it made.
func (r *Resolver) reconcile(ctx context.Context) (int64, error) {
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
	self := r.cfg.Signer.Name()
	if !r.own.known { // a new disk: what the store has of ours is what should be
		for key, v := range r.values {
			if v.err == nil && strings.HasPrefix(key, self+"/hosts/") {
				r.own.hosts[v.val.Name] = &ownHost{Host: Host{Name: v.val.Name, Owner: self, Addrs: v.val.Addrs, Aliases: v.val.Aliases}}
			}
		}
		if err := r.saveOwn(); err != nil {
			r.mu.Unlock()
			return 0, err
		}
	}
	var gone []string
	for key, v := range r.values {
		name, ok := strings.CutPrefix(key, self+"/hosts/")
		if ok && r.own.hosts[name] == nil && v.kv.Modified != 0 {
			gone = append(gone, name)
		}
	}
	node := r.own
	want := make([]*ownHost, 0, len(r.own.hosts))
	for _, h := range r.own.hosts {
		want = append(want, h)
	}
	r.mu.Unlock()

	var last int64
	var errs []error
	note := func(rev int64, err error) {
		last = max(last, rev)
		errs = append(errs, err)
	}
	if node.record != nil {
		note(r.put(ctx, store.NodeKey(self), store.Value{Addrs: node.addrs, Record: node.record}, nil, nil))
	}
	for _, h := range want {
		rev, err := r.putHost(ctx, h.Host)
		r.mu.Lock()
		h.landed, h.err = err == nil, err
		r.mu.Unlock()
		if !errors.Is(err, ErrTaken) {
			note(rev, err)
		}
	}
	for _, name := range gone {
		note(r.dropHost(ctx, name))
	}
	return last, errors.Join(errs...)
}

// put writes a value of ours unless it is there already; more are changes that go with it.
func (r *Resolver) put(ctx context.Context, key string, v store.Value, conds []store.Cond, more []store.Op) (int64, error) {
	kv, err := r.cfg.Store.Get(ctx, key)
	if err != nil {
		return 0, err
	}
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
	return a.Owner == b.Owner && a.Name == b.Name && slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.Aliases, b.Aliases) && bytes.Equal(a.Record, b.Record)
}

// putHost writes a host with the claims that it needs, all or nothing.
func (r *Resolver) putHost(ctx context.Context, h Host) (int64, error) {
	var conds []store.Cond
	var more []store.Op
	claim := func(key, what string) error {
		rev, mine, err := r.free(ctx, key, what)
		if err != nil || mine {
			return err
		}
		b, err := store.Seal(key, store.Value{Seq: uint64(time.Now().UnixMilli()), Name: h.Name}, r.cfg.Signer)
		conds, more = append(conds, store.Cond{Key: key, Rev: rev}), append(more, store.Op{Key: key, Value: b})
		return err
	}
	for _, n := range append([]string{h.Name}, h.Aliases...) {
		if !strings.Contains(n, ".") {
			if err := claim(store.NameClaimKey(n), "the name "+n); err != nil {
				return 0, err
			}
		}
	}
	r.mu.Lock()
	own := r.own.addrs
	r.mu.Unlock()
	for _, a := range h.Addrs {
		if !slices.Contains(own, a) {
			if err := claim(store.AddrClaimKey(a.String()), "address "+a.String()); err != nil {
				return 0, err
			}
		}
	}
	return r.put(ctx, store.HostKey(h.Owner, h.Name), store.Value{Name: h.Name, Addrs: h.Addrs, Aliases: h.Aliases}, conds, more)
}

// free reports whether a claim can be made at revision rev, or is ours already. The error wraps ErrTaken otherwise.
func (r *Resolver) free(ctx context.Context, key, what string) (rev int64, mine bool, err error) {
	kv, err := r.cfg.Store.Get(ctx, key)
	if err != nil || kv.Modified == 0 {
		return 0, false, err
	}
	v, err := store.Open(key, kv.Value, r.cfg.Verifier)
	switch {
	case errors.Is(err, store.ErrUnknownOwner):
		return 0, false, fmt.Errorf("%s is %w: %s holds it, a node that is not known here yet", what, ErrTaken, v.Owner)
	case err != nil: // nobody's: whoever wrote it is no member
		return kv.Modified, false, nil
	case v.Expires != nil && time.Now().After(*v.Expires):
		return kv.Modified, false, nil
	case v.For != "":
		return 0, false, fmt.Errorf("%s is %w: %s has promised it to %s", what, ErrTaken, v.Owner, v.For)
	case v.Owner == r.cfg.Signer.Name():
		return kv.Modified, true, nil
	}
	return 0, false, fmt.Errorf("%s is %w: it belongs to %s", what, ErrTaken, v.Owner)
}

// dropHost deletes a host of ours and the claims that went with it.
func (r *Resolver) dropHost(ctx context.Context, name string) (int64, error) {
	self := r.cfg.Signer.Name()
	key := store.HostKey(self, name)
	kv, err := r.cfg.Store.Get(ctx, key)
	if err != nil || kv.Modified == 0 {
		return kv.Modified, err
	}
	conds, ops := []store.Cond{{Key: key, Rev: kv.Modified}}, []store.Op{{Key: key}}
	if v, err := store.Peek(kv.Value); err == nil {
		for _, n := range append([]string{name}, v.Aliases...) {
			ops = append(ops, r.ownClaim(ctx, store.NameClaimKey(n), name)...)
		}
		for _, a := range v.Addrs {
			ops = append(ops, r.ownClaim(ctx, store.AddrClaimKey(a.String()), name)...)
		}
	}
	return r.cfg.Store.Commit(ctx, conds, ops)
}

// ownClaim is the deletion of a claim, if we hold it for this host.
func (r *Resolver) ownClaim(ctx context.Context, key, host string) []store.Op {
	kv, err := r.cfg.Store.Get(ctx, key)
	if err != nil || kv.Modified == 0 {
		return nil
	}
	if v, err := store.Open(key, kv.Value, r.cfg.Verifier); err != nil || v.Owner != r.cfg.Signer.Name() || v.Name != host || v.For != "" {
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
	if h, _ := r.View().Lookup(name); h != nil {
		return addr, fmt.Errorf("the name %s is %w: it belongs to %s", name, ErrTaken, h.Owner)
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
		rev, mine, err := r.free(ctx, key, "address "+a.String())
		if err == nil && mine {
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
