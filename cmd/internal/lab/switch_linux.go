// SPDX-License-Identifier: MIT

package lab

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
)

// bridge is a switch's interface that joins its ports.
const bridge = "lan"

// Switch starts a host whose ports are one link, and which does nothing else.
func (l *Lab) Switch(name string) (*Host, error) {
	h, err := l.Host(name)
	if err != nil {
		return nil, err
	}
	err = h.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = bridge
		br := &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		return netlink.LinkSetUp(br)
	})
	if err != nil {
		return nil, fmt.Errorf("making switch %s: %w", name, err)
	}
	return h, nil
}

// Plug connects a host to a switch, with addresses of the caller's choice besides the link-local IPv6 one.
func (h *Host) Plug(sw *Host, addrs ...netip.Prefix) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", h.PID))
	if err != nil {
		return err
	}
	defer ns.Close()
	const uplink = "eth0"
	err = sw.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = fmt.Sprintf("port%d", h.PID)
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: uplink, PeerNamespace: netlink.NsFd(int(ns.Fd()))}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		br, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(veth, br); err != nil {
			return err
		}
		return netlink.LinkSetUp(veth)
	})
	if err == nil {
		err = h.Do(func() error {
			if haveIPv6() { // the link-local address is usable at once
				if err := sysctl("ipv6/conf/"+uplink+"/accept_dad", 0); err != nil {
					return err
				}
			}
			link, err := netlink.LinkByName(uplink)
			if err != nil {
				return err
			}
			for _, a := range addrs {
				n := &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}
				if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: n}); err != nil {
					return err
				}
			}
			return netlink.LinkSetUp(link)
		})
	}
	if err != nil {
		return fmt.Errorf("plugging %s into %s: %w", h.Name, sw.Name, err)
	}
	return nil
}
