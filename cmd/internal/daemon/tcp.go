// SPDX-License-Identifier: MIT

package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"slices"

	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/join"
	"mesh.internal/mesh/vpn/stream"
	"mesh.internal/mesh/vpn/tcp"
)

// serveTCP serves at the mesh's TCP port: members where UDP is blocked, and strangers whom this node or another has invited.
func (d *daemon) serveTCP(ctx context.Context) error {
	l, err := tcp.Listen(ctx, d.cfg.Load().Port)
	if err != nil {
		return err
	}
	streams := d.node.Streams()
	protocols := map[string]tcp.Protocol{
		stream.Protocol:  {TLS: streams.TLS(), Serve: func(_ context.Context, c *tls.Conn) { streams.Serve(c) }},
		join.ViaProtocol: join.NewVia(d.id, d.node.Records, tcp.Direct, d.log).Protocol(),
	}
	if d.id.CA.Key != nil {
		s := &join.Server{Identity: d.id, Book: d.book, Records: d.node.Records, Evicted: d.node.Tombstones, Learn: d.node.Learn, Grants: d.grants, Log: d.log,
			Mesh: func() join.Mesh {
				c := d.cfg.Load()
				m := join.Mesh{Name: c.Mesh, Domain: c.Domain, Prefix: c.Prefix, Store: d.endpoints(), StorePrefix: c.Store.Access.Prefix, Inviter: c.Name, Port: uint16(c.Port)}
				if r := d.node.Roster(); r != nil && d.ownStore() {
					m.Roster = r.Bytes()
				}
				return m
			}}
		protocols[join.Protocol] = s.Protocol()
		protocols[""] = s.Protocol()
		protocols[join.InviteProtocol] = (&join.Desk{Identity: d.id, Book: d.book, Grants: d.grants, Invite: d.inviteFor, Log: d.log}).Protocol()
	}
	(&tcp.Acceptor{Protocols: protocols, Log: d.log}).Serve(ctx, l)
	return nil
}

// between returns addresses of members through which strangers may reach this node, those first that are up.
func (d *daemon) between() []string {
	up := map[string]bool{}
	for _, p := range d.node.Peers() {
		up[p.Name] = p.Endpoint.IsValid() || p.Stream
	}
	others := slices.Clone(d.node.Records()[1:]) // the first is our own
	slices.SortStableFunc(others, func(a, b *identity.Record) int {
		switch {
		case up[a.Node.Name] == up[b.Node.Name]:
			return 0
		case up[a.Node.Name]:
			return -1
		}
		return 1
	})
	return join.Members(others)
}

// unreachable says who cannot join with an invitation, if there is somebody; if it is everybody, as an error. public
// reports whether the inviter has an address that can be reached from everywhere.
func unreachable(t join.Token, public bool) (warning string, err error) {
	if public || len(t.Via) > 0 {
		return "", nil
	}
	const what = "neither this node nor another of the mesh has an address that can be reached from everywhere: set public = [\"HOST\"] in mesh.toml of one"
	if len(t.Endpoints) == 0 {
		return "", errors.New(what)
	}
	return "the new node can join only from the network that this machine is in: " + what, nil
}

// joinPort is what this node's records say of joining.
func joinPort(c *config.Config, id *identity.Identity) uint16 {
	if id.CA.Key == nil {
		return 0
	}
	return uint16(c.Port)
}
