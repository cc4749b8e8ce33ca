// SPDX-License-Identifier: MIT

package splitdns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

// bus is the system's D-Bus. It is asked for programs that run and starts none.
type bus struct{ conn *dbus.Conn }

// openBus connects. Every call ends within ten seconds.
func openBus() (*bus, error) {
	conn, err := dbus.ConnectSystemBus()
	if err != nil {
		return nil, fmt.Errorf("connecting to the system's D-Bus: %w", err)
	}
	return &bus{conn}, nil
}

func (b *bus) call(ctx context.Context, service, path, method string, args ...any) *dbus.Call {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return b.conn.Object(service, dbus.ObjectPath(path)).CallWithContext(ctx, method, dbus.FlagNoAutoStart, args...)
}

func (b *bus) runs(ctx context.Context, service string) (yes bool) {
	err := b.call(ctx, "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus.NameHasOwner", service).Store(&yes)
	return err == nil && yes
}

func (b *bus) property(ctx context.Context, service, path, iface, name string, to any) error {
	var v dbus.Variant
	if err := b.call(ctx, service, path, "org.freedesktop.DBus.Properties.Get", iface, name).Store(&v); err != nil {
		return err
	}
	return v.Store(to)
}

const (
	resolve1       = "org.freedesktop.resolve1"
	resolve1Path   = "/org/freedesktop/resolve1"
	systemd1       = "org.freedesktop.systemd1"
	networkManager = "org.freedesktop.NetworkManager"
)

// resolve1 calls systemd-resolved's Manager (org.freedesktop.resolve1(5)).
func (b *bus) resolve1(ctx context.Context, method string, args ...any) error {
	err := b.call(ctx, resolve1, resolve1Path, resolve1+".Manager."+method, args...).Err
	if err != nil {
		return fmt.Errorf("systemd-resolved, %s: %w", method, err)
	}
	return nil
}

// The types of SetLinkDNS and SetLinkDomains.
type (
	address struct {
		Family int32
		Bytes  []byte
	}
	domain struct {
		Name    string
		Routing bool
	}
)

const (
	afINET  = 2 // as D-Bus has them, on Linux
	afINET6 = 10
)

// setLink has systemd-resolved ask for the mesh's names on its interface. What meshd says is neither signed nor encrypted,
// and need not be: it is on this machine.
func (b *bus) setLink(ctx context.Context, index int, w Want) error {
	var servers []address
	for _, a := range w.Servers {
		family := int32(afINET)
		if a.Is6() {
			family = afINET6
		}
		servers = append(servers, address{family, a.AsSlice()})
	}
	var domains []domain
	for _, d := range w.domains() {
		domains = append(domains, domain{strings.TrimPrefix(d, "~"), true})
	}
	i := int32(index)
	return errors.Join(b.resolve1(ctx, "SetLinkDNS", i, servers), b.resolve1(ctx, "SetLinkDomains", i, domains), b.resolve1(ctx, "SetLinkDefaultRoute", i, false),
		b.resolve1(ctx, "SetLinkDNSSEC", i, "no"), b.resolve1(ctx, "SetLinkDNSOverTLS", i, "no"))
}

func (b *bus) revertLink(ctx context.Context, index int) error {
	return b.resolve1(ctx, "RevertLink", int32(index))
}

// link reads what systemd-resolved has for an interface.
func (b *bus) link(ctx context.Context, index int, r *Resolved) error {
	var path dbus.ObjectPath
	if err := b.call(ctx, resolve1, resolve1Path, resolve1+".Manager.GetLink", int32(index)).Store(&path); err != nil {
		return err
	}
	var servers []address
	var domains []domain
	err := errors.Join(b.property(ctx, resolve1, string(path), resolve1+".Link", "DNS", &servers), b.property(ctx, resolve1, string(path), resolve1+".Link", "Domains", &domains))
	for _, s := range servers {
		if a, ok := netip.AddrFromSlice(s.Bytes); ok {
			r.DNS = append(r.DNS, a)
		}
	}
	for _, d := range domains {
		if d.Routing {
			d.Name = "~" + d.Name
		}
		r.Domains = append(r.Domains, d.Name)
	}
	return err
}
