// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// cable is the name of the first interface of a host; the next ones count on.
const cable = "eth0"

// setting is how hosts are connected. Traffic is between the first and the last.
type setting string

const (
	direct  setting = "direct"  // two hosts and a cable
	relayed setting = "relayed" // three in a row: the one in the middle has a cable to each other one, in networks of their own
	cut     setting = "cut"     // three at a switch, which at some time carries nothing more between the first and the last
)

func (s setting) hosts() int {
	if s == direct {
		return 2
	}
	return 3
}

// host is a network namespace. It has no name and lives as long as its file is open or a process is in it.
type host struct {
	ns    *os.File
	addrs []netip.Prefix // on its cables
}

// counter is the bytes and packets of an interface.
type counter struct{ rx, tx, rxPackets uint64 }

// network is hosts and what connects them.
type network struct {
	hosts  []*host
	router *host // the switch's; nil: there is none
}

// cableAddr is the address of a host on a cable, of those for benchmarks (RFC 2544).
func cableAddr(cable, host int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(cable), byte(host + 1)}), 24)
}

// reach returns the address at which host i reaches host j without a tunnel; zero: it does not.
func (n *network) reach(i, j int) netip.Addr {
	for _, own := range n.hosts[i].addrs {
		for _, other := range n.hosts[j].addrs {
			if own.Masked() == other.Masked() {
				return other.Addr()
			}
		}
	}
	return netip.Addr{}
}

// newNetwork makes the hosts of a setting. Close what it returns, with an error too.
func newNetwork(s setting) (n *network, err error) {
	n = &network{}
	for range s.hosts() {
		h := &host{}
		if err := h.open(); err != nil {
			return n, err
		}
		n.hosts = append(n.hosts, h)
	}
	if s == cut {
		n.router = &host{}
		if err := n.router.open(); err != nil {
			return n, err
		}
		return n, n.plug()
	}
	for i := range n.hosts[1:] {
		if err := n.lay(i, i, i+1); err != nil {
			return n, err
		}
	}
	return n, nil
}

// lay lays a cable between two hosts.
func (n *network) lay(net, i, j int) error {
	a, b := n.hosts[i], n.hosts[j]
	names := [2]string{fmt.Sprintf("eth%d", len(a.addrs)), fmt.Sprintf("eth%d", len(b.addrs))}
	err := a.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = names[0]
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: names[1], PeerNamespace: netlink.NsFd(int(b.ns.Fd()))})
	})
	if err != nil {
		return fmt.Errorf("laying a cable between two namespaces: %w", err)
	}
	return errors.Join(a.up(names[0], cableAddr(net, i)), b.up(names[1], cableAddr(net, j)))
}

const bridge = "br0"

func port(i int) string { return fmt.Sprintf("port%d", i) }

// plug connects all hosts to a switch.
func (n *network) plug() error {
	err := n.router.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = bridge
		br := &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		for i, h := range n.hosts {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = port(i)
			l := &netlink.Veth{LinkAttrs: attrs, PeerName: cable, PeerNamespace: netlink.NsFd(int(h.ns.Fd()))}
			if err := errors.Join(netlink.LinkAdd(l), netlink.LinkSetMaster(l, br), netlink.LinkSetUp(l)); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(br)
	})
	if err != nil {
		return fmt.Errorf("making a switch: %w", err)
	}
	for i, h := range n.hosts {
		if err := h.up(cable, cableAddr(0, i)); err != nil {
			return err
		}
	}
	return nil
}

// cut has the switch carry nothing more between the first host and the last. Neither sees its interface change.
func (n *network) cut() error {
	return n.router.do(func() error {
		for _, i := range []int{0, len(n.hosts) - 1} { // isolated ports of a bridge do not speak with each other
			l, err := netlink.LinkByName(port(i))
			if err == nil {
				err = netlink.LinkSetIsolated(l, true)
			}
			if err != nil {
				return fmt.Errorf("cutting the cable: %w", err)
			}
		}
		return nil
	})
}

// up gives an interface its address.
func (h *host) up(name string, addr netip.Prefix) error {
	h.addrs = append(h.addrs, addr)
	return h.do(func() error {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), 32)}})
		}
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			return fmt.Errorf("setting up %s of a namespace: %w", name, err)
		}
		return nil
	})
}

// forward says whether the host's kernel carries packets between interfaces.
func (h *host) forward(on bool) error {
	value := "0"
	if on {
		value = "1"
	}
	return h.do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte(value), 0) }) // the thread's namespace's
}

func (h *host) open() error {
	return onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making a network namespace: %w", err)
		}
		h.ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
}

// do calls f on a thread in the namespace: sockets it opens and processes it starts are there.
func (h *host) do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering a network namespace: %w", err)
		}
		return f()
	})
}

// onThread calls f on a thread that nobody uses after it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- f()
	}()
	return <-done
}

func (h *host) counters(names ...string) (map[string]counter, error) {
	c := map[string]counter{}
	err := h.do(func() error {
		for _, name := range names {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return fmt.Errorf("reading the counters of %s: %w", name, err)
			}
			s := l.Attrs().Statistics
			c[name] = counter{rx: s.RxBytes, tx: s.TxBytes, rxPackets: s.RxPackets}
		}
		return nil
	})
	return c, err
}

func (n *network) close() {
	if n == nil {
		return
	}
	for _, h := range append(n.hosts, n.router) {
		if h != nil && h.ns != nil {
			h.ns.Close()
		}
	}
}
