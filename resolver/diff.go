// SPDX-License-Identifier: MIT

package resolver

import (
	"iter"
	"maps"
	"slices"
)

// Diff yields the hosts in which b differs from a, by name: before is nil for one that is new, after for one that is gone.
func Diff(a, b *View) iter.Seq2[*Host, *Host] {
	return func(yield func(before, after *Host) bool) {
		x, y := a.hosts, b.hosts
		for len(x) > 0 || len(y) > 0 {
			var before, after *Host
			if len(y) == 0 || len(x) > 0 && x[0].Name <= y[0].Name {
				before = x[0]
			}
			if len(x) == 0 || len(y) > 0 && y[0].Name <= x[0].Name {
				after = y[0]
			}
			if before != nil {
				x = x[1:]
			}
			if after != nil {
				y = y[1:]
			}
			if before == after || before != nil && after != nil && before.same(after) {
				continue
			}
			if !yield(before, after) {
				return
			}
		}
	}
}

func (h *Host) same(o *Host) bool {
	return h.Name == o.Name && h.Owner == o.Owner && h.Node == o.Node && slices.Equal(h.Addrs, o.Addrs) && slices.Equal(h.Aliases, o.Aliases) && maps.Equal(h.Meta, o.Meta)
}
