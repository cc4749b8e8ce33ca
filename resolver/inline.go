// SPDX-License-Identifier: MIT

package resolver

import "mesh.internal/mesh/resolver/store"

// inLine reports whether what the store was last seen to have is this value of ours already, with all claims that it needs.
// Asking for each value anew would cost three messages for everything that was ever added here, at every change. What the
// store says meanwhile comes by follow, which has us look again.
func (r *Resolver) inLine(key string, v store.Value) bool {
	claims := r.claims(key, v)
	self := r.cfg.Signer.Name()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range claims {
		if has := r.values[c.key]; has == nil || has.err != nil || has.val.Owner != self || has.val.For != "" || has.val.Expires != nil {
			return false
		}
	}
	v.Owner = self
	return r.has(self+"/"+key, v)
}

// has reports whether the store was last seen to have v, put there by its owner last. r.mu is held.
func (r *Resolver) has(key string, v store.Value) bool {
	has := r.values[key]
	return has != nil && has.err == nil && same(has.val, v) && has.val.Seq >= r.seqs[key]
}
