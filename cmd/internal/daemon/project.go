// SPDX-License-Identifier: MIT

package daemon

import (
	"strings"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/resolver/project"
	"mesh.internal/mesh/resolver/store"
)

// projections are what this node writes, when it is its turn, for programs that read etcd themselves: by layout.
func (d *daemon) projections(c *config.Config, st store.Store) map[string]*project.Writer {
	lock, ok := st.(store.Locker)
	if !ok {
		return nil
	}
	p := c.Projection()
	writer := func(path string, layouts ...project.Layout) *project.Writer {
		return project.New(project.Config{Name: strings.ReplaceAll(path[1:], "/", "-"), Locker: lock, Layouts: layouts,
			Store: func(prefix string) store.Store { return under(st, prefix) },
			View:  d.names.View, Changed: d.names.Changed, Fresh: d.fresh, Log: d.log})
	}
	out := map[string]*project.Writer{}
	if p.Has(config.LayoutSkyDNS) {
		out[config.LayoutSkyDNS] = writer(p.SkyDNS, project.SkyDNS{Path: p.SkyDNS, TTL: p.TTL, Server: c.Name}.Layouts(c.Domain, d.prefixes)...)
	}
	if p.Has(config.LayoutHosts) {
		out[config.LayoutHosts] = writer(p.Hosts, project.Hosts(p.Hosts, d.prefixes[0]))
	}
	return out
}

// fresh reports whether the View holds all that the store has.
func (d *daemon) fresh() bool {
	s := d.names.State()
	return s.State == "ok" && d.names.View().Revision >= s.Revision
}

// projected is how things stand with each layout.
func (d *daemon) projected() (out []api.Projection) {
	for _, layout := range []string{config.LayoutSkyDNS, config.LayoutHosts} {
		w := d.projecting[layout]
		if w == nil {
			continue
		}
		s := w.State()
		p := api.Projection{Layout: layout, State: "waiting", Keys: s.Keys, Error: s.Err, Foreign: s.Foreign}
		if s.Held {
			p.State = "writing"
		} else if s.Err != "" {
			p.State = "failing"
		}
		out = append(out, p)
	}
	return out
}
