// SPDX-License-Identifier: MIT

package netif

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/tun"
)

func create(name string, mtu int) (tun.Device, error) {
	dev, err := tun.CreateTUN(name, mtu)
	switch {
	case err == nil:
		return dev, nil
	case errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), "does not exist"): // wireguard-go's is but text
		return nil, fmt.Errorf("/dev/net/tun does not exist: load the tun module (modprobe tun), or give the container the device: %w", err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("making the interface %s is not permitted: run as root, or with CAP_NET_ADMIN: %w", name, err)
	}
	return nil, fmt.Errorf("making the interface %s: %w", name, err)
}

// gsoMaxSize is the most bytes of a super-packet: 45 packets of MTU 1380, which are 64,980 bytes with what WireGuard and
// a relay add to them.
const gsoMaxSize = 61000

func configure(_ tun.Device, name string, mtu int, addrs []netip.Prefix) error {
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
		const unfit = syscall.IFA_F_TEMPORARY | syscall.IFA_F_DEPRECATED | syscall.IFA_F_TENTATIVE | syscall.IFA_F_DADFAILED
		if a, ok := netip.AddrFromSlice(n.IP); ok && (a.Unmap().Is4() || n.Flags&unfit == 0) {
			out = append(out, a)
		}
	}
	return fit(out, not), nil
}

// Watch calls f when it has begun to watch, and after every change of the machine's addresses or links, until ctx ends.
// f must not block long.
func Watch(ctx context.Context, f func()) error {
	addrs, links := make(chan netlink.AddrUpdate, 16), make(chan netlink.LinkUpdate, 16)
	if err := netlink.AddrSubscribe(addrs, ctx.Done()); err != nil {
		return fmt.Errorf("watching the machine's addresses: %w", err)
	}
	if err := netlink.LinkSubscribe(links, ctx.Done()); err != nil {
		return fmt.Errorf("watching the machine's links: %w", err)
	}
	f()
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

func routes() ([]route, error) {
	list, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	var out []route
	for _, r := range list {
		if r.Dst == nil {
			continue
		}
		ones, _ := r.Dst.Mask.Size()
		if a, ok := netip.AddrFromSlice(r.Dst.IP); ok {
			name := "?"
			if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
				name = l.Attrs().Name
			}
			out = append(out, route{netip.PrefixFrom(a.Unmap(), ones), name})
		}
	}
	return out, nil
}
