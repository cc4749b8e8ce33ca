// SPDX-License-Identifier: MIT

package netif

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeMetric makes every other route to the same network win over the mesh's: whoever is in it needs no tunnel.
const routeMetric = 3000

// SetRoutes makes the routes through an interface want and no others of those that it made before (was). It goes on
// after an error.
func SetRoutes(name string, was, want []netip.Prefix) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("finding the interface %s: %w", name, err)
	}
	route := func(p netip.Prefix) *netlink.Route {
		return &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(p), Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_STATIC, Priority: routeMetric}
	}
	var errs []error
	for _, p := range was {
		if !slices.Contains(want, p) {
			if err := netlink.RouteDel(route(p)); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("taking the route to %s away: %w", p, err))
			}
		}
	}
	for _, p := range want {
		if err := netlink.RouteReplace(route(p)); err != nil {
			errs = append(errs, fmt.Errorf("adding a route to %s through %s: %w", p, name, err))
		}
	}
	return errors.Join(errs...)
}
