// SPDX-License-Identifier: MIT

package daemon

import (
	"context"
	"net/netip"
	"strings"

	"mesh.internal/mesh/resolver/consul"
	"mesh.internal/mesh/resolver/health"
)

// serveConsul answers Consul's HTTP API where the configuration says. Without it the rest goes on.
func (d *daemon) serveConsul(ctx context.Context) error {
	c := d.cfg.Load()
	addrs, err := c.ConsulAddrs()
	if err != nil || len(addrs) == 0 {
		return err
	}
	cfg := consul.Config{Addrs: addrs, Self: c.Name, View: d.names.View, Changed: d.names.Changed, Near: d.nearness(), Log: d.log}
	if c.Reports {
		cfg.Report = func(check, state, output string) error {
			return d.offers.checks.Report(check, health.State(state), output)
		}
	}
	var missing []string
	cfg.Problem = func(_ netip.AddrPort, err error) { // comes from Run, one after the other
		missing = append(missing, err.Error())
		d.warn("consul", strings.Join(missing, "; "))
	}
	if err := consul.New(cfg).Run(ctx); err != nil && ctx.Err() == nil {
		d.warn("consul", err.Error())
	}
	return nil
}
