// SPDX-License-Identifier: MIT

package daemon

import (
	"context"
	"slices"

	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/join"
	"mesh.internal/mesh/vpn/tcp"
)

// serveTCP serves at the mesh's TCP port: strangers who were invited by this node or another.
func (d *daemon) serveTCP(ctx context.Context) error {
	l, err := tcp.Listen(ctx, d.cfg.Load().Port)
	if err != nil {
		return err
	}
	protocols := map[string]tcp.Protocol{
		join.ViaProtocol: join.NewVia(d.id, d.node.Records, tcp.Direct, d.log).Protocol(),
	}
	if d.id.CA.Key != nil {
		s := &join.Server{Identity: d.id, Book: d.book, Records: d.node.Records, Learn: d.node.Learn, Log: d.log,
			Mesh: func() join.Mesh {
				c := d.cfg.Load()
				return join.Mesh{Name: c.Mesh, Domain: c.Domain, Prefix: c.Prefix, Store: endpoints(c, d.id), Inviter: c.Name, Port: uint16(c.Port)}
			}}
		protocols[join.Protocol] = s.Protocol()
		protocols[""] = s.Protocol()
	}
	(&tcp.Acceptor{Protocols: protocols, Log: d.log}).Serve(ctx, l)
	return nil
}

// between returns addresses of members through which strangers may reach this node, those first that are up.
func (d *daemon) between() []string {
	up := map[string]bool{}
	for _, p := range d.node.Peers() {
		up[p.Name] = p.Endpoint.IsValid()
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

// joinPort is what this node's records say of joining.
func joinPort(c *config.Config, id *identity.Identity) uint16 {
	if id.CA.Key == nil {
		return 0
	}
	return uint16(c.Port)
}
