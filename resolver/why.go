// SPDX-License-Identifier: MIT

package resolver

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"mesh.internal/mesh/resolver/store"
)

// Trace is how a name, or an address, comes to be what it is here.
type Trace struct {
	Name  string // relative, as the View knows it
	Host  *Host  // that it leads to; nil: none
	Known bool   // without a host: there are names below it
	Never error  // why nobody can have that name; nil: somebody could

	Said     *Said      // the value that says so; nil: a node's certificate, or nothing
	Claims   []Claim    // on the name, and on the address
	Lost     []Conflict // what else wanted the name
	Refused  []Refusal  // values for it that were not accepted
	Wanted   *Host      // what this node wants to be there and the store does not have
	Waiting  string     // why it does not
	Sharing  []string   // of an address: full names of other hosts that have it too
	State    StoreState
	Followed bool // the store has been read since this program began; otherwise what it said comes from the disk
}

// Said is a value of the store.
type Said struct {
	Key      string
	Owner    string
	Seq      uint64
	Created  int64 // revisions
	Modified int64
	LastSeen time.Time // if not zero: the store does not have it since it began anew, then
}

// At is when a value was signed, by its owner's clock.
func (s Said) At() time.Time { return time.UnixMilli(int64(s.Seq)) }

// Claim is who holds what all share.
type Claim struct {
	Key      string
	Owner    string
	To       string     // the node that it is given to
	For      string     // the node that it is promised to
	Expires  *time.Time // of a promise
	Modified int64
	LastSeen time.Time // as Said's
	Err      error     // why it counts for nothing
}

// Refusal is a value that was not accepted.
type Refusal struct {
	Key      string
	Modified int64 // 0 where an accepted value stays in its place
	Err      error
}

// mostRefused bounds the refusals of a Trace.
const mostRefused = 20

// Trace tells of a name in any of its forms, or of an address.
func (r *Resolver) Trace(asked string) Trace {
	v := r.View()
	var t Trace
	a, err := netip.ParseAddr(asked)
	isAddr := err == nil
	if isAddr {
		a = a.Unmap().WithZone("")
		t.Name = a.String()
		t.Host, t.Known = v.Reverse(a)
		for _, h := range v.hosts {
			if h != t.Host && slices.Contains(h.Addrs, a) {
				t.Sharing = append(t.Sharing, v.FQDN(h))
			}
		}
	} else {
		t.Name = strings.TrimSuffix(strings.ToLower(strings.TrimSuffix(asked, ".")), "."+v.Zone)
		if t.Host, t.Known = v.Lookup(asked); !t.Known {
			t.Never = CheckLabels(t.Name)
		}
	}
	names := []string{t.Name}
	if t.Host != nil && t.Host.Name != t.Name {
		names = append(names, t.Host.Name)
	}
	for _, c := range v.Conflicts {
		if slices.Contains(names, c.Name) {
			t.Lost = append(t.Lost, c)
		}
	}
	t.State = r.State()
	r.mu.Lock()
	defer r.mu.Unlock()
	t.Followed = r.followed
	if t.Host != nil && !t.Host.Node {
		t.Said = r.saidOf(t.Host)
	}
	for _, n := range names {
		key := store.NameClaimKey(n)
		if isAddr && n == t.Name {
			key = store.AddrClaimKey(n)
		}
		if c := r.values[key]; c != nil {
			t.Claims = append(t.Claims, Claim{key, c.val.Owner, c.val.To, c.val.For, c.val.Expires, c.kv.Modified, r.lastSeen[key], c.bad()})
		}
	}
	for key, x := range r.values {
		if err := x.bad(); err != nil && concerns(key, names) && len(t.Refused) < mostRefused {
			f := Refusal{Key: key, Err: err}
			if x.err != nil {
				f.Modified = x.kv.Modified
			}
			t.Refused = append(t.Refused, f)
		}
	}
	slices.SortFunc(t.Refused, func(a, b Refusal) int { return strings.Compare(a.Key, b.Key) })
	for _, n := range names {
		if own := r.own.values[kindHosts+"/"+n]; own != nil && !own.landed && t.Wanted == nil {
			h := hostOf(own.Value)
			h.Owner = r.cfg.Signer.Name()
			t.Wanted, t.Waiting = &h, own.why()
		}
	}
	return t
}

// saidOf finds the value that a host of the View was read from. r.mu is held.
func (r *Resolver) saidOf(h *Host) *Said {
	key := store.HostKey(h.Owner, h.Name)
	v := r.values[key]
	if by := r.giver(h.Name); by != "" {
		key = store.HostKey(by, h.Name)
		v = r.values[key]
	}
	if v == nil || v.err != nil && !errors.Is(v.err, store.ErrUnknownOwner) {
		return nil
	}
	return &Said{key, v.val.Owner, v.val.Seq, v.kv.Created, v.kv.Modified, r.lastSeen[key]}
}

// concerns reports whether a key is a host's, or a claim's, of one of these names or addresses.
func concerns(key string, names []string) bool {
	for _, n := range names {
		if strings.HasSuffix(key, "/hosts/"+n) || key == store.NameClaimKey(n) || key == store.AddrClaimKey(n) {
			return true
		}
	}
	return false
}
