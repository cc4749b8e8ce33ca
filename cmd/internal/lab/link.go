// SPDX-License-Identifier: MIT

//go:build linux

package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link is the cable between a host and its router.
type Link struct {
	Addr4, Addr6 netip.Addr // of the host

	router *Host
	port   string // the interface on the router
}

// open makes a veth pair with one end in each of the two and nothing in the machine's own network.
func (l *Link) open(h, router *Host) error {
	l.router, l.port = router, "port-"+fmt.Sprint(l.Addr4.As4()[2])
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", h.PID))
	if err != nil {
		return err
	}
	defer ns.Close()
	const uplink = "eth0"
	err = router.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = l.port
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: uplink, PeerNamespace: netlink.NsFd(int(ns.Fd()))}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("making the link: %w", err)
		}
		return configure(l.port, gateway(l.Addr4), gateway(l.Addr6))
	})
	if err != nil {
		return err
	}
	return h.Do(func() error {
		if err := configure(uplink, l.Addr4, l.Addr6); err != nil {
			return err
		}
		for _, addr := range []netip.Addr{l.Addr4, l.Addr6} {
			if addr.Is6() && !haveIPv6() {
				continue
			}
			if err := netlink.RouteAdd(&netlink.Route{Gw: gateway(addr).AsSlice()}); err != nil {
				return fmt.Errorf("adding the default route: %w", err)
			}
		}
		return nil
	})
}

// Cut pulls the cable out of the router: packets of both directions are lost and the host sees no carrier.
func (l *Link) Cut() error { return l.set("cutting", netlink.LinkSetDown) }

// Restore puts the cable back.
func (l *Link) Restore() error { return l.set("restoring", netlink.LinkSetUp) }

func (l *Link) set(doing string, state func(netlink.Link) error) error {
	err := l.router.Do(func() error {
		link, err := netlink.LinkByName(l.port)
		if err != nil {
			return err
		}
		return state(link)
	})
	if err != nil {
		return fmt.Errorf("%s link %s of %s: %w", doing, l.port, l.router.Name, err)
	}
	return nil
}

// forward makes the host a router. keep_addr_on_down keeps its IPv6 addresses while a link is cut.
func (h *Host) forward() error {
	return h.Do(func() error {
		if err := sysctl("ipv4/ip_forward", 1); err != nil {
			return err
		}
		if !haveIPv6() {
			return nil
		}
		return errors.Join(
			sysctl("ipv6/conf/all/forwarding", 1),
			sysctl("ipv6/conf/all/keep_addr_on_down", 1),
			sysctl("ipv6/conf/default/keep_addr_on_down", 1))
	})
}

// configure gives an interface of the host the calling thread is in its addresses and brings it up.
func configure(name string, addrs ...netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, addr := range addrs {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(24, 32)}}
		if addr.Is6() {
			if !haveIPv6() {
				continue
			}
			a.IPNet.Mask = net.CIDRMask(64, 128)
			a.Flags = unix.IFA_F_NODAD // usable at once; accept_dad says so of the link-local address
			if err := sysctl("ipv6/conf/"+name+"/accept_dad", 0); err != nil {
				return err
			}
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			return fmt.Errorf("adding address %v to %s: %w", addr, name, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bringing %s up: %w", name, err)
	}
	return nil
}

// gateway returns the router's address in the subnet of a host: the host's last byte is 2, the router's is 1.
func gateway(host netip.Addr) netip.Addr { return host.Prev() }

func haveIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return !errors.Is(err, fs.ErrNotExist)
}

func sysctl(name string, value int) error {
	return os.WriteFile("/proc/sys/net/"+name, strconv.AppendInt(nil, int64(value), 10), 0)
}
