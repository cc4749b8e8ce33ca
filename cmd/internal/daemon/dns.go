// SPDX-License-Identifier: MIT

package daemon

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/resolver/dnsd"
)

// serveDNS answers DNS on the mesh addresses and where the configuration says. Without it the rest goes on.
func (d *daemon) serveDNS(ctx context.Context) error {
	if d.cfg.Load().DNSSetup != "" {
		d.warn("dns_setup", "dns_setup in mesh.toml is an old key: say setup in the table [dns], and take it away")
	}
	c, err := d.cfg.Load().DNSServer()
	if err != nil {
		d.warn("dns", err.Error())
		return nil
	}
	cfg := dnsConfig(c)
	cfg.View, cfg.Changed, cfg.Log = d.names.View, d.names.Changed, d.log
	if c.Near {
		cfg.Near = d.nearness()
	}
	if i, err := net.InterfaceByName(d.cfg.Load().Interface); err == nil {
		has, _ := i.Addrs()
		for _, a := range has {
			if p, err := netip.ParsePrefix(a.String()); err == nil && slices.Contains(d.id.Node.Addrs, p.Addr()) {
				cfg.Addrs = append(cfg.Addrs, netip.AddrPortFrom(p.Addr(), 53))
			}
		}
	}
	cfg.Addrs = append(cfg.Addrs, c.Listen...)
	var missing []string
	cfg.Problem = func(a netip.AddrPort, err error) { // comes from Run, one after the other
		missing = append(missing, err.Error())
		d.warn("dns", strings.Join(missing, "; "))
	}
	if err := dnsd.New(cfg).Run(ctx); err != nil && ctx.Err() == nil {
		d.warn("dns", err.Error())
	}
	return nil
}

// dnsConfig is what the configuration file says to the DNS server.
func dnsConfig(c config.DNSServer) dnsd.Config {
	cfg := dnsd.Config{Allow: c.Allow, SingleLabels: c.SingleLabels, TTL: time.Duration(c.TTL) * time.Second, Rate: c.Rate, Secondaries: c.Secondaries}
	for zone, servers := range c.Forward {
		cfg.Forward = append(cfg.Forward, dnsd.Forward{Zone: zone, Servers: servers})
	}
	return cfg
}

// nearness is the measured round trip to a node, negative where there is none; 0 to this one. It asks the tunnels at most once a
// second.
func (d *daemon) nearness() func(node string) time.Duration {
	var mu sync.Mutex // guards the rest
	var at time.Time
	var far map[string]time.Duration
	return func(node string) time.Duration {
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); far == nil || now.Sub(at) > time.Second {
			at, far = now, map[string]time.Duration{d.id.Node.Name: 0}
			for _, p := range d.node.Peers() {
				if p.RTT > 0 {
					far[p.Name] = p.RTT
				}
			}
		}
		if rtt, ok := far[node]; ok {
			return rtt
		}
		return -1
	}
}
