// SPDX-License-Identifier: MIT

package vpn

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"mesh.internal/mesh/vpn/netif"
)

// move follows changes of this machine's addresses.
func (n *Node) move(ctx context.Context, moved <-chan struct{}) {
	last, _ := n.cfg.Locals()
	for {
		select {
		case <-ctx.Done():
			return
		case <-moved:
		}
		if !sleep(ctx, settleFor) { // changes come in bursts
			return
		}
		now, err := n.cfg.Locals()
		if err != nil || slices.Equal(now, last) {
			continue
		}
		last = now
		n.mu.Lock()
		n.announce(0)
		clear(n.trials) // who could not be reached from there may be from here
		l := n.link
		n.mu.Unlock()
		n.cfg.Log.Info("this machine's addresses have changed", "addrs", now)
		l.Moved()
		n.pokeDiscovery()
	}
}

// resolve looks public names of nodes up in the public DNS, never through this machine's NSS.
func (n *Node) resolve(ctx context.Context) {
	r := &net.Resolver{PreferGo: true}
	for wait := time.Second; sleep(ctx, wait); wait = resolveEvery {
		for _, rec := range n.Records() {
			if rec.Node.Name == n.self {
				continue
			}
			var found []netip.AddrPort
			for _, h := range rec.Hosts {
				host, port, err := net.SplitHostPort(h)
				p, err2 := strconv.ParseUint(port, 10, 16)
				if err != nil || err2 != nil {
					continue
				}
				call, cancel := context.WithTimeout(ctx, 5*time.Second)
				addrs, err := r.LookupNetIP(call, "ip", host)
				cancel()
				if err != nil {
					n.cfg.Log.Debug("a public name does not resolve", "peer", rec.Node.Name, "endpoint", h, "err", err)
				}
				for _, a := range addrs {
					found = append(found, netip.AddrPortFrom(a.Unmap(), uint16(p)))
				}
			}
			if len(found) > 0 {
				n.mu.Lock()
				if m := n.members[rec.Node.Name]; m != nil {
					m.hosts = found[:min(len(found), 4)]
					n.refresh(rec.Node.Name)
				}
				n.mu.Unlock()
			}
		}
	}
}

// route gives the kernel routes to subnets, until ctx ends. The interface takes them with it.
func (n *Node) route(ctx context.Context) {
	var was []netip.Prefix
	for {
		n.mu.Lock()
		want := n.outside()
		n.mu.Unlock()
		if !slices.Equal(was, want) {
			if err := netif.SetRoutes(n.cfg.Interface, was, want); err != nil {
				n.cfg.Log.Warn("some subnets cannot be reached", "err", err)
			}
			was = want
		}
		select {
		case <-ctx.Done():
			return
		case <-n.rerouted:
		}
	}
}

// sleep waits for d and reports whether ctx goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
