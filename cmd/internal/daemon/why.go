// SPDX-License-Identifier: MIT

package daemon

import (
	"net/http"
	"path"
	"strings"
	"time"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/resolver"
)

func (d *daemon) why(r *http.Request) (any, error) {
	y := d.explain(r.PathValue("name"))
	y.Store.Endpoints = d.endpoints()
	if h := y.Host; h != nil && h.Node {
		y.Source, y.Record = "certificate", d.recordOf(h.Name)
	}
	return y, nil
}

// explain is what the resolver knows of a name.
func (d *daemon) explain(asked string) api.Why {
	t := d.names.Trace(asked)
	out := api.Why{Asked: asked, Form: formOf(t, asked, d.cfg.Load().Domain), Sharing: t.Sharing, Now: time.Now(), Store: storeOf(t.State)}
	if t.Never != nil {
		out.Never = t.Never.Error()
	}
	v := d.names.View()
	if t.Host != nil {
		h := hostOf(v, t.Host)
		out.Host = &h
	}
	for _, s := range v.StoodFor(asked) {
		out.Services = append(out.Services, serviceOf(s))
	}
	switch {
	case t.Host == nil || t.Host.Node:
	case t.Followed:
		out.Source = "store"
	default:
		out.Source = "disk"
	}
	if s := t.Said; s != nil {
		out.Said = &api.Said{Key: s.Key, Owner: s.Owner, Sequence: s.Seq, At: s.At(), Created: s.Created, Modified: s.Modified, LastSeen: unlessZero(s.LastSeen)}
	}
	for _, x := range t.Claims {
		out.Claims = append(out.Claims, api.Claim{What: path.Base(x.Key), Owner: x.Owner, To: x.To, For: x.For, Expires: x.Expires, Modified: x.Modified, LastSeen: unlessZero(x.LastSeen), Void: text(x.Err)})
	}
	for _, x := range t.Lost {
		out.Lost = append(out.Lost, api.Lost{Name: x.Name, Owner: x.Owner, Reason: x.Reason})
	}
	for _, x := range t.Refused {
		out.Refused = append(out.Refused, api.Refused{Key: x.Key, Revision: x.Modified, Reason: text(x.Err)})
	}
	if t.Wanted != nil {
		out.Waiting = &api.HostShown{Host: hostOf(v, t.Wanted), Waiting: t.Waiting}
	}
	return out
}

func unlessZero(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// formOf is in which form a name was asked for.
func formOf(t resolver.Trace, asked, zone string) string {
	asked = strings.ToLower(strings.TrimSuffix(asked, "."))
	full := strings.HasSuffix(asked, "."+zone)
	switch {
	case t.Host == nil && asked == zone:
		return "zone"
	case t.Host == nil && t.Known:
		return "between"
	case t.Host == nil:
		return "none"
	case t.Name != t.Host.Name && full:
		return "full alias"
	case full:
		return "full name"
	case t.Name == t.Host.Name:
		return "short name"
	}
	for _, a := range t.Host.Aliases {
		if a == t.Name {
			return "alias"
		}
	}
	return "address"
}

// recordOf is what gossip has brought of a node.
func (d *daemon) recordOf(name string) *api.Record {
	for _, r := range d.node.Records() {
		if r.Node.Name == name {
			return &api.Record{Node: name, Sequence: r.Seq, At: time.UnixMilli(int64(r.Seq)), Issued: r.Node.Issued(), Addrs: r.Node.Addrs}
		}
	}
	return nil
}
