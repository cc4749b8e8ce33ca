// SPDX-License-Identifier: MIT

package daemon

import (
	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/resolver"
)

func (d *daemon) hosts() api.Hosts {
	v := d.names.View()
	out := api.Hosts{Revision: v.Revision, Domain: v.Zone, Prefixes: v.Prefixes, Hosts: make([]api.Host, 0, len(v.Hosts()))}
	for i := range v.Hosts() {
		out.Hosts = append(out.Hosts, hostOf(v, &v.Hosts()[i]))
	}
	return out
}

// hostOf is a host of a View as clients see it.
func hostOf(v *resolver.View, h *resolver.Host) api.Host {
	out := api.Host{Name: h.Name, FQDN: v.FQDN(h), Owner: h.Owner, Node: h.Node, Addrs: h.Addrs, Aliases: h.Aliases, Names: v.Forms(h, nil)}
	for _, a := range h.Addrs {
		if back, ok := v.Reverse(a); ok && back.Name != h.Name {
			out.Shared = append(out.Shared, a)
		}
	}
	return out
}
