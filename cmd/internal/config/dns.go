// SPDX-License-Identifier: MIT

package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
)

// DNS is the table [dns] of mesh.toml: how meshd answers DNS queries. What is not set is as DNSServer has it.
type DNS struct {
	Setup        string              `toml:"setup,omitempty"`
	Listen       []string            `toml:"listen,omitempty"`
	Allow        []string            `toml:"allow,omitempty"`
	SingleLabels bool                `toml:"single_labels,omitempty"`
	TTL          int                 `toml:"ttl,omitempty"`
	Near         bool                `toml:"near,omitempty"`
	Rate         *int                `toml:"rate,omitempty"`
	Secondaries  []string            `toml:"secondaries,omitempty"`
	Forward      map[string][]string `toml:"forward,omitempty"`
}

// DNSServer is the same, read and complete.
type DNSServer struct {
	Listen       []netip.AddrPort // beside the addresses of the mesh
	Allow        []netip.Prefix
	SingleLabels bool
	TTL          int // seconds
	Near         bool
	Rate         int // answers a second; 0: no limit
	Secondaries  []netip.AddrPort
	Forward      map[string][]netip.AddrPort // by zone, lower case, without a final dot; "" is everything
}

// DefaultDNSListen is where programs of this machine find the server. It is not 127.0.0.1, nor any of those at which
// systemd-resolved, dnsmasq and NetworkManager answer.
const DefaultDNSListen = "127.0.0.153"

// DefaultDNSRate is how many answers a second one source gets by UDP.
const DefaultDNSRate = 1000

// dnsSetups are what setup may be; empty is auto.
var dnsSetups = []string{"", "auto", "off"}

// SetupDNS reports whether the machine's programs that speak DNS are to be had ask for mesh names (mesh dns setup --auto).
func (c *Config) SetupDNS() bool { return cmp.Or(c.DNS.Setup, c.DNSSetup) != "off" }

// DNSServer reads the table [dns].
func (c *Config) DNSServer() (DNSServer, error) {
	s, _, err := c.DNS.read()
	return s, err
}

// read returns the key that is wrong and why.
func (d DNS) read() (s DNSServer, key string, err error) {
	s = DNSServer{SingleLabels: d.SingleLabels, TTL: d.TTL, Near: d.Near, Rate: DefaultDNSRate, Forward: map[string][]netip.AddrPort{}}
	if !slices.Contains(dnsSetups, d.Setup) {
		return s, "setup", fmt.Errorf("%q is neither auto nor off", d.Setup)
	}
	listen := d.Listen
	if listen == nil && runtime.GOOS == "linux" { // elsewhere 127.0.0.1 is the only one there is
		listen = []string{DefaultDNSListen}
	}
	if s.Listen, err = addrPorts(listen); err != nil {
		return s, "listen", err
	}
	if i := slices.IndexFunc(s.Listen, func(a netip.AddrPort) bool { return a.Addr().IsUnspecified() }); i >= 0 {
		return s, "listen", fmt.Errorf("%s is no address: name those at which queries are to be answered, beside the mesh's own", s.Listen[i].Addr())
	}
	for _, a := range d.Allow {
		p, err := netip.ParsePrefix(a)
		if err != nil || p != p.Masked() {
			return s, "allow", fmt.Errorf("%q is not a network like 192.168.1.0/24", a)
		}
		s.Allow = append(s.Allow, p)
	}
	if d.TTL < 0 || d.TTL > 86400 {
		return s, "ttl", fmt.Errorf("%d is not from 0 to 86400 seconds", d.TTL)
	}
	if d.Rate != nil {
		if s.Rate = *d.Rate; s.Rate < 0 || s.Rate > 1_000_000 {
			return s, "rate", fmt.Errorf("%d is not from 0 to 1000000", s.Rate)
		}
	}
	if s.Secondaries, err = addrPorts(d.Secondaries); err != nil {
		return s, "secondaries", err
	}
	for zone, servers := range d.Forward {
		name := strings.TrimSuffix(zone, ".")
		if name != "" {
			if err := CheckDomain("x." + name); err != nil {
				return s, "forward", fmt.Errorf("%q is not a zone like example.org, or \".\" for everything", zone)
			}
		}
		if s.Forward[name], err = addrPorts(servers); err != nil {
			return s, "forward", fmt.Errorf("%s: %w", zone, err)
		}
		if len(servers) == 0 {
			return s, "forward", fmt.Errorf("%s: name a server to ask", zone)
		}
	}
	return s, "", nil
}

// addrPorts reads addresses, with or without a port.
func addrPorts(list []string) (out []netip.AddrPort, err error) {
	for _, l := range list {
		a, err := netip.ParseAddrPort(l)
		if err != nil {
			ip, err := netip.ParseAddr(l)
			if err != nil {
				return nil, fmt.Errorf("%q is not an address like 192.0.2.53, with a port where it is not 53, like 192.0.2.53:5353", l)
			}
			a = netip.AddrPortFrom(ip, 53)
		}
		out = append(out, a)
	}
	return out, nil
}
