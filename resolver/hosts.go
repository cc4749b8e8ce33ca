// SPDX-License-Identifier: MIT

package resolver

import (
	"context"
	"fmt"

	"mesh.internal/mesh/resolver/store"
)

// mostParts bounds the aliases and addresses of a host, each of which may have a claim: etcd takes 128 operations at once.
const mostParts = 120

// AddHost adds a host below this node's ownership, or puts it in the place of one that it has; see ChangeHost.
func (r *Resolver) AddHost(ctx context.Context, h Host) (landed bool, err error) {
	return r.ChangeHost(ctx, h.Name, func(Host) (Host, error) { return h, nil })
}

// ChangeHost keeps what change makes of a host of this node, which is without addresses if there is none of that name. The
// host is kept on disk; landed reports whether the store has it already, and so every other node within moments. Errors
// wrap ErrTaken where somebody else holds a name or an address. change must not call the Resolver, nor change in place
// what the host refers to.
func (r *Resolver) ChangeHost(ctx context.Context, name string, change func(Host) (Host, error)) (landed bool, err error) {
	return r.want(ctx, kindHosts+"/"+name, func(v store.Value) (store.Value, error) {
		v.Name, v.Owner = name, r.cfg.Signer.Name()
		h, err := change(hostOf(v))
		if err != nil {
			return v, err
		}
		h.Name, h.Owner, h.Node = name, v.Owner, false
		return valueOf(h), r.mayHave(h)
	})
}

// mayHave reports whether this node may have a host, as far as is known.
func (r *Resolver) mayHave(h Host) error {
	if err := r.valid(h); err != nil {
		return err
	}
	view := r.View()
	for _, n := range append([]string{h.Name}, h.Aliases...) {
		if other := view.Host(n); other != nil && (other.Owner != h.Owner || other.Node) {
			return fmt.Errorf("the name %s is %w: it belongs to %s", n, ErrTaken, other.Owner)
		}
	}
	for _, a := range h.Addrs {
		if other, _ := view.Reverse(a); other != nil && other.Owner != h.Owner {
			return fmt.Errorf("address %s is %w: it belongs to %s", a, ErrTaken, view.FQDN(other))
		}
	}
	return nil
}

// valid reports whether a host keeps to all bounds.
func (r *Resolver) valid(h Host) error {
	size := 0
	for _, n := range append([]string{h.Name}, h.Aliases...) {
		if err := CheckName(n, h.Owner); err != nil {
			return err
		}
		size += namesSize(n, r.cfg.Zone)
	}
	if size > maxNames {
		return fmt.Errorf("%s has too many aliases: %d bytes in all their forms, at most %d", h.Name, size, maxNames)
	}
	if n := len(h.Aliases) + len(h.Addrs); n > mostParts {
		return fmt.Errorf("%s has %d aliases and addresses, at most %d together are allowed", h.Name, n, mostParts)
	}
	if err := checkAddrs(h.Addrs, r.cfg.Prefixes); err != nil {
		return err
	}
	return CheckMeta(h.Meta)
}

// RemoveHost removes a host that this node has added.
func (r *Resolver) RemoveHost(ctx context.Context, name string) (landed bool, err error) {
	other := r.View().Host(name)
	r.mu.Lock()
	v := r.own.values[kindHosts+"/"+name]
	r.mu.Unlock()
	if v != nil && v.To != "" {
		return false, fmt.Errorf("%s was given to %s: `mesh host give %s %s` takes it back, if %s has not taken it yet", name, v.To, name, r.cfg.Signer.Name(), v.To)
	}
	switch landed, added, err := r.unwant(ctx, kindHosts+"/"+name); {
	case added:
		return landed, err
	case other != nil && other.Node:
		return false, fmt.Errorf("%s is a node, not a host that was added", name)
	case other != nil && other.Owner != r.cfg.Signer.Name():
		return false, fmt.Errorf("%s was added on %s: remove it there", name, other.Owner)
	}
	return false, fmt.Errorf("no host %s was added here", name)
}

// Waiting is a host of this node that the store does not have, and why; ok is false where there is none of that name.
func (r *Resolver) Waiting(name string) (h Host, why string, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.own.values[kindHosts+"/"+name]
	if v == nil || v.landed {
		return h, "", false
	}
	h = hostOf(v.Value)
	h.Owner = r.cfg.Signer.Name()
	return h, v.why(), true
}
