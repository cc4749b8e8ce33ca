// SPDX-License-Identifier: MIT

package resolver

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// This file decides which names may enter a View, and in which forms programs find them. Nothing else does.
//
// A name is relative to the mesh's zone: a single label ("printer"), or labels below a node ("nas.bkero"). Its full form
// is the name with the zone behind it. No member can thereby take over a name outside the zone, except where the short
// form of a name below a node would look like one: a node called "com" makes "google.com" of "google". Such short forms
// are left out (see Forms); the full form stays.

// never are labels that programs look up by themselves and trust, or that mean something else (RFC 6761, compatibility
// with Consul's and DNS-SD's trees).
var never = map[string]bool{
	"localhost": true, "localdomain": true, "local": true, "broadcasthost": true, "ip6-localhost": true, "ip6-loopback": true,
	"wpad": true, "isatap": true, "_gateway": true, "_outbound": true, "invalid": true, "onion": true,
	"dns": true, "service": true, "node": true, "query": true, "addr": true, "arpa": true,
}

// CheckName reports whether name, relative to the zone, may belong to owner: one label, or labels below owner's own, of which the
// first may be "*". Such a host is a wildcard (RFC 4592): see View.Wildcards.
func CheckName(name, owner string) error {
	if rest, ok := strings.CutPrefix(name, "*."); ok && (rest == owner || strings.HasSuffix(rest, "."+owner)) {
		return CheckLabels(rest)
	}
	if err := CheckLabels(name); err != nil {
		return err
	}
	if strings.Contains(name, ".") && !strings.HasSuffix(name, "."+owner) {
		return fmt.Errorf("name %q is neither a single label nor below %q: a node owns only its own name and what is below it", name, owner)
	}
	return nil
}

// wildcard reports whether a name that CheckName has let pass is that of a wildcard.
func wildcard(name string) bool { return strings.HasPrefix(name, "*.") }

// CheckLabels reports whether name is made of lower-case host name labels (RFC 1123 section 2.1) and not reserved.
func CheckLabels(name string) error {
	if name == "" || len(name) > 189 { // leaves 63 of the 253 bytes of a name for zones
		return fmt.Errorf("name %q is empty or longer than 189 characters", name)
	}
	labels := strings.Split(name, ".")
	for _, l := range labels {
		switch {
		case l == "" || len(l) > 63:
			return fmt.Errorf("name %q has an empty label or one of over 63 characters", name)
		case l[0] == '-' || l[len(l)-1] == '-':
			return fmt.Errorf("name %q has a label that begins or ends with a hyphen", name)
		case strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || strings.ContainsFunc(l, func(r rune) bool {
			return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z')
		}):
			return fmt.Errorf("name %q may hold only a-z, 0-9, hyphens and dots", name)
		}
	}
	last := labels[len(labels)-1]
	if never[labels[0]] || never[last] {
		return fmt.Errorf("name %q is reserved: programs give it a meaning of its own", name)
	}
	if strings.Trim(last, "0123456789") == "" {
		return fmt.Errorf("name %q ends in a number, which programs take for an address", name)
	}
	return nil
}

// CheckGroup reports whether a group's name may belong to its owner, by the rules of hosts' names, and whether its members
// can be names of hosts, relative to the zone, and of other groups ("@name"). A member need not exist.
func CheckGroup(g Group) error {
	err := CheckName(g.Name, g.Owner)
	if err == nil && wildcard(g.Name) {
		err = fmt.Errorf("name %q is a wildcard", g.Name)
	}
	if err != nil {
		return fmt.Errorf("group %w", err)
	}
	for _, m := range g.Members {
		if err := CheckLabels(strings.TrimPrefix(m, "@")); err != nil {
			return fmt.Errorf("group %s: member %q: %w", g.Name, m, err)
		}
	}
	return nil
}

// checkAddrs reports whether a static host may have these addresses: in the mesh's prefixes, and nobody's network or
// broadcast address.
func checkAddrs(addrs []netip.Addr, prefixes []netip.Prefix) error {
	if len(addrs) == 0 || len(addrs) > MaxAddrs {
		return fmt.Errorf("a host has 1 to %d addresses, not %d", MaxAddrs, len(addrs))
	}
	for _, a := range addrs {
		p, ok := in(a, prefixes)
		if !ok {
			return fmt.Errorf("address %s is outside the mesh (%s)", a, join(prefixes))
		}
		if a == p.Masked().Addr() || a.Is4() && a == lastAddr(p) {
			return fmt.Errorf("address %s is the network or broadcast address of %s", a, p)
		}
	}
	return nil
}

// maxNames bounds the bytes of all forms of a host's names, with one more for each: what a record of the snapshot has room
// for beside 64 addresses (docs/snapshot.md).
const maxNames = 4096 - 24 - 64*16

// namesSize is what a name adds to that: its full and its short form.
func namesSize(name, zone string) int { return 2*len(name) + len(zone) + 3 }

// ErrTaken is wrapped by the errors of names and addresses that somebody else holds.
var ErrTaken = errors.New("taken")

func in(a netip.Addr, prefixes []netip.Prefix) (netip.Prefix, bool) {
	for _, p := range prefixes {
		if p.Contains(a) && a.Zone() == "" {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

func join(prefixes []netip.Prefix) string {
	var s []string
	for _, p := range prefixes {
		s = append(s, p.String())
	}
	return strings.Join(s, ", ")
}

// lastAddr is the broadcast address of an IPv4 prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := range b {
		host := 8 - min(max(p.Bits()-8*i, 0), 8)
		b[i] |= byte(1<<host - 1)
	}
	return netip.AddrFrom4(b)
}

// Forms are the names that programs may use for a host: the canonical one first (the full form of its name, which
// reverse look-ups return too), then its short name and its other names in both forms. hidden are names, lower case, that
// this machine gives a meaning of its own (/etc/hosts); they are left out.
func (v *View) Forms(h *Host, hidden map[string]bool) []string {
	out := []string{h.Name + "." + v.Zone}
	add := func(n string) {
		if !hidden[n] {
			out = append(out, n)
		}
	}
	if shortFormSafe(h.Name) {
		add(h.Name)
	}
	for _, a := range h.Others() {
		add(a + "." + v.Zone)
		if shortFormSafe(a) {
			add(a)
		}
	}
	return out
}

// shortFormSafe reports whether name without the zone cannot be taken for a name of the public DNS: it is a single
// label, or its last label is no public top-level domain.
func shortFormSafe(name string) bool {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return true
	}
	suffix, icann := publicsuffix.PublicSuffix(name[i+1:])
	return !(icann && suffix == name[i+1:])
}
