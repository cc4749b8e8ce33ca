// SPDX-License-Identifier: MIT

package netif

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
)

// Gateways returns the default router for IPv4 and the one for IPv6, of several the one with the smallest metric. Routes
// over the interface not, or without a router, do not count; nor does an IPv6 router where the machine has no global
// address (RFC 4291 section 2.5.4) other than private ones.
func Gateways(not string) ([]Gateway, error) {
	var out []Gateway
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteList(nil, family)
		if err != nil {
			return nil, fmt.Errorf("listing the machine's routes: %w", err)
		}
		slices.SortStableFunc(routes, func(a, b netlink.Route) int { return cmp.Compare(a.Priority, b.Priority) })
		for _, r := range routes {
			if r.Dst != nil {
				if ones, _ := r.Dst.Mask.Size(); ones != 0 {
					continue
				}
			}
			if g, ok := gateway(r, family, not); ok {
				out = append(out, g)
				break
			}
		}
	}
	return out, nil
}

func gateway(r netlink.Route, family int, not string) (Gateway, bool) {
	via, ok := netip.AddrFromSlice(r.Gw)
	l, err := netlink.LinkByIndex(r.LinkIndex)
	if !ok || err != nil || l.Attrs().Name == not {
		return Gateway{}, false
	}
	via = via.Unmap()
	if via.IsLinkLocalUnicast() {
		via = via.WithZone(l.Attrs().Name)
	}
	if src, ok := netip.AddrFromSlice(r.Src); ok && family == netlink.FAMILY_V4 {
		return Gateway{via, src.Unmap()}, true
	}
	addrs, err := netlink.AddrList(l, family)
	if err != nil {
		return Gateway{}, false
	}
	var first netip.Addr
	for _, n := range addrs {
		a, ok := netip.AddrFromSlice(n.IP)
		a = a.Unmap()
		const unfit = syscall.IFA_F_TEMPORARY | syscall.IFA_F_DEPRECATED | syscall.IFA_F_TENTATIVE | syscall.IFA_F_DADFAILED
		if !ok || !a.IsGlobalUnicast() || a.Is6() && (n.Flags&unfit != 0 || a.IsPrivate()) {
			continue
		}
		if ones, _ := n.Mask.Size(); via.Zone() != "" || netip.PrefixFrom(a, ones).Masked().Contains(via) {
			return Gateway{via, a}, true
		}
		if !first.IsValid() {
			first = a
		}
	}
	return Gateway{via, first}, first.IsValid()
}
