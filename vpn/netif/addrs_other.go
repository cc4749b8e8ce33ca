// SPDX-License-Identifier: MIT

//go:build !linux

package netif

import (
	"fmt"
	"net"
	"net/netip"
)

// Addrs returns the machine's addresses at which others may reach it: global unicast, on interfaces that are up, other
// than those in not. Temporary IPv6 addresses (RFC 8981) are among them: nothing tells them apart here.
func Addrs(not []netip.Prefix) ([]netip.Addr, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("listing the machine's links: %w", err)
	}
	var out []netip.Addr
	for _, l := range links {
		if l.Flags&net.FlagUp == 0 {
			continue
		}
		addrs, err := l.Addrs()
		if err != nil {
			return nil, fmt.Errorf("listing the addresses of %s: %w", l.Name, err)
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				out = append(out, p.Addr())
			}
		}
	}
	return fit(out, not), nil
}
