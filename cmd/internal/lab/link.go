// SPDX-License-Identifier: MIT

package lab

import (
	"crypto/rand"
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

// uplink is the interface of a host that has its default route.
const uplink = "eth0"

// Subnet is a network of a router: a switch (a bridge) that has the first address of each prefix.
type Subnet struct {
	router *Host
	bridge string
	prefix []netip.Prefix // at most one of each family
	hosts  int            // addresses given to hosts
}

// Subnet gives the router another network, with an IPv4 prefix, an IPv6 prefix, or one of each.
func (h *Host) Subnet(prefixes ...netip.Prefix) (*Subnet, error) {
	s := &Subnet{router: h, bridge: fmt.Sprintf("net-%d", h.ports.Add(1)), prefix: prefixes}
	err := h.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = s.bridge
		// A bridge without an address of its own takes the lowest of its cables', another one after each Plug.
		attrs.HardwareAddr = make(net.HardwareAddr, 6)
		rand.Read(attrs.HardwareAddr)
		attrs.HardwareAddr[0] = 2 // locally administered
		snooping := false
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
			return fmt.Errorf("making the switch: %w", err)
		}
		var addrs []netip.Prefix
		for _, p := range prefixes {
			addrs = append(addrs, netip.PrefixFrom(p.Addr().Next(), p.Bits()))
		}
		return configure(s.bridge, addrs...)
	})
	if err != nil {
		return nil, fmt.Errorf("giving %s a subnet: %w", h.Name, err)
	}
	return s, nil
}

// addr is the subnet's address of this number; 1 is the router.
func addr(p netip.Prefix, n int) netip.Addr {
	a := p.Addr()
	for range n {
		a = a.Next()
	}
	return a
}

// Link is the cable between a host and its router.
type Link struct {
	Addr4, Addr6 netip.Addr // of the host; zero where the subnet has none

	host   *Host
	subnet *Subnet
	port   string // the interface on the router
	nat    NAT
}

// Plug joins a host to the subnet with the next free addresses, the router as its default route. A host has one link.
func (s *Subnet) Plug(h *Host) (*Link, error) {
	s.hosts++
	l := &Link{host: h, subnet: s, port: fmt.Sprintf("port-%d", s.router.ports.Add(1))}
	for _, p := range s.prefix {
		if a := addr(p, s.hosts+1); a.Is4() {
			l.Addr4 = a
		} else {
			l.Addr6 = a
		}
	}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("connecting %s to %s: %w", h.Name, s.router.Name, err)
	}
	return l, nil
}

// Host is the host at the end of the link that is not the router.
func (l *Link) Host() *Host { return l.host }

// open makes a veth pair with one end in each of the two and nothing in the machine's own network.
func (l *Link) open() error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", l.host.PID))
	if err != nil {
		return err
	}
	defer ns.Close()
	err = l.subnet.router.Do(func() error {
		bridge, err := netlink.LinkByName(l.subnet.bridge)
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex = l.port, bridge.Attrs().Index
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: uplink, PeerNamespace: netlink.NsFd(int(ns.Fd()))}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("making the link: %w", err)
		}
		return configure(l.port)
	})
	if err != nil {
		return err
	}
	return l.Up()
}

// Up gives the host's end its addresses and routes, as a DHCP client does when an interface comes up.
func (l *Link) Up() error {
	return l.host.Do(func() error {
		var addrs []netip.Prefix
		for _, p := range l.subnet.prefix {
			a := l.Addr4
			if p.Addr().Is6() {
				a = l.Addr6
			}
			addrs = append(addrs, netip.PrefixFrom(a, p.Bits()))
		}
		if err := configure(uplink, addrs...); err != nil {
			return err
		}
		for _, p := range l.subnet.prefix {
			if p.Addr().Is6() && !haveIPv6() {
				continue
			}
			if err := netlink.RouteReplace(&netlink.Route{Gw: addr(p, 1).AsSlice()}); err != nil {
				return fmt.Errorf("adding the default route: %w", err)
			}
		}
		return nil
	})
}

// Down takes the host's end down, and its addresses and routes with it.
func (l *Link) Down() error {
	return l.host.Do(func() error {
		link, err := netlink.LinkByName(uplink)
		if err != nil {
			return err
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			list, err := netlink.AddrList(link, family)
			if err != nil {
				return err
			}
			for _, a := range list {
				if a.Scope == unix.RT_SCOPE_UNIVERSE {
					if err := netlink.AddrDel(link, &a); err != nil {
						return err
					}
				}
			}
		}
		return netlink.LinkSetDown(link)
	})
}

// Renumber gives the host the next free addresses of the subnet instead of those it has.
func (l *Link) Renumber() error {
	if err := l.Down(); err != nil {
		return fmt.Errorf("taking the addresses of %s: %w", l.host.Name, err)
	}
	l.subnet.hosts++
	for _, p := range l.subnet.prefix {
		if a := addr(p, l.subnet.hosts+1); a.Is4() {
			l.Addr4 = a
		} else {
			l.Addr6 = a
		}
	}
	return l.Up()
}

// Unplug takes the cable away for good; the host may be plugged in elsewhere.
func (l *Link) Unplug() error { return l.set("unplugging", netlink.LinkDel) }

// Cut pulls the cable out of the router: packets of both directions are lost and the host sees no carrier.
func (l *Link) Cut() error { return l.set("cutting", netlink.LinkSetDown) }

// Restore puts the cable back.
func (l *Link) Restore() error { return l.set("restoring", netlink.LinkSetUp) }

func (l *Link) set(doing string, state func(netlink.Link) error) error {
	err := l.subnet.router.Do(func() error {
		link, err := netlink.LinkByName(l.port)
		if err != nil {
			return err
		}
		return state(link)
	})
	if err != nil {
		return fmt.Errorf("%s link %s of %s: %w", doing, l.port, l.subnet.router.Name, err)
	}
	return nil
}

// SetMTU sets the size in bytes of the largest packet on the link. It holds for the router's whole subnet.
func (l *Link) SetMTU(mtu int) error {
	set := func(name string) error {
		link, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetMTU(link, mtu)
		}
		if err != nil {
			return fmt.Errorf("setting the MTU of %s: %w", name, err)
		}
		return nil
	}
	if err := l.subnet.router.Do(func() error { return errors.Join(set(l.port), set(l.subnet.bridge)) }); err != nil {
		return err
	}
	return l.host.Do(func() error { return set(uplink) })
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

// Route makes a router send what is for a prefix to one of its hosts, a router itself.
func (h *Host) Route(to netip.Prefix, via netip.Addr) error {
	err := h.Do(func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), to.Addr().BitLen())}, Gw: via.AsSlice()})
	})
	if err != nil {
		return fmt.Errorf("adding the route to %s: %w", to, err)
	}
	return nil
}

// configure gives an interface of the host the calling thread is in its addresses and brings it up.
func configure(name string, addrs ...netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if haveIPv6() { // addresses are usable at once; accept_dad says so of the link-local address
		if err := sysctl("ipv6/conf/"+name+"/accept_dad", 0); err != nil {
			return err
		}
	}
	for _, addr := range addrs {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), addr.Addr().BitLen())}}
		if addr.Addr().Is6() {
			if !haveIPv6() {
				continue
			}
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(link, a); err != nil {
			return fmt.Errorf("adding address %v to %s: %w", addr, name, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bringing %s up: %w", name, err)
	}
	return nil
}

func haveIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return !errors.Is(err, fs.ErrNotExist)
}

func sysctl(name string, value int) error {
	return os.WriteFile("/proc/sys/net/"+name, strconv.AppendInt(nil, int64(value), 10), 0)
}
