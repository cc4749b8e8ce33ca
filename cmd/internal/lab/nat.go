// SPDX-License-Identifier: MIT

package lab

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// Kind is how a home router treats UDP; the common names of what RFC 4787 sections 4 and 5 describe.
type Kind string

// The kinds of NAT. All but Symmetric map an address and port of inside to one port, whatever the destination.
const (
	FullCone          Kind = "full-cone"          // lets anybody in
	AddressRestricted Kind = "address-restricted" // lets in who was sent to
	PortRestricted    Kind = "port-restricted"    // lets in only from the port that was sent to
	Symmetric         Kind = "symmetric"          // another random port for each destination; lets in as PortRestricted
	Blocked           Kind = "UDP blocked"        // TCP only
)

// NAT is a home router's rules. A host that keeps the mapping by port should be the only one behind it to use its port:
// Linux gives the second one another port for some destinations only, which no real router does.
type NAT struct {
	Kind    Kind
	Hairpin bool          // hosts inside reach each other at their outside addresses (RFC 4787 section 6)
	Timeout time.Duration // of a mapping without packets; 0: 120 s
	port    int           // outside, for everybody; 0: as inside
}

// NAT makes the host at the end of this link, a router, translate what leaves through the link, and filter what comes
// in, IPv6 too: that is let in after a packet went out. It needs nft(8).
func (l *Link) NAT(n NAT) error {
	l.nat = n
	if err := l.host.nft(n.rules(l.Addr4)); err != nil {
		return err
	}
	return l.host.Do(func() error {
		t := int(n.timeout().Seconds())
		if err := sysctl("netfilter/nf_conntrack_udp_timeout", t); err != nil {
			return err
		}
		return sysctl("netfilter/nf_conntrack_udp_timeout_stream", t)
	})
}

// Rebind makes a NAT forget all it knows and use another outside port from now on, as after a restart.
func (l *Link) Rebind() error {
	l.nat.port = max(l.nat.port, 20000) + 1
	if err := l.host.nft(l.nat.rules(l.Addr4)); err != nil {
		return err
	}
	err := l.host.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
	if err != nil {
		return fmt.Errorf("making %s forget its mappings: %w", l.host.Name, err)
	}
	return nil
}

func (n NAT) timeout() time.Duration {
	if n.Timeout > 0 {
		return n.Timeout
	}
	return 120 * time.Second
}

// rules are nft's. What arrives for the router itself is dropped: an answer would make the entry of a connection, which
// would take the port away from the mapping that the same two addresses need later.
func (n NAT) rules(outside netip.Addr) string {
	var b strings.Builder
	w := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	t := int(n.timeout().Seconds())
	w(`table ip nat`)
	w(`delete table ip nat`)
	w(`table inet home`)
	w(`delete table inet home`)
	w(`table ip nat {`)
	w(` map cone { type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout %ds; size 65535; }`, t)
	w(` set seen { type ipv4_addr . inet_service; flags dynamic,timeout; timeout %ds; size 65535; }`, t)
	w(` chain learn { type filter hook postrouting priority 110`)
	w(`  oifname "%s" ip protocol udp ct direction original update @cone { udp sport : ct original ip saddr . ct original proto-src }`, uplink)
	w(`  oifname "%s" ip protocol udp update @seen { ip daddr . udp sport }`, uplink)
	w(` }`)
	w(` chain pre { type nat hook prerouting priority -100`)
	if n.Hairpin {
		w(`  iifname != "%s" ip daddr %s ip protocol udp dnat ip to udp dport map @cone`, uplink, outside)
	}
	switch n.Kind {
	case AddressRestricted:
		w(`  iifname "%s" ip protocol udp ip saddr . udp dport != @seen return`, uplink)
		fallthrough
	case FullCone:
		w(`  iifname "%s" ip protocol udp dnat ip to udp dport map @cone`, uplink)
	}
	w(` }`)
	w(` chain post { type nat hook postrouting priority 100`)
	switch {
	case n.Kind == Symmetric:
		w(`  oifname "%s" masquerade fully-random`, uplink)
	case n.port > 0:
		w(`  oifname "%s" ip protocol udp masquerade to :%d`, uplink, n.port)
		fallthrough
	default:
		w(`  oifname "%s" masquerade`, uplink)
	}
	if n.Hairpin {
		w(`  oifname != "%s" ct status dnat ct original ip daddr %s iifname != "%s" snat to %s`, uplink, outside, uplink, outside)
	}
	w(` }`)
	w(`}`)
	w(`table inet home {`)
	w(` chain input { type filter hook input priority 0`)
	w(`  iifname "%s" meta l4proto udp drop`, uplink)
	w(` }`)
	w(` chain forward { type filter hook forward priority 0`)
	if n.Kind == Blocked {
		w(`  meta l4proto udp drop`)
	}
	w(`  iifname "%s" ct status dnat accept`, uplink)
	w(`  iifname "%s" ct state established,related accept`, uplink)
	w(`  iifname "%s" drop`, uplink)
	w(` }`)
	w(`}`)
	return b.String()
}

// Lose makes a router lose what goes from one address to another, silently, until Pass.
func (h *Host) Lose(from, to netip.Addr) error { return h.pair("add", from, to) }

// Pass ends what Lose did.
func (h *Host) Pass(from, to netip.Addr) error { return h.pair("delete", from, to) }

// Isolate keeps what two networks of a NAT send to each other from passing, but for what it translates, as many home
// routers do with a network for guests.
func (h *Host) Isolate(one, other netip.Prefix) error {
	return h.nft(fmt.Sprintf(`table inet isolate {
 chain forward { type filter hook forward priority -200
  ct status dnat accept
  ip saddr %[1]s ip daddr %[2]s drop
  ip saddr %[2]s ip daddr %[1]s drop
 }
}
`, one, other))
}

func (h *Host) pair(verb string, from, to netip.Addr) error {
	set, element := "lost4", from.String()+" . "+to.String()
	if from.Is6() {
		set = "lost6"
	}
	return h.nft(`table inet lose {
 set lost4 { type ipv4_addr . ipv4_addr; }
 set lost6 { type ipv6_addr . ipv6_addr; }
 chain forward { type filter hook forward priority -200; }
}
flush chain inet lose forward
add rule inet lose forward ip saddr . ip daddr @lost4 drop
add rule inet lose forward ip6 saddr . ip6 daddr @lost6 drop
` + verb + ` element inet lose ` + set + ` { ` + element + ` }
`)
}

// Silence makes a router send no ICMP errors: too large a packet vanishes.
func (h *Host) Silence() error {
	return h.nft(`table inet silent {
 chain output { type filter hook output priority 0
  icmp type destination-unreachable drop
  icmpv6 type { packet-too-big, destination-unreachable } drop
 }
}
`)
}

// nft runs nft(8) with a script.
func (h *Host) nft(script string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := h.Command(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("setting the rules of %s: %w: %s", h.Name, err, out)
	}
	return nil
}
