// SPDX-License-Identifier: MIT

package export

import (
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
)

// ansible is what a dynamic inventory of Ansible prints: a script that runs `mesh hosts --format ansible` is one. Hosts go by
// their full names. Names of groups and variables begin with mesh_, so that no member can put its hosts into a group of
// the playbooks' own, or set a variable that Ansible itself acts upon.
func ansible(m Mesh) map[string]any {
	type group struct {
		Hosts    []string `json:"hosts,omitempty"`
		Children []string `json:"children,omitempty"`
	}
	vars := map[string]map[string]any{}
	groups := map[string]*group{"mesh": {}}
	put := func(name, host string) {
		if groups[name] == nil {
			groups[name] = &group{}
			groups["mesh"].Children = append(groups["mesh"].Children, name)
		}
		groups[name].Hosts = append(groups[name].Hosts, host)
	}
	in := groupsOf(m)
	for _, h := range m.Hosts.Hosts {
		vars[h.FQDN] = map[string]any{"mesh_name": h.Name, "mesh_addrs": texts(h.Addrs), "mesh_owner": h.Owner, "mesh_node": h.Node,
			"mesh_aliases": append([]string{}, h.Aliases...), "mesh_groups": append([]string{}, in[h.FQDN]...), "mesh_meta": unsafe(h.Meta)}
		kind := "mesh_hosts"
		if h.Node {
			kind = "mesh_nodes"
		}
		put(kind, h.FQDN)
		put("mesh_owner_"+word(h.Owner), h.FQDN)
		for _, g := range in[h.FQDN] {
			if name := "mesh_group_" + word(g); groups[name] == nil || !slices.Contains(groups[name].Hosts, h.FQDN) {
				put(name, h.FQDN)
			}
		}
	}
	slices.Sort(groups["mesh"].Children)
	out := map[string]any{"_meta": map[string]any{"hostvars": vars}}
	for name, g := range groups {
		out[name] = g
	}
	return out
}

// unsafe are metadata that Ansible does not take for templates, which could run programs where it runs: what has a brace is
// marked as its AnsibleJSONDecoder knows it.
func unsafe(meta map[string]string) map[string]any {
	out := map[string]any{}
	for k, v := range meta {
		out[k] = v
		if strings.Contains(v, "{") {
			out[k] = map[string]string{"__ansible_unsafe": v}
		}
	}
	return out
}

// target is an entry of Prometheus' file_sd_configs and http_sd_configs.
type target struct {
	Targets []string          `json:"targets"`
	Labels  map[string]string `json:"labels"`
}

// prometheus names every host by its first address, which needs no resolver, and keeps the name as the instance. All other
// labels are for relabelling: Prometheus drops what begins with __meta_ afterwards, so no member can set a label of a
// series.
func prometheus(m Mesh, port int) []target {
	out := []target{}
	in := groupsOf(m)
	// A list is between commas, so that a regular expression finds an element wherever it stands.
	list := func(all []string) string { return "," + strings.Join(all, ",") + "," }
	for _, h := range m.Hosts.Hosts {
		if len(h.Addrs) == 0 {
			continue
		}
		labels := map[string]string{"instance": h.FQDN, "__meta_mesh_name": h.Name, "__meta_mesh_owner": h.Owner, "__meta_mesh_node": strconv.FormatBool(h.Node),
			"__meta_mesh_addrs": list(texts(h.Addrs)), "__meta_mesh_aliases": list(h.Aliases), "__meta_mesh_groups": list(in[h.FQDN])}
		for _, k := range slices.Sorted(maps.Keys(h.Meta)) {
			labels["__meta_mesh_meta_"+word(k)] = h.Meta[k]
		}
		out = append(out, target{[]string{net.JoinHostPort(h.Addrs[0].String(), strconv.Itoa(port))}, labels})
	}
	return out
}
