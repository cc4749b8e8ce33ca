// SPDX-License-Identifier: MIT

// Package netif is the one place that changes the machine's network: it makes the TUN interface, gives it addresses,
// and watches the machine's own addresses. What Create makes is gone when the device is closed. Watch's goroutine ends
// with its context.
//
// On Linux it speaks netlink and runs no program. On darwin and FreeBSD ifconfig(8) and route(8) set addresses and
// routes, as wg-quick(8) has them do, and a routing socket is read; on Windows the IP Helper functions are called
// (wireguard-windows' winipcfg). Only what is for Linux has been run.
package netif

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.zx2c4.com/wireguard/tun"
)

// Create makes the TUN interface name with addrs, each with the length of its prefix, and takes it up.
func Create(name string, mtu int, addrs []netip.Prefix) (tun.Device, error) {
	if _, err := net.InterfaceByName(name); err == nil {
		return nil, fmt.Errorf("the interface %s exists already: another meshd may be running; else choose another name (interface = … in mesh.toml)", name)
	}
	dev, err := create(name, mtu)
	if err != nil {
		return nil, err
	}
	if err := configure(dev, name, mtu, addrs); err != nil {
		dev.Close()
		return nil, err
	}
	return dev, nil
}

// fit returns those of the addresses at which others may reach the machine, sorted.
func fit(addrs []netip.Addr, not []netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		a = a.Unmap()
		if a.IsGlobalUnicast() && !slices.ContainsFunc(not, func(p netip.Prefix) bool { return p.Contains(a) }) {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// route is one of the machine's.
type route struct {
	to  netip.Prefix
	dev string
}

// Overlap returns a route of the machine that overlaps p, default routes and those of the interface not apart.
func Overlap(p netip.Prefix, not string) (found string, is bool, err error) {
	all, err := routes()
	if err != nil {
		return "", false, fmt.Errorf("listing the machine's routes: %w", err)
	}
	for _, r := range all {
		if r.to.Bits() > 0 && r.to.Overlaps(p) && r.dev != not {
			return fmt.Sprintf("%s dev %s", r.to, r.dev), true, nil
		}
	}
	return "", false, nil
}
