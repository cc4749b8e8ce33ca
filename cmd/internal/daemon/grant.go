// SPDX-License-Identifier: MIT

package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/join"
	"mesh.internal/mesh/vpn/tcp"
)

// Who else may invite, which is kept where the mesh's key is.
func (d *daemon) handleGrants(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/grants", answer(d.listGrants))
	mux.HandleFunc("POST /v1/grants", answer(d.grant))
	mux.HandleFunc("DELETE /v1/grants/{name}", answer(d.revoke))
}

func (d *daemon) mayGrant() error {
	if d.id.CA.Key == nil {
		return errors.New("this node does not hold the mesh's key: run `mesh grant` and `mesh revoke` on the node where `mesh init` was run")
	}
	return nil
}

func (d *daemon) listGrants(*http.Request) (any, error) {
	if err := d.mayGrant(); err != nil {
		return nil, err
	}
	all, err := d.grants.All()
	out := api.Grants{Grants: []api.Grant{}}
	for _, g := range all {
		_, gone := d.record(g.Node, g.Serial)
		out.Grants = append(out.Grants, api.Grant{Node: g.Node, Below: g.Below, At: g.At, Void: gone})
	}
	return out, err
}

// record is that of a node; gone reports whether the node that has this name now, if any, has another certificate.
func (d *daemon) record(name, serial string) (r *identity.Record, gone bool) {
	all := d.node.Records()
	i := slices.IndexFunc(all, func(r *identity.Record) bool { return r.Node.Name == name })
	if i < 0 {
		return nil, true
	}
	return all[i], serial != "" && all[i].Node.Serial.String() != serial
}

func (d *daemon) grant(r *http.Request) (any, error) {
	var g api.Grant
	if err := json.NewDecoder(r.Body).Decode(&g); err != nil {
		return nil, fmt.Errorf("the request is malformed: %w", err)
	}
	if err := d.mayGrant(); err != nil {
		return nil, err
	}
	name := d.relative(g.Node)
	rec, _ := d.record(name, "")
	switch {
	case rec == nil:
		return nil, fmt.Errorf("there is no node %s: `mesh status` lists those that there are", name)
	case name == d.id.Node.Name:
		return nil, fmt.Errorf("%s is this node, which may invite anyway", name)
	}
	return struct{}{}, d.grants.Set(rec.Node, g.Below)
}

func (d *daemon) revoke(r *http.Request) (any, error) {
	if err := d.mayGrant(); err != nil {
		return nil, err
	}
	return struct{}{}, d.grants.Take(d.relative(r.PathValue("name")))
}

// inviteFor is join.Desk's Invite.
func (d *daemon) inviteFor(ctx context.Context, by identity.Node, q join.Request) (join.Reply, error) {
	inv, err := d.makeInvitation(ctx, api.Invite{Name: q.Name, Addr: q.Addr, Expires: q.Expires}, &by)
	return join.Reply{Token: inv.Token, Addr: inv.Addr, Expires: inv.Expires, Warning: inv.Warning}, err
}

// askInvitation asks the nodes that have the mesh's key for an invitation, one after the other.
func (d *daemon) askInvitation(ctx context.Context, q api.Invite) (api.Invitation, error) {
	if len(q.Subnets) > 0 {
		return api.Invitation{}, errors.New("routers of subnets are invited on the node where `mesh init` was run")
	}
	errs := []error{errors.New("this node may not invite by itself, and no node that holds the mesh's key made an invitation for it; it must be up (`mesh status`), and have said `mesh grant " + d.id.Node.Name + " invite`")}
	for _, r := range d.node.Records()[1:] {
		if r.Join == 0 {
			continue
		}
		a, err := join.Ask(ctx, tcp.Direct, d.id, r, join.Request{Name: d.relative(q.Name), Addr: q.Addr, Expires: q.Expires})
		if err == nil {
			return api.Invitation{Token: a.Token, Addr: a.Addr, Expires: a.Expires, Warning: a.Warning}, nil
		}
		errs = append(errs, err)
	}
	return api.Invitation{}, errors.Join(errs...)
}
