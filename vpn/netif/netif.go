// SPDX-License-Identifier: MIT

// Package netif is the one place that changes the machine's network: it makes the TUN interface, gives it addresses,
// and watches the machine's own addresses and routes, through netlink. Nothing shells out. What Create makes is gone
// when the device is closed. Watch's goroutine ends with its context.
package netif

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/tun"
)

// Create makes the TUN interface name with addrs, each with the length of its prefix, and takes it up.
func Create(name string, mtu int, addrs []netip.Prefix) (tun.Device, error) {
	if _, err := netlink.LinkByName(name); err == nil {
		return nil, fmt.Errorf("the interface %s exists already: another meshd may be running; else choose another name (interface = … in mesh.toml)", name)
	}
	dev, err := tun.CreateTUN(name, mtu)
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), "does not exist"): // wireguard-go's is but text
		return nil, fmt.Errorf("/dev/net/tun does not exist: load the tun module (modprobe tun), or give the container the device: %w", err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("making the interface %s is not permitted: run as root, or with CAP_NET_ADMIN: %w", name, err)
	default:
		return nil, fmt.Errorf("making the interface %s: %w", name, err)
	}
	if err := configure(name, mtu, addrs); err != nil {
		dev.Close()
		return nil, err
	}
	return dev, nil
}

// gsoMaxSize is the most bytes of a super-packet: 45 packets of MTU 1380, which are 64,980 bytes with what WireGuard and
// a relay add to them.
const gsoMaxSize = 61000

func configure(name string, mtu int, addrs []netip.Prefix) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("finding the interface %s: %w", name, err)
	}
	if err := netlink.LinkSetMTU(l, mtu); err != nil {
		return fmt.Errorf("setting the MTU of %s: %w", name, err)
	}
	// What the kernel hands over at once is sealed and still fits into one UDP send, of 64 KiB. Older kernels cannot.
	netlink.LinkSetGSOMaxSize(l, gsoMaxSize)
	for _, a := range addrs {
		na := &netlink.Addr{IPNet: ipNet(a)}
		if a.Addr().Is6() {
			na.Flags = syscall.IFA_F_NODAD // nobody else can have it: it comes from our key
		}
		err := netlink.AddrReplace(l, na)
		if a.Addr().Is6() && errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) && a.Addr().Is6() || errors.Is(err, syscall.EAFNOSUPPORT) {
			continue // IPv6 is switched off on this machine
		}
		if err != nil {
			return fmt.Errorf("giving %s the address %s: %w", name, a, err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil { // the kernel adds the routes of the addresses' prefixes
		return fmt.Errorf("taking %s up: %w", name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Addrs returns the machine's addresses at which others may reach it: global unicast, on interfaces that are up, other
// than those in not.
func Addrs(not []netip.Prefix) ([]netip.Addr, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("listing the machine's addresses: %w", err)
	}
	var out []netip.Addr
	for _, n := range list {
		a, ok := netip.AddrFromSlice(n.IP)
		a = a.Unmap()
		const unfit = syscall.IFA_F_TEMPORARY | syscall.IFA_F_DEPRECATED | syscall.IFA_F_TENTATIVE | syscall.IFA_F_DADFAILED
		if !ok || !a.IsGlobalUnicast() || a.Is6() && n.Flags&unfit != 0 || slices.ContainsFunc(not, func(p netip.Prefix) bool { return p.Contains(a) }) {
			continue
		}
		out = append(out, a)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}

// Watch calls f after every change of the machine's addresses or links, until ctx ends. f must not block long.
func Watch(ctx context.Context, f func()) error {
	addrs, links := make(chan netlink.AddrUpdate, 16), make(chan netlink.LinkUpdate, 16)
	if err := netlink.AddrSubscribe(addrs, ctx.Done()); err != nil {
		return fmt.Errorf("watching the machine's addresses: %w", err)
	}
	if err := netlink.LinkSubscribe(links, ctx.Done()); err != nil {
		return fmt.Errorf("watching the machine's links: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			for range addrs { // closed by the subscriptions
			}
			for range links {
			}
			return nil
		case _, ok := <-addrs:
			if !ok && ctx.Err() == nil {
				return errors.New("the kernel ended the notifications of addresses")
			}
			f()
		case _, ok := <-links:
			if !ok && ctx.Err() == nil {
				return errors.New("the kernel ended the notifications of links")
			}
			f()
		}
	}
}

// Overlap returns a route of the machine that overlaps p, default routes and those of the interface not apart.
func Overlap(p netip.Prefix, not string) (route string, found bool, err error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return "", false, fmt.Errorf("listing the machine's routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		ones, _ := r.Dst.Mask.Size()
		a, ok := netip.AddrFromSlice(r.Dst.IP)
		if !ok || ones == 0 {
			continue
		}
		q := netip.PrefixFrom(a.Unmap(), ones)
		name := "?"
		if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			name = l.Attrs().Name
		}
		if q.Overlaps(p) && name != not {
			return fmt.Sprintf("%s dev %s", q, name), true, nil
		}
	}
	return "", false, nil
}
