// SPDX-License-Identifier: MIT

package resolver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"mesh.internal/mesh/resolver/store"
)

// Whose a shared short name is. A claim says so, which its holder has signed. A name is kept without a host of that name by a
// value OWNER/names/NAME, which needs the claim as a host does. It changes hands in two steps, either of which is one
// transaction, and between which readers take the new owner for the owner already:
//
//	the giver    writes "to": the receiver into the value and all its claims, under its own signature
//	the receiver whenever it comes to see that, writes the value below its own name, and the claims, under its own
//	the giver    deletes its value when it sees the receiver's claim
//
// A value with "to" counts for nothing without the giver's claim with the same "to", so what the giver leaves behind does
// not come back. Until the receiver has taken it, the giver can take it back.

// mostTaken bounds what a node takes from one other without being asked.
const mostTaken = 1000

// holder is whose a claim is: "" where there is none that counts, or where it is only a promise. r.mu is held.
func (r *Resolver) holder(claimKey string) string {
	c := r.values[claimKey]
	switch {
	case c == nil || c.err != nil || c.val.For != "":
		return ""
	case c.val.To != "":
		return c.val.To
	}
	return c.val.Owner
}

// giver is the node that has given a name to another, which has not taken it yet; "" for none. r.mu is held.
func (r *Resolver) giver(name string) string {
	c := r.values[store.NameClaimKey(name)]
	if c == nil || c.err != nil || c.val.To == "" {
		return ""
	}
	return c.val.Owner
}

// static is a host as the value under key says it. r.mu is held.
func (r *Resolver) static(key string, v *value) (s Static, ok bool) {
	s = Static{Host: hostOf(v.val), Standing: Standing{Created: r.created(key, v)}}
	if to := v.val.To; to != "" {
		c := r.values[store.NameClaimKey(v.val.Name)]
		if c == nil || c.err != nil || c.val.Owner != v.val.Owner || c.val.To != to || r.nodes[to].Name == "" {
			return s, false
		}
		s.Owner = to
	}
	for i, n := range append([]string{s.Name}, s.Aliases...) {
		claim := store.NameClaimKey(n)
		switch by := r.holder(claim); {
		case by == s.Owner:
			s.Claimed = s.Claimed || i == 0
		case by != "" && r.before(claim, key, v):
			if s.Taken == nil {
				s.Taken = map[string]string{}
			}
			s.Taken[n] = by
		}
	}
	return s, true
}

// handedOver holds a changed claim against the one that was there: only its holder may give it away, and not by something
// that it said earlier. What was deleted meanwhile, so that the key was created anew, is a new claim, and promises to
// invited nodes may be taken over when they have expired.
func handedOver(key string, old, v *value) error {
	if !strings.HasPrefix(key, "_claims/") || old == nil || old.err != nil || old.kv.Created != v.kv.Created || old.val.For != "" || old.val.Expires != nil {
		return nil
	}
	switch {
	case v.err != nil && !errors.Is(v.err, store.ErrUnknownOwner):
		return nil // refused, or of one who was evicted
	case v.val.Owner == old.val.Owner && v.val.Seq < old.val.Seq:
		return errors.New("an older value has been put back")
	case v.val.Owner != old.val.Owner && v.val.Owner != old.val.To:
		return fmt.Errorf("%s wants it, and its holder %s has not given it away", v.val.Owner, old.val.Owner)
	}
	return nil
}

// KeepName claims a shared short name for this node, also without a host of that name, until ReleaseName.
func (r *Resolver) KeepName(ctx context.Context, name string) (landed bool, err error) {
	self := r.cfg.Signer.Name()
	if err := shortName(name); err != nil {
		return false, err
	}
	if other := r.View().Host(name); other != nil && (other.Owner != self || other.Node) {
		return false, fmt.Errorf("the name %s is %w: it belongs to %s", name, ErrTaken, other.Owner)
	}
	return r.want(ctx, kindNames+"/"+name, func(v store.Value) (store.Value, error) {
		v.Name, v.To = name, ""
		return v, nil
	})
}

// ReleaseName gives up a name that KeepName has claimed. still is the host of this node that has it nevertheless, "" for
// none: then the name stays claimed.
func (r *Resolver) ReleaseName(ctx context.Context, name string) (landed bool, still string, err error) {
	landed, added, err := r.unwant(ctx, kindNames+"/"+name)
	if !added {
		return false, "", fmt.Errorf("the name %s is not kept here: `mesh why %s` says whose it is", name, name)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, v := range r.own.values {
		if strings.HasPrefix(key, kindHosts+"/") && (v.Name == name || slices.Contains(v.Aliases, name)) {
			still = v.Name
		}
	}
	return landed, still, err
}

// Kept are the names that this node keeps, sorted, with the node that each is being given to, if any.
func (r *Resolver) Kept() (out [][2]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, v := range r.own.values {
		if strings.HasPrefix(key, kindNames+"/") {
			out = append(out, [2]string{v.Name, v.To})
		}
	}
	slices.SortFunc(out, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	return out
}

// GiveName hands a shared short name over to another node, with the host that has it if there is one. The node need not be
// there. Given to this node itself, it is taken back, if the other has not taken it.
func (r *Resolver) GiveName(ctx context.Context, name, to string) (landed bool, err error) {
	self := r.cfg.Signer.Name()
	if err := shortName(name); err != nil {
		return false, err
	}
	if err := r.waitLoaded(ctx); err != nil {
		return false, err
	}
	r.mu.Lock()
	known, key := r.nodes[to].Name != "", kindHosts+"/"+name
	if r.own.values[key] == nil {
		key = kindNames + "/" + name
	}
	v := r.own.values[key]
	r.mu.Unlock()
	switch {
	case v == nil:
		return false, fmt.Errorf("the name %s is not this node's: `mesh why %s` says whose it is", name, name)
	case !known && to != self:
		return false, fmt.Errorf("there is no node %s: `mesh status` lists those that there are", to)
	case to == self && v.To == "":
		return false, fmt.Errorf("the name %s is this node's already", name)
	}
	return r.want(ctx, key, func(v store.Value) (store.Value, error) {
		if v.To = to; to == self {
			v.To = ""
			return v, nil
		}
		for _, a := range v.Aliases {
			if strings.Contains(a, ".") {
				return v, fmt.Errorf("the alias %s lies below this node's own name and cannot go with it: `mesh host alias rm %s %s` first", a, name, a)
			}
		}
		for _, a := range v.Addrs {
			if slices.Contains(r.own.addrs, a) {
				return v, fmt.Errorf("%s has this node's own address %s, which cannot go with it", name, a)
			}
		}
		delete(r.own.values, kindNames+"/"+name) // the host's claim is the name's
		return v, nil
	})
}

// shortName reports whether a name is one that all share.
func shortName(name string) error {
	if strings.Contains(name, ".") {
		return fmt.Errorf("the name %s lies below a node's, and is that node's: only names of one label are claimed and given", name)
	}
	return CheckLabels(name)
}

// accept makes ours what others have given to this node, and reports whether there was anything. It is taken for what
// should be; what it needs is claimed when it is written. r.mu is held.
func (r *Resolver) accept() (changed bool) {
	self := r.cfg.Signer.Name()
	given := map[string]int{} // by giver
	for key := range r.own.taken {
		giver, _, _ := strings.Cut(key, "/")
		given[giver]++
	}
	for key, x := range r.values {
		if x.val.To != self || x.err != nil {
			continue
		}
		giver, rest, _ := strings.Cut(key, "/")
		kind, name, _ := strings.Cut(rest, "/")
		if giver == self || kind != kindHosts && kind != kindNames || r.own.values[rest] != nil || r.own.taken[key] >= x.val.Seq {
			continue
		}
		c := r.stored(store.NameClaimKey(name))
		if c == nil || c.err != nil || c.val.Owner != giver || c.val.To != self {
			continue
		}
		v := said(x.val)
		v.To = ""
		err := shortName(name)
		if err == nil && kind == kindHosts {
			h := hostOf(v)
			h.Owner = self
			err = r.valid(h)
		}
		if _, again := r.own.taken[key]; !again {
			if given[giver] >= mostTaken {
				continue
			}
			given[giver]++
		}
		r.own.taken[key], changed = x.val.Seq, true // also of what is not taken, so that it is said once
		if err != nil {
			r.cfg.Log.Warn("something that was given to this node is not taken", "key", key, "err", err)
			continue
		}
		r.cfg.Log.Info("something was given to this node", "key", key)
		r.own.values[rest] = &ownValue{Value: v}
	}
	return changed
}

// parted reports whether a value that is given away is its receiver's by now, or somebody else's at any rate.
func (r *Resolver) parted(ctx context.Context, v store.Value) bool {
	key := store.NameClaimKey(v.Name)
	kv, err := r.cfg.Store.Get(ctx, key)
	if err != nil || kv.Modified == 0 {
		return false
	}
	c, err := store.Open(key, kv.Value, r.cfg.Verifier)
	return err == nil && c.Owner != r.cfg.Signer.Name() && !r.stolen(key, kv)
}

// stolen reports whether a claim was ours when somebody else put another in its place.
func (r *Resolver) stolen(key string, kv store.KV) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.stored(key)
	return x != nil && x.err == nil && x.kv.Created == kv.Created && r.holder(key) == r.cfg.Signer.Name()
}
