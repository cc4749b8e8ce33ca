// SPDX-License-Identifier: MIT

package resolver

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"mesh.internal/mesh/resolver/store"
)

// A store that begins anew (its only member has lost its disk; what few had of it, was recovered) lacks values that
// nobody has deleted. They stay as last seen: they resolve as before, and State and Trace say so. One of them goes when
// the store has something under its key; when its owner, who publishes its own value last, has done so later than the
// value, and since then for a while nothing of what is missing has come; or after lastSeenFor. What the store has goes
// before what was last seen: a name or claim that somebody else has by then is the other's.

const (
	settleIn    = time.Minute         // after its own value has come an owner may still repeat what failed
	lastSeenFor = 30 * 24 * time.Hour // how long the values of one that does not come are kept
)

// LastSeen is what the store does not have since it began anew.
type LastSeen struct {
	Names  int       `json:"names"`  // hosts and groups
	Owners []string  `json:"owners"` // whose they are: from these nothing, or not all, has come since then
	Since  time.Time `json:"since"`
}

// anew reports whether a load is of another store than was seen before: it has not come as far, or a key came to be in it at
// a time at which it was seen to be another one. r.mu is held.
func (r *Resolver) anew(kvs []store.KV, rev int64) bool {
	if rev < r.rev {
		return true
	}
	return slices.ContainsFunc(kvs, func(kv store.KV) bool {
		v := r.stored(kv.Key)
		if v == nil {
			return false
		}
		was := v.kv
		if v.refused != nil {
			was = v.later
		}
		return kv.Created != was.Created && kv.Created <= r.rev || kv.Modified < was.Modified
	})
}

// stored is what the store has under a key, as far as it was followed; nil for nothing. r.mu is held.
func (r *Resolver) stored(key string) *value {
	if _, gone := r.lastSeen[key]; gone {
		return nil
	}
	return r.values[key]
}

// begin takes all that is known for last seen, until it is found in the store. r.mu is held.
func (r *Resolver) begin(now time.Time) {
	for key, v := range r.values {
		if v.err != nil && !errors.Is(v.err, store.ErrUnknownOwner) {
			delete(r.values, key)
		} else if _, already := r.lastSeen[key]; !already {
			r.lastSeen[key] = now
			v.later, v.refused = store.KV{}, nil
		}
	}
	r.stale, r.unkept = nil, nil
	r.cfg.Log.Warn("the store has begun anew; what it lacks stays as last seen until its owners publish it again", "values", len(r.lastSeen))
}

// found notes that the store has a key. r.mu is held.
func (r *Resolver) found(key string) {
	if len(r.lastSeen) == 0 {
		return
	}
	owner, node := strings.CutSuffix(key, "/node")
	if _, was := r.lastSeen[key]; was {
		delete(r.lastSeen, key)
		owner = r.values[key].val.Owner
	} else if !node {
		return
	}
	r.heard[owner] = time.Now()
}

// forget lets go what was last seen and has had its time. r.mu is held.
func (r *Resolver) forget(now time.Time) {
	r.forgetAt = time.Time{}
	for key, since := range r.lastSeen {
		v := r.values[key]
		due := since.Add(lastSeenFor)
		if owner, _, _ := strings.Cut(key, "/"); key == store.HealthKey(owner) {
			due = since.Add(settleIn) // it was to go with its owner
		} else if v != nil {
			node := r.stored(store.NodeKey(v.val.Owner))
			if at, ok := r.heard[v.val.Owner]; ok && node != nil && node.err == nil && node.val.Seq > v.val.Seq {
				due = at.Add(settleIn)
			}
		}
		if v == nil || errors.Is(v.err, store.ErrEvicted) || !now.Before(due) {
			r.drop(key)
		} else if r.forgetAt.IsZero() || due.Before(r.forgetAt) {
			r.forgetAt = due
		}
	}
}

// drop lets go what was last seen of a key. r.mu is held.
func (r *Resolver) drop(key string) {
	delete(r.lastSeen, key)
	delete(r.values, key)
	r.renew(key)
	poke(r.unsaved)
}

// later is when forget has something to do, nil for never.
func (r *Resolver) later() <-chan time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.forgetAt.IsZero() {
		return nil
	}
	return time.After(time.Until(r.forgetAt))
}

// created is the revision that decides between two who want a name: what was last seen comes after what the store has.
func (r *Resolver) created(key string, v *value) int64 {
	if _, gone := r.lastSeen[key]; gone {
		return v.kv.Created + 1<<62
	}
	return v.kv.Created
}

// before reports whether the claim under a key came before a value of another did. r.mu is held.
func (r *Resolver) before(claimKey, key string, v *value) bool {
	return r.created(claimKey, r.values[claimKey]) < r.created(key, v)
}

// missing is what State tells of all that was last seen. r.mu is held.
func (r *Resolver) missing() *LastSeen {
	if len(r.lastSeen) == 0 {
		return nil
	}
	out := &LastSeen{}
	for key, since := range r.lastSeen {
		v := r.values[key]
		if v == nil || v.err != nil {
			continue
		}
		if out.Since.IsZero() || since.Before(out.Since) {
			out.Since = since
		}
		switch key {
		case store.HostKey(v.val.Owner, v.val.Name), store.GroupKey(v.val.Owner, v.val.Name):
			out.Names++
		}
		if !slices.Contains(out.Owners, v.val.Owner) {
			out.Owners = append(out.Owners, v.val.Owner)
		}
	}
	slices.Sort(out.Owners)
	if len(out.Owners) == 0 {
		return nil
	}
	return out
}

// missed is the error of who wants what the store, since it began anew, does not know as somebody else's.
func (r *Resolver) missed(key, what string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	since, gone := r.lastSeen[key]
	v, self := r.values[key], r.cfg.Signer.Name()
	if !gone || v == nil || v.err != nil || v.val.Owner == self || v.val.To == self || v.val.Expires != nil && time.Now().After(*v.val.Expires) {
		return nil
	}
	return fmt.Errorf("%s is %w: %s had it when the store began anew (%s), and has not been heard of since", what, ErrTaken, v.val.Owner, since.UTC().Format(time.DateTime))
}
