// SPDX-License-Identifier: MIT

package project

import (
	"net/netip"

	"mesh.internal/mesh/resolver"
)

// Hosts is the layout of the old libnss-etcd: below every name, in all forms that programs may use, the bare text of an
// IPv4 address.
//
//	PATH/bkero                 10.11.0.2
//	PATH/bkero.mesh.internal   10.11.0.2
//
// A bare address cannot say who wrote it: those in the mesh's prefix are taken for ours.
func Hosts(path string, prefix netip.Prefix) Layout {
	return Layout{Prefix: path + "/", Encode: encodeHosts, Ours: func(value string) bool {
		a, err := netip.ParseAddr(value)
		return err == nil && prefix.Contains(a)
	}}
}

func encodeHosts(v *resolver.View) map[string]string {
	out := map[string]string{}
	for h := range v.All() {
		for _, a := range h.Addrs {
			if !a.Is4() {
				continue
			}
			for _, name := range v.Forms(h, nil) {
				out[name] = a.String()
			}
			break
		}
	}
	return out
}
