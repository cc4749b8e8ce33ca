// SPDX-License-Identifier: MIT

package vpn

import (
	"context"
	"crypto/sha256"
	"net/netip"
	"sync"

	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/lan"
	"mesh.internal/mesh/vpn/netif"
	"mesh.internal/mesh/vpn/portmap"
)

// discover asks routers for mappings and looks for nodes on the same links, as configured, until ctx ends. What is found
// is a suggestion: the link uses an address when it has answered.
func (n *Node) discover(ctx context.Context, wg *sync.WaitGroup) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cfg.PortMap {
		secret := sha256.Sum256(append([]byte("mesh port mapping "), n.cfg.Identity.WG.Bytes()...))
		n.mapper = portmap.New(portmap.Config{Port: uint16(n.cfg.Port), TCP: true, Secret: secret[:], Log: n.cfg.Log,
			Changed: func() { poke(n.relink) },
			Gateways: func() (out []portmap.Gateway, err error) {
				found, err := netif.Gateways(n.cfg.Interface)
				for _, g := range found {
					out = append(out, portmap.Gateway(g))
				}
				return out, err
			}})
		mapper := n.mapper
		wg.Go(func() { mapper.Run(ctx) })
	}
	if n.cfg.LAN {
		finder, err := lan.New(lan.Config{Identity: n.cfg.Identity, Interface: n.cfg.Interface, Port: uint16(n.cfg.Port), Log: n.cfg.Log,
			Record: func() []byte { return n.Records()[0].Bytes() }, Found: n.found})
		if err != nil {
			return err
		}
		n.finder = finder
		wg.Go(func() { finder.Run(ctx) })
	}
	return nil
}

// found takes a node that was heard of on the same link.
func (n *Node) found(r *identity.Record, at netip.AddrPort) {
	if _, err := n.learn(r.Bytes(), ""); err != nil {
		n.cfg.Log.Debug("a node on the same network is not accepted", "peer", r.Node.Name, "endpoint", at, "err", err)
		return
	}
	n.Suggest(r.Node.Name, at)
}

// mapped are the addresses at which routers let others in. n.mu is held.
func (n *Node) mapped() (out []netip.AddrPort) {
	if n.mapper == nil {
		return nil
	}
	for _, m := range n.mapper.Mapped() {
		if !m.TCP {
			out = append(out, m.External)
		}
	}
	return out
}

// pokeDiscovery tells that this machine's addresses have changed.
func (n *Node) pokeDiscovery() {
	n.mu.Lock()
	mapper, finder := n.mapper, n.finder
	n.mu.Unlock()
	if mapper != nil {
		mapper.Poke()
	}
	if finder != nil {
		finder.Poke()
	}
}
