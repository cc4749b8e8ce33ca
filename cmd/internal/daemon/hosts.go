// SPDX-License-Identifier: MIT

package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/resolver"
	"mesh.internal/mesh/resolver/dnsd"
)

// What people do with hosts and see of them.
func (d *daemon) handleHosts(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/hosts", answer(func(*http.Request) (any, error) { return d.hosts(), nil }))
	mux.HandleFunc("GET /v1/zone", answer(func(*http.Request) (any, error) {
		c, err := d.cfg.Load().DNSServer()
		return api.Zone{Text: dnsd.ZoneFile(d.names.View(), time.Duration(c.TTL)*time.Second)}, err
	}))
	mux.HandleFunc("GET /v1/hosts/{name}", answer(d.showHost))
	mux.HandleFunc("GET /v1/watch", d.watch)
	mux.HandleFunc("GET /v1/why/{name}", answer(d.why))
	mux.HandleFunc("PUT /v1/hosts", answer(d.addHost))
	mux.HandleFunc("PATCH /v1/hosts/{name}", answer(d.changeHost))
	mux.HandleFunc("DELETE /v1/hosts/{name}", answer(d.removeHost))
}

func (d *daemon) hosts() api.Hosts {
	v := d.names.View()
	out := api.Hosts{Revision: v.Revision, Domain: v.Zone, Prefixes: v.Prefixes, Hosts: make([]api.Host, 0, len(v.Hosts()))}
	for _, h := range v.Hosts() {
		out.Hosts = append(out.Hosts, hostOf(v, h))
	}
	for _, h := range v.ServiceHosts() {
		out.Services = append(out.Services, hostOf(v, h))
	}
	return out
}

// hostOf is a host of a View as clients see it.
func hostOf(v *resolver.View, h *resolver.Host) api.Host {
	out := api.Host{Name: h.Name, FQDN: v.FQDN(h), Owner: h.Owner, Node: h.Node, Addrs: h.Addrs, Aliases: h.Aliases, Meta: h.Meta, Names: v.Forms(h, nil)}
	for _, a := range h.Addrs {
		if back, ok := v.Reverse(a); ok && back.Name != h.Name {
			out.Shared = append(out.Shared, a)
		}
	}
	return out
}

// relative is a name without the zone, in lower case.
func (d *daemon) relative(name string) string {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	return strings.TrimSuffix(name, "."+d.cfg.Load().Domain)
}

func (d *daemon) relativeAll(names []string) []string {
	var out []string
	for _, n := range names {
		out = append(out, d.relative(n))
	}
	return out
}

func (d *daemon) addHost(r *http.Request) (any, error) {
	var h api.Host
	if err := json.NewDecoder(r.Body).Decode(&h); err != nil {
		return nil, fmt.Errorf("the request is malformed: %w", err)
	}
	landed, err := d.names.AddHost(r.Context(), resolver.Host{Name: d.relative(h.Name), Addrs: h.Addrs, Aliases: d.relativeAll(h.Aliases), Meta: h.Meta})
	return api.Change{Landed: landed}, err
}

func (d *daemon) removeHost(r *http.Request) (any, error) {
	landed, err := d.names.RemoveHost(r.Context(), d.relative(r.PathValue("name")))
	return api.Change{Landed: landed}, err
}

// changeHost changes parts of a host. Aliases may be given in any form, as names may.
func (d *daemon) changeHost(r *http.Request) (any, error) {
	var c api.HostChange
	if err := json.NewDecoder(r.Body).Decode(&c); err != nil {
		return nil, fmt.Errorf("the request is malformed: %w", err)
	}
	c.Add.Aliases, c.Remove.Aliases = d.relativeAll(c.Add.Aliases), d.relativeAll(c.Remove.Aliases)
	if c.Set.Aliases != nil {
		all := d.relativeAll(*c.Set.Aliases)
		c.Set.Aliases = &all
	}
	name := d.relative(r.PathValue("name"))
	missing := d.notHere(name)
	landed, err := d.names.ChangeHost(r.Context(), name, func(h resolver.Host) (resolver.Host, error) {
		if len(h.Addrs) == 0 && !c.Create {
			return h, missing
		}
		return change(h, c)
	})
	return api.Change{Landed: landed}, err
}

// notHere is the error of those who want to change a host that was not added on this node.
func (d *daemon) notHere(name string) error {
	h := d.names.View().Host(name)
	switch {
	case h == nil:
		return fmt.Errorf("no host %s was added here: `mesh host add %s ADDRESS` adds one", name, name)
	case h.Name != name:
		return fmt.Errorf("%s is an alias of %s: name that", name, h.Name)
	case h.Node:
		return fmt.Errorf("%s is a node, not a host that was added", name)
	}
	return fmt.Errorf("%s was added on %s: change it there", name, h.Owner)
}

// change is a host with a change made to it; the host itself is as before.
func change(h resolver.Host, c api.HostChange) (resolver.Host, error) {
	h.Addrs, h.Aliases, h.Meta = slices.Clone(h.Addrs), slices.Clone(h.Aliases), maps.Clone(h.Meta)
	if len(c.Set.Addrs) > 0 {
		h.Addrs = nil
		c.Add.Addrs = append(slices.Clone(c.Set.Addrs), c.Add.Addrs...)
	}
	if c.Set.Aliases != nil {
		h.Aliases = nil
		c.Add.Aliases = append(slices.Clone(*c.Set.Aliases), c.Add.Aliases...)
	}
	for _, a := range c.Remove.Addrs {
		if !slices.Contains(h.Addrs, a) {
			return h, fmt.Errorf("%s does not have the address %s", h.Name, a)
		}
	}
	h.Addrs = slices.DeleteFunc(h.Addrs, func(a netip.Addr) bool { return slices.Contains(c.Remove.Addrs, a) })
	for _, n := range c.Remove.Aliases {
		if !slices.Contains(h.Aliases, n) {
			return h, fmt.Errorf("%s does not have the alias %s", h.Name, n)
		}
	}
	h.Aliases = slices.DeleteFunc(h.Aliases, func(n string) bool { return slices.Contains(c.Remove.Aliases, n) })
	for _, a := range c.Add.Addrs {
		if !slices.Contains(h.Addrs, a) {
			h.Addrs = append(h.Addrs, a)
		}
	}
	for _, n := range c.Add.Aliases {
		if n != h.Name && !slices.Contains(h.Aliases, n) {
			h.Aliases = append(h.Aliases, n)
		}
	}
	for k, v := range c.Meta {
		if h.Meta == nil {
			h.Meta = map[string]string{}
		}
		if h.Meta[k] = v; v == "" {
			delete(h.Meta, k)
		}
	}
	switch {
	case len(h.Addrs) > 0:
		return h, nil
	case len(c.Remove.Addrs) > 0:
		return h, fmt.Errorf("%s would have no address any more: `mesh host rm %s` removes it", h.Name, h.Name)
	}
	return h, errors.New("a new host needs an address")
}

func (d *daemon) showHost(r *http.Request) (any, error) {
	name := d.relative(r.PathValue("name"))
	v := d.names.View()
	var out api.HostShown
	h := v.Host(name)
	if h != nil {
		name = h.Name
		out.Host = hostOf(v, h)
	}
	wanted, why, waits := d.names.Waiting(name)
	switch {
	case waits && h == nil:
		out.Host, out.Waiting = hostOf(v, &wanted), why
	case waits:
		out.Waiting = why
	case h == nil:
		return nil, fmt.Errorf("there is no host %s: `mesh hosts` lists those that there are", name)
	}
	for _, g := range v.Groups() {
		if slices.ContainsFunc(g.Hosts, func(x *resolver.Host) bool { return x.Name == name }) {
			out.Groups = append(out.Groups, g.Name)
		}
	}
	return out, nil
}
