// SPDX-License-Identifier: MIT

//go:build darwin || freebsd

package netif

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"

	xroute "golang.org/x/net/route"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

func create(name string, mtu int) (tun.Device, error) {
	dev, err := tun.CreateTUN(name, mtu)
	switch {
	case err == nil:
		return dev, nil
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("making the interface %s is not permitted: run as root: %w", name, err)
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("the interface %s is in use: choose another number (interface = … in mesh.toml): %w", name, err)
	}
	return nil, fmt.Errorf("making the interface %s (interface = … in mesh.toml; on darwin it must be utun and a number): %w", name, err)
}

// configure gives the interface its addresses, and a route for the prefix of each: the interface is point to point on
// darwin, where an address brings none.
func configure(_ tun.Device, name string, mtu int, addrs []netip.Prefix) error {
	for _, a := range addrs {
		family, at := "inet", []string{a.String(), a.Addr().String()}
		if a.Addr().Is6() {
			family, at = "inet6", []string{a.Addr().String(), "prefixlen", strconv.Itoa(a.Bits())}
		}
		if err := run("/sbin/ifconfig", append(append([]string{name, family}, at...), "alias")...); err != nil {
			return fmt.Errorf("giving %s the address %s: %w", name, a, err)
		}
	}
	if err := run("/sbin/ifconfig", name, "mtu", strconv.Itoa(mtu), "up"); err != nil {
		return fmt.Errorf("taking %s up: %w", name, err)
	}
	for _, a := range addrs {
		family := "-inet"
		if a.Addr().Is6() {
			family = "-inet6"
		}
		if err := run("/sbin/route", "-q", "-n", "add", family, a.Masked().String(), "-interface", name); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("leading %s to %s: %w", a.Masked(), name, err)
		}
	}
	return nil
}

// run runs a program of the system. What it says is in the error, which is EEXIST where that is what it says.
func run(program string, args ...string) error {
	out, err := exec.Command(program, args...).CombinedOutput()
	switch {
	case err == nil:
		return nil
	case bytes.Contains(out, []byte("File exists")):
		return unix.EEXIST
	}
	return fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(out))
}

// Watch calls f when it has begun to watch, and after every change of the machine's addresses or links, until ctx ends.
// f must not block long.
func Watch(ctx context.Context, f func()) error {
	fd, err := unix.Socket(unix.AF_ROUTE, unix.SOCK_RAW, unix.AF_UNSPEC)
	if err == nil {
		unix.CloseOnExec(fd)
		err = unix.SetNonblock(fd, true) // so that closing ends a read
	}
	if err != nil {
		return fmt.Errorf("watching the machine's addresses: %w", err)
	}
	s := os.NewFile(uintptr(fd), "routing socket")
	defer s.Close()
	defer context.AfterFunc(ctx, func() { s.Close() })()
	f()
	for b := make([]byte, 64<<10); ; {
		n, err := s.Read(b)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // messages were lost
			f()
		case err != nil:
			return fmt.Errorf("watching the machine's addresses: %w", err)
		case n > 3: // route(4): length (2 bytes), version, type
			switch b[3] {
			case unix.RTM_NEWADDR, unix.RTM_DELADDR, unix.RTM_IFINFO:
				f()
			}
		}
	}
}

func routes() ([]route, error) {
	rib, err := xroute.FetchRIB(unix.AF_UNSPEC, xroute.RIBTypeRoute, 0)
	if err != nil {
		return nil, err
	}
	messages, err := xroute.ParseRIB(xroute.RIBTypeRoute, rib)
	if err != nil {
		return nil, err
	}
	var out []route
	for _, m := range messages {
		r, ok := m.(*xroute.RouteMessage)
		if !ok || len(r.Addrs) <= unix.RTAX_NETMASK {
			continue
		}
		name := "?"
		if l, err := net.InterfaceByIndex(r.Index); err == nil {
			name = l.Name
		}
		if p, ok := destination(r.Addrs[unix.RTAX_DST], r.Addrs[unix.RTAX_NETMASK]); ok {
			out = append(out, route{p, name})
		}
	}
	return out, nil
}

// destination is what a route leads to; one without a mask leads to a single address.
func destination(to, mask xroute.Addr) (netip.Prefix, bool) {
	switch to := to.(type) {
	case *xroute.Inet4Addr:
		bits := 32
		if m, ok := mask.(*xroute.Inet4Addr); ok {
			bits, _ = net.IPMask(m.IP[:]).Size()
		}
		return netip.PrefixFrom(netip.AddrFrom4(to.IP), bits), true
	case *xroute.Inet6Addr:
		bits := 128
		if m, ok := mask.(*xroute.Inet6Addr); ok {
			bits, _ = net.IPMask(m.IP[:]).Size()
		}
		return netip.PrefixFrom(netip.AddrFrom16(to.IP), bits), true
	}
	return netip.Prefix{}, false
}
