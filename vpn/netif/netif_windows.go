// SPDX-License-Identifier: MIT

package netif

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/windows"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/windows/tunnel/winipcfg"
)

func create(name string, mtu int) (tun.Device, error) {
	dev, err := tun.CreateTUN(name, mtu)
	switch {
	case err == nil:
		return newInterruptible(dev), nil
	case errors.Is(err, windows.ERROR_MOD_NOT_FOUND):
		return nil, fmt.Errorf("wintun.dll does not lie beside meshd.exe: take it from https://www.wintun.net: %w", err)
	case errors.Is(err, windows.ERROR_ACCESS_DENIED):
		return nil, fmt.Errorf("making the interface %s is not permitted: run as administrator: %w", name, err)
	}
	return nil, fmt.Errorf("making the interface %s: %w", name, err)
}

func configure(dev tun.Device, name string, mtu int, addrs []netip.Prefix) error {
	luid := winipcfg.LUID(dev.(*interruptible).Device.(*tun.NativeTun).LUID())
	for _, family := range []winipcfg.AddressFamily{windows.AF_INET, windows.AF_INET6} {
		row, err := luid.IPInterface(family)
		if errors.Is(err, windows.ERROR_NOT_FOUND) && family == windows.AF_INET6 {
			continue // IPv6 is switched off on this machine
		}
		if err == nil {
			row.NLMTU = uint32(mtu)
			row.DadTransmits = 0 // nobody else can have the addresses: they come from our key and certificate
			row.RouterDiscoveryBehavior = winipcfg.RouterDiscoveryDisabled
			err = row.Set()
		}
		if err != nil {
			return fmt.Errorf("setting the MTU of %s: %w", name, err)
		}
		if err := luid.SetIPAddressesForFamily(family, addrs); err != nil { // the system adds the routes of their prefixes
			return fmt.Errorf("giving %s the addresses %v: %w", name, addrs, err)
		}
	}
	return nil
}

// Watch calls f when it has begun to watch, and after every change of the machine's addresses or links, until ctx ends.
// f must not block long.
func Watch(ctx context.Context, f func()) error {
	addrs, err := winipcfg.RegisterUnicastAddressChangeCallback(func(winipcfg.MibNotificationType, *winipcfg.MibUnicastIPAddressRow) { f() })
	if err != nil {
		return fmt.Errorf("watching the machine's addresses: %w", err)
	}
	defer addrs.Unregister()
	links, err := winipcfg.RegisterInterfaceChangeCallback(func(winipcfg.MibNotificationType, *winipcfg.MibIPInterfaceRow) { f() })
	if err != nil {
		return fmt.Errorf("watching the machine's links: %w", err)
	}
	defer links.Unregister()
	f()
	<-ctx.Done()
	return nil
}

func routes() ([]route, error) {
	rows, err := winipcfg.GetIPForwardTable2(windows.AF_UNSPEC)
	if err != nil {
		return nil, err
	}
	var out []route
	for i := range rows {
		name := "?"
		if l, err := rows[i].InterfaceLUID.Interface(); err == nil {
			name = l.Alias()
		}
		out = append(out, route{rows[i].DestinationPrefix.Prefix(), name})
	}
	return out, nil
}
