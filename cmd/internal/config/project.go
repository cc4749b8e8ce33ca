// SPDX-License-Identifier: MIT

package config

import (
	"fmt"
	"slices"
	"strings"
)

// Project says for which programs that read etcd themselves this node writes the names in their layout: the keys
// project… of mesh.toml.
type Project struct {
	Layouts []string `toml:"project,omitempty" comment:"Write the names for programs that read etcd themselves: \"skydns\" (CoreDNS), \"hosts\" (libnss-etcd)."`
	SkyDNS  string   `toml:"project_skydns,omitempty" comment:"Where to, and for how many seconds CoreDNS's clients may keep them."`
	Hosts   string   `toml:"project_hosts,omitempty"`
	TTL     int      `toml:"project_ttl,omitempty"`
}

// The layouts that there are.
const (
	LayoutSkyDNS = "skydns"
	LayoutHosts  = "hosts"
)

// Has reports whether a layout is written.
func (p Project) Has(layout string) bool { return slices.Contains(p.Layouts, layout) }

// withDefaults is p with what is not set.
func (p Project) withDefaults() Project {
	if p.SkyDNS == "" {
		p.SkyDNS = "/skydns"
	}
	if p.Hosts == "" {
		p.Hosts = "/hosts"
	}
	if p.TTL == 0 {
		p.TTL = 60
	}
	return p
}

// Projection is what is written and where to, complete.
func (c *Config) Projection() Project { return c.Project.withDefaults() }

// check returns the key that is wrong and why. prefix is the mesh's own in the store.
func (p Project) check(prefix string) (string, error) {
	for i, l := range p.Layouts {
		if l != LayoutSkyDNS && l != LayoutHosts || slices.Contains(p.Layouts[:i], l) {
			return "project", fmt.Errorf("%q is not \"skydns\" or \"hosts\", each once", l)
		}
	}
	full := p.withDefaults()
	for _, x := range []struct{ key, path string }{{"project_skydns", full.SkyDNS}, {"project_hosts", full.Hosts}} {
		if len(x.path) < 2 || len(x.path) > 200 || x.path[0] != '/' || strings.HasSuffix(x.path, "/") || strings.Contains(x.path, "//") ||
			strings.ContainsFunc(x.path, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return x.key, fmt.Errorf("%q is not a path like /skydns, with a slash before and none behind", x.path)
		}
		if dir := x.path + "/"; strings.HasPrefix(dir, prefix) || strings.HasPrefix(prefix, dir) {
			return x.key, fmt.Errorf("%q and the mesh's own keys below %s would get mixed up", x.path, prefix)
		}
	}
	if a, b := full.SkyDNS+"/", full.Hosts+"/"; p.Has(LayoutSkyDNS) && p.Has(LayoutHosts) && (strings.HasPrefix(a, b) || strings.HasPrefix(b, a)) {
		return "project_hosts", fmt.Errorf("%q and %q would get mixed up", full.Hosts, full.SkyDNS)
	}
	if p.TTL < 0 || p.TTL > 86400 {
		return "project_ttl", fmt.Errorf("%d is not from 1 to 86400 seconds", p.TTL)
	}
	return "", nil
}
