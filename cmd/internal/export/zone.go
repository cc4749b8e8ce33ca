// SPDX-License-Identifier: MIT

package export

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
)

// Zone files are as RFC 1035 section 5 has them. That of the mesh's own zone is resolver/dnsd's, who answers for it.

// head is what a zone begins with. Every node answers DNS at its addresses, so they are the zone's server, whose name no
// host can have; serial is the store's revision, so that later is larger.
func head(origin string, m Mesh) string {
	return fmt.Sprintf("; the mesh at revision %d\n$ORIGIN %s.\n$TTL 60\n@\tIN\tSOA\tdns.%s. hostmaster.%s. (%d 60 10 86400 5)\n@\tIN\tNS\tdns.%s.\n",
		m.Revision, origin, m.Domain, m.Domain, uint32(m.Revision), m.Domain)
}

// reverse writes the reverse zone of a network: one name for each address, the one that it leads back to.
func reverse(w io.Writer, m Mesh, p netip.Prefix) error {
	p = p.Masked()
	per := 4
	if p.Addr().Is4() {
		per = 8
	}
	if p.Bits()%per != 0 || p.Bits() == 0 {
		return fmt.Errorf("%s: a reverse zone is that of a network whose length is %d, %d, %d…", p, per, 2*per, 3*per)
	}
	var b strings.Builder
	b.WriteString(head(arpa(p), m))
	for _, h := range m.Hosts.Hosts {
		for _, a := range h.Addrs {
			shared := false
			for _, s := range h.Shared {
				shared = shared || s == a
			}
			if p.Contains(a) && !shared {
				fmt.Fprintf(&b, "%s.\tIN\tPTR\t%s.\n", arpa(netip.PrefixFrom(a, a.BitLen())), h.FQDN)
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// arpa is the reverse name of a network (RFC 1035 section 3.5, RFC 3596 section 2.5).
func arpa(p netip.Prefix) string {
	var labels []string
	top := "ip6.arpa"
	if p.Addr().Is4() {
		top = "in-addr.arpa"
		for _, b := range p.Addr().As4() {
			labels = append(labels, fmt.Sprint(b))
		}
		labels = labels[:p.Bits()/8]
	} else {
		for _, b := range p.Addr().As16() {
			labels = append(labels, fmt.Sprintf("%x", b>>4), fmt.Sprintf("%x", b&15))
		}
		labels = labels[:p.Bits()/4]
	}
	out := top
	for _, l := range labels {
		out = l + "." + out
	}
	return out
}
