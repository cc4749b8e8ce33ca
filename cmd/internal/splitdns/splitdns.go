// SPDX-License-Identifier: MIT

// Package splitdns has a machine's programs that speak DNS ask meshd for the names of the mesh, and nobody else but for
// those: with systemd-resolved, NetworkManager, dnsmasq or openresolv, whichever it is that /etc/resolv.conf sends them to.
//
// Choose is a pure function of what Gather has read and of what is wanted. Setup brings the machine in line with it and
// may be repeated; Undo takes away everything that Setup and Takeover can have made, by its mark or by its name, whether
// it is known to be there or not. So there is no journal that could be lost or disagree with the machine: an Undo after a
// crash is the same as one without.
//
// /etc/resolv.conf is touched by Takeover alone, which keeps the very file (its inode) beside it, and refuses where a
// program looks after it. The package starts no goroutine, and is not for meshd, which has no root: mesh, the command,
// uses it, and meshd.service runs that.
package splitdns

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
)

// Want is what is to be brought about.
type Want struct {
	Zone      string
	Reverse   []string     // zones of the mesh's addresses
	Servers   []netip.Addr // where meshd answers on this machine, port 53
	Interface string
}

// Machine is what was read of a machine.
type Machine struct {
	Interface      int // index of the mesh's; 0: it is not there
	Resolv         Resolv
	NSSResolve     bool // the hosts line of nsswitch.conf has "resolve"
	Resolved       Resolved
	NetworkManager bool              // runs
	NMDnsmasq      bool              // a dnsmasq of NetworkManager's runs
	Dnsmasq        bool              // a dnsmasq for the machine runs
	DnsmasqDir     string            // which reads this folder; empty: none
	Resolvconf     string            // "openresolv", or "resolvconf", Debian's; empty: neither
	Openresolv     string            // the name server on this machine that openresolv configures; empty: none
	Files          map[string]string // those that Setup may have made and that are there
	Private        bool              // openresolv has ours
}

// Resolved is systemd-resolved.
type Resolved struct {
	Running bool
	Err     string       // why it cannot be talked to
	Version int          // of systemd; 0: not known
	Managed bool         // systemd-networkd configures the mesh's interface, so nobody else may
	DNS     []netip.Addr // of the mesh's interface
	Domains []string     // likewise; of those for routing only "~zone"
}

// Resolv is /etc/resolv.conf.
type Resolv struct {
	Target string // of the symbolic link; empty: it is none
	Text   string
	Err    string // why it cannot be read
	Saved  bool   // what was there before a Takeover is kept
	Cut    bool   // a Takeover was cut off when it had kept the file and not yet put another in its place
}

// Ways.
const (
	ByResolved       = "systemd-resolved"
	ByDelegate       = "systemd-resolved, delegate"
	ByNetworkManager = "NetworkManager"
	ByDnsmasq        = "dnsmasq"
	ByOpenresolv     = "openresolv"
)

// The files. Those that end in mesh.conf are in a folder of others.
const (
	resolvConf   = "/etc/resolv.conf"
	savedConf    = "/etc/resolv.conf.before-mesh"
	nmFolder     = "/etc/NetworkManager/dnsmasq.d"
	dnsmasqDir   = "/etc/dnsmasq.d"
	confName     = "mesh.conf"
	delegateFile = "/run/systemd/dns-delegate.d/mesh.dns-delegate"
	privateName  = "mesh" // for openresolv
)

// mark begins everything that this package writes.
const mark = "# made by mesh dns;"

// Plan is how a machine comes to ask meshd.
type Plan struct {
	Way     string // empty: there is none
	Why     string // a sentence: what on this machine makes it so
	Lasting bool   // it leaves something in /etc, so it is done when asked for only
	Done    bool
	Problem string // why it cannot be done now
	File    string // to write; empty: none
	Text    string
}

// Choose says how. What asks is what counts: a name server that runs and is not asked is no way.
func Choose(m Machine, w Want) Plan {
	servers := m.Resolv.servers()
	local := slices.ContainsFunc(servers, func(s string) bool {
		a, err := netip.ParseAddr(s)
		return err == nil && a.IsLoopback()
	})
	stub := slices.Contains(servers, "127.0.0.53") || slices.Contains(servers, "127.0.0.54") || strings.HasPrefix(m.Resolv.target(), "/run/systemd/resolve/")
	switch {
	case m.Resolved.Running && (stub || m.NSSResolve):
		return resolved(m, w)
	case m.NMDnsmasq && local:
		return file(m, Plan{Way: ByNetworkManager, Lasting: true, Why: "/etc/resolv.conf sends programs to the dnsmasq of NetworkManager", File: filepath.Join(nmFolder, confName), Text: dnsmasqConf(w)})
	case m.Openresolv != "" && local:
		return Plan{Way: ByOpenresolv, Lasting: true, Why: fmt.Sprintf("openresolv configures %s, to which /etc/resolv.conf sends programs", m.Openresolv), Text: privateConf(w), Done: m.Private}
	case m.Dnsmasq && local:
		p := Plan{Way: ByDnsmasq, Lasting: true, Why: "/etc/resolv.conf sends programs to the dnsmasq of this machine"}
		if m.DnsmasqDir == "" {
			p.Text = dnsmasqConf(w)
			p.Problem = "it reads no folder: put these lines into its configuration, or conf-dir=" + dnsmasqDir
			return p
		}
		p.File, p.Text = filepath.Join(m.DnsmasqDir, confName), dnsmasqConf(w)
		return file(m, p)
	}
	return Plan{Why: why(m, servers, local)}
}

// why says why there is no way.
func why(m Machine, servers []string, local bool) string {
	switch {
	case m.Resolv.ours():
		return "/etc/resolv.conf is taken over: it sends programs to meshd first"
	case m.Resolv.Err != "":
		return "/etc/resolv.conf cannot be read: " + m.Resolv.Err
	case m.Resolved.Running:
		return "systemd-resolved runs, but nobody asks it: /etc/resolv.conf is not a link to /run/systemd/resolve/stub-resolv.conf"
	case m.Dnsmasq:
		return "dnsmasq runs, but /etc/resolv.conf does not send programs to it"
	case local:
		return "/etc/resolv.conf sends programs to a name server on this machine that mesh does not know: have it forward the zone"
	case len(servers) == 0:
		return "/etc/resolv.conf names no server"
	case m.Resolvconf != "":
		return m.Resolvconf + " writes /etc/resolv.conf, for no name server on this machine: there is nothing that could ask two servers different things"
	}
	return "/etc/resolv.conf sends programs to " + strings.Join(servers, ", ") + " directly: there is nothing on this machine that could ask two servers different things"
}

// resolved plans for systemd-resolved: what belongs to an interface goes with it, and needs no file.
func resolved(m Machine, w Want) Plan {
	p := Plan{Way: ByResolved, Why: "programs ask systemd-resolved, which takes servers and domains for an interface"}
	switch {
	case m.Resolved.Err != "":
		p.Problem = "it cannot be talked to: " + m.Resolved.Err
	case m.Resolved.Managed && m.Resolved.Version >= 258: // systemd.dns-delegate(5)
		return file(m, Plan{Way: ByDelegate, Why: "programs ask systemd-resolved, and systemd-networkd configures " + w.Interface, File: delegateFile, Text: delegateConf(w)})
	case m.Resolved.Managed:
		p.Text = networkConf(w)
		p.Problem = fmt.Sprintf("systemd-networkd configures %s, so nobody else may: put these lines into its .network file, or have it leave %s alone (Unmanaged=yes)", w.Interface, w.Interface)
	case m.Interface == 0:
		p.Problem = fmt.Sprintf("there is no interface %s: start meshd", w.Interface)
	default:
		p.Done = slices.Equal(m.Resolved.DNS, w.Servers) && slices.Equal(sorted(m.Resolved.Domains), sorted(w.domains()))
	}
	return p
}

func sorted(s []string) []string { s = slices.Clone(s); slices.Sort(s); return s }

// file completes a plan that writes a file.
func file(m Machine, p Plan) Plan {
	switch text, there := m.Files[p.File]; {
	case there && !strings.HasPrefix(text, mark):
		p.Problem = p.File + " is there and was not made by mesh: move it away"
	case there:
		p.Done = text == p.Text
	}
	return p
}

// domains are those of systemd-resolved's, for routing only (systemd.network(5), Domains=).
func (w Want) domains() (out []string) {
	for _, z := range append([]string{w.Zone}, w.Reverse...) {
		out = append(out, "~"+z)
	}
	return out
}

func (w Want) servers() string {
	var s []string
	for _, a := range w.Servers {
		s = append(s, a.String())
	}
	return strings.Join(s, " ")
}

const undo = " `mesh dns undo` takes it away\n"

// dnsmasqConf is dnsmasq(8)'s: a server for domains, whose private addresses are no attack (--stop-dns-rebind).
func dnsmasqConf(w Want) string {
	var b strings.Builder
	b.WriteString(mark + undo)
	for _, z := range append([]string{w.Zone}, w.Reverse...) {
		for _, s := range w.Servers {
			fmt.Fprintf(&b, "server=/%s/%s\n", z, s)
		}
	}
	fmt.Fprintf(&b, "rebind-domain-ok=/%s/\n", w.Zone)
	return b.String()
}

func delegateConf(w Want) string {
	return mark + undo + "[Delegate]\nDNS=" + w.servers() + "\nDomains=" + strings.Join(w.domains(), " ") + "\nDefaultRoute=no\n"
}

func networkConf(w Want) string {
	return "[Network]\nDNS=" + w.servers() + "\nDomains=" + strings.Join(w.domains(), " ") + "\nDNSDefaultRoute=no\nDNSSEC=no\n"
}

// privateConf is what openresolv takes for an interface: only the domains are asked for there (resolvconf(8), -p).
func privateConf(w Want) string {
	var b strings.Builder
	b.WriteString(mark + undo)
	fmt.Fprintf(&b, "search %s\n", strings.Join(append([]string{w.Zone}, w.Reverse...), " "))
	for _, s := range w.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	return b.String()
}

// target is where the symbolic link leads.
func (r Resolv) target() string {
	if r.Target == "" || filepath.IsAbs(r.Target) {
		return r.Target
	}
	return filepath.Join(filepath.Dir(resolvConf), r.Target)
}

func (r Resolv) ours() bool { return strings.HasPrefix(r.Text, mark) }

func (r Resolv) servers() (out []string) {
	for line := range strings.Lines(r.Text) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" { // resolv.conf(5)
			out = append(out, f[1])
		}
	}
	return out
}

// managers are who writes /etc/resolv.conf, by words of their comments.
var managers = [...]struct{ word, name string }{
	{"systemd-resolved", "systemd-resolved"}, {"NetworkManager", "NetworkManager"}, {"openresolv", "openresolv"}, {"resolvconf", "resolvconf"},
	{"connman", "ConnMan"}, {"Connection Manager", "ConnMan"}, {"dhcpcd", "dhcpcd"}, {"netconfig", "netconfig"}, {"tailscale", "Tailscale"}, {"WSL", "WSL"},
}

// manager is who looks after /etc/resolv.conf; empty: nobody that is known.
func (m Machine) manager() string {
	if m.Resolv.ours() {
		return ""
	}
	if t := m.Resolv.target(); t != "" {
		for _, x := range managers {
			if strings.Contains(t, x.name) || strings.Contains(t, x.word) {
				return x.name
			}
		}
		if strings.HasPrefix(t, "/run/systemd/resolve/") {
			return "systemd-resolved"
		}
		return "whoever writes " + t
	}
	for line := range strings.Lines(m.Resolv.Text) {
		if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, ";") {
			continue
		}
		for _, x := range managers {
			if strings.Contains(line, x.word) {
				return x.name
			}
		}
	}
	return ""
}

// takenOver is /etc/resolv.conf with meshd's servers in front. What it does not know it refuses, and glibc, musl and Go
// then take the next one's word; they ask three at most (resolv.conf(5)).
func takenOver(text string, w Want) string {
	var b strings.Builder
	b.WriteString(mark + undo)
	n := 0
	server := func(a string) {
		if n++; n <= 3 {
			fmt.Fprintf(&b, "nameserver %s\n", a)
		}
	}
	server(w.Servers[0].String())
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) > 1 && f[0] == "nameserver":
			server(f[1])
		default:
			b.WriteString(strings.TrimRight(line, "\n") + "\n")
		}
	}
	return b.String()
}

// ReverseZones are the zones of a prefix's addresses: one, or, where it ends within a label, several, at most 128.
func ReverseZones(p netip.Prefix) (out []string) {
	p = p.Masked()
	per, digit := 8, "%d"
	if p.Addr().Is6() {
		per, digit = 4, "%x"
	}
	labels := (p.Bits() + per - 1) / per
	b := p.Addr().AsSlice()
	label := func(i int) int {
		if per == 8 {
			return int(b[i])
		}
		return int(b[i/2]>>(4*(1-i%2))) & 15
	}
	suffix := map[int]string{8: "in-addr.arpa", 4: "ip6.arpa"}[per]
	for i := range labels - 1 {
		suffix = fmt.Sprintf(digit, label(i)) + "." + suffix
	}
	if labels == 0 {
		return []string{suffix}
	}
	for i := range 1 << (labels*per - p.Bits()) {
		out = append(out, fmt.Sprintf(digit, label(labels-1)+i)+"."+suffix)
	}
	return out
}
