// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// cable is the name of the interface at both ends of the cable.
const cable = "eth0"

// host is a network namespace. It has no name and lives as long as its file is open or a process is in it.
type host struct {
	ns   *os.File
	addr netip.Addr // on the cable
}

// counter is the bytes of an interface.
type counter struct{ rx, tx uint64 }

// cableAddr is the address of a namespace on the cable, of those for benchmarks (RFC 2544).
func cableAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, 0, byte(i + 1)}) }

// newHosts makes two namespaces and a cable between them.
func newHosts() (hosts [2]*host, err error) {
	for i := range hosts {
		hosts[i] = &host{addr: cableAddr(i)}
		if err := hosts[i].open(); err != nil {
			return hosts, err
		}
	}
	err = hosts[0].do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = cable
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: cable, PeerNamespace: netlink.NsFd(int(hosts[1].ns.Fd()))})
	})
	for _, h := range hosts {
		if err == nil {
			err = h.do(func() error { return up(cable, h.addr) })
		}
	}
	if err != nil {
		return hosts, fmt.Errorf("laying a cable between two namespaces: %w", err)
	}
	return hosts, nil
}

func up(name string, addr netip.Addr) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(24, 32)}}); err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
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
			c[name] = counter{rx: s.RxBytes, tx: s.TxBytes}
		}
		return nil
	})
	return c, err
}

func (h *host) close() {
	if h.ns != nil {
		h.ns.Close()
	}
}
