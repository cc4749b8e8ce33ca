// SPDX-License-Identifier: MIT

//go:build linux

package doctor

import (
	"fmt"
	"slices"
	"strings"
)

const nsswitchFile = "/etc/nsswitch.conf"

// checkHostsLine says whether a look-up of a mesh name gets to mesh, what it passes before, and whether look-ups of other
// names get past it.
func checkHostsLine(f *findings, m *Machine) {
	const subject = "hosts"
	if m.Nsswitch.Err != "" {
		f.problem(subject, "write it, for example with the line\n    hosts: files mesh dns", "%s cannot be read (%s), so programs use glibc's defaults, which do not have mesh", nsswitchFile, m.Nsswitch.Err)
		return
	}
	d := ParseNsswitch(m.Nsswitch.Text)["hosts"]
	fix := fmt.Sprintf("in %s write\n    hosts: %s", nsswitchFile, d.proposed())
	if d == nil {
		f.problem(subject, fmt.Sprintf("in %s write\n    hosts: files mesh dns", nsswitchFile), "%s has no hosts line, so programs use glibc's default, which does not have mesh", nsswitchFile)
		return
	}
	before := len(*f)
	if d.Err != "" {
		f.problem(subject, fix, "line %d of %s is malformed: %s; glibc reads no further", d.Line, nsswitchFile, d.Err)
	}
	if len(d.Earlier) > 0 {
		f.warning(subject, fmt.Sprintf("remove line %d of %s", d.Earlier[0], nsswitchFile), "%s has more than one hosts line; only the last, line %d, counts", nsswitchFile, d.Line)
	}
	at := slices.IndexFunc(d.Services, func(s Service) bool { return s.Name == moduleName })
	if at < 0 {
		what := "mesh is not in the hosts line, so no program asks for mesh names"
		for _, s := range d.Services {
			if strings.Contains(strings.ToLower(s.Name), moduleName) {
				what = fmt.Sprintf("the hosts line has %q, which glibc does not take for mesh", s.Name)
			}
		}
		f.problem(subject, fix, "%s", what)
		f.detail(order(d, m.Zone)...)
		return
	}
	if slices.ContainsFunc(d.Services[at+1:], func(s Service) bool { return s.Name == moduleName }) {
		f.warning(subject, fix, "mesh is in the hosts line twice: every name that is nobody's is looked for twice")
	}
	for _, s := range d.Services[:at] {
		checkBefore(f, m, s, fix)
	}
	checkAfter(f, d, at, fix)
	if len(*f) == before {
		f.ok(subject, "mesh is where it belongs in %s", nsswitchFile)
	}
	f.detail(order(d, m.Zone)...)
}

// checkBefore says what a source before mesh does to look-ups of mesh names.
func checkBefore(f *findings, m *Machine, s Service, fix string) {
	const subject = "hosts"
	// What the source says of a name of the mesh, which it does not know.
	status := "NOTFOUND"
	minimal := strings.HasSuffix(s.Name, "_minimal") && !strings.HasSuffix(m.Zone, ".local")
	if minimal {
		status = "UNAVAIL" // nss-mdns: a name that is not its business
	}
	asks := slices.Contains([]string{"dns", "resolve", "wins", "ldap", "nis", "nisplus", "mdns", "mdns4", "mdns6"}, s.Name)
	switch {
	case s.after(status) != "continue":
		asked := "mesh is never asked"
		if asks && s.after("UNAVAIL") == "continue" {
			asked = "mesh is asked only when " + s.Name + " is down"
		}
		f.problem(subject, fix, "%s comes before mesh and ends the search for every name that it does not know: %s", s, asked)
	case s.after("SUCCESS") == "merge":
		f.problem(subject, fix, "%s comes before mesh, but glibc merges groups only, so the answers of %s are lost", s, s.Name)
	case s.after("SUCCESS") == "continue":
		f.warning(subject, fix, "%s comes before mesh: what %s finds is thrown away where mesh is asked after it", s, s.Name)
	case asks && (s.after("UNAVAIL") == "return" || s.after("TRYAGAIN") == "return"):
		f.problem(subject, fix, "%s comes before mesh and ends the search when the network is away, just when names should still resolve", s)
	case asks:
		f.warning(subject, fix, "%s comes before mesh: every mesh name is asked for in the network first, where it is slow, seen by others, and theirs to answer", s.Name)
	case minimal && s.after("NOTFOUND") == "return":
		f.warning(subject, fix, "%s comes before mesh: mesh names get past it only because it leaves all but .local alone", s)
	case s.after("UNAVAIL") == "return":
		f.warning(subject, fix, "%s comes before mesh and ends the search when it does not work", s)
	case s.Name == "myhostname" && m.Name != "" && (m.Hostname == m.Name || m.Hostname == m.Name+"."+m.Zone):
		f.warning(subject, fix, "myhostname comes before mesh: on this machine its own name %s leads to all its addresses, not to the one on the mesh", m.Hostname)
	}
}

// checkAfter says what the actions after mesh do to look-ups of all other names, and what comes too late.
func checkAfter(f *findings, d *Database, at int, fix string) {
	const subject = "hosts"
	s, rest := d.Services[at], d.Services[at+1:]
	if len(rest) > 0 {
		switch {
		case s.after("NOTFOUND") != "continue":
			f.problem(subject, fix, "%s ends the search for every name that is not on the mesh: %s is never asked", s, rest[0].Name)
		case s.after("UNAVAIL") != "continue":
			f.problem(subject, fix, "%s ends the search for every name of the world when the snapshot cannot be read, as before the first start of meshd", s)
		}
		if s.after("SUCCESS") != "return" {
			f.problem(subject, fix, "%s does not stop when mesh has found a name: the sources after it are asked too", s)
		}
	}
	if slices.ContainsFunc(rest, func(s Service) bool { return s.Name == "files" }) {
		f.warning(subject, fix, "files comes after mesh: what the administrator wrote into /etc/hosts should win over what others call their hosts")
	}
}

// order explains a hosts line source by source.
func order(d *Database, zone string) []string {
	lines := []string{"    hosts: " + d.String()}
	width := 0
	for _, s := range d.Services {
		width = max(width, len(s.Name))
	}
	for i, s := range d.Services {
		line := fmt.Sprintf("    %d  %-*s  %s", i+1, width, s.Name, describe(s.Name, zone))
		if s.after("NOTFOUND") != "continue" && i < len(d.Services)-1 {
			line += "; unknown ones end here"
		}
		lines = append(lines, line)
	}
	return lines
}

// checkNetgroupLine says whether programs see the mesh's groups.
func checkNetgroupLine(f *findings, m *Machine) {
	const subject = "netgroup"
	if m.Nsswitch.Err != "" {
		return // said before
	}
	d := ParseNsswitch(m.Nsswitch.Text)["netgroup"]
	// "netgroup: nis" is what distributions have, and nobody has NIS.
	fix := fmt.Sprintf("in %s write\n    netgroup: files mesh", nsswitchFile)
	if d != nil && slices.ContainsFunc(d.Services, func(s Service) bool { return s.Name != "files" && s.Name != "nis" && s.Name != moduleName }) {
		fix = fmt.Sprintf("in %s write\n    netgroup: %s", nsswitchFile, d.proposed())
	}
	at := -1
	if d != nil {
		at = slices.IndexFunc(d.Services, func(s Service) bool { return s.Name == moduleName })
	}
	switch {
	case at < 0 && m.Snapshot.Groups == 0:
		f.ok(subject, "mesh is not in the netgroup line; it need not be, as the mesh has no groups")
	case at < 0:
		f.warning(subject, fix, "mesh is not in the netgroup line, so NFS exports and sshd do not see the mesh's groups (%d)", m.Snapshot.Groups)
	case d.Err != "":
		f.warning(subject, fix, "line %d of %s is malformed: %s; glibc reads no further", d.Line, nsswitchFile, d.Err)
	default:
		for _, s := range d.Services[:at] {
			if s.after("NOTFOUND") != "continue" || s.after("UNAVAIL") != "continue" {
				f.warning(subject, fix, "%s comes before mesh in the netgroup line and ends the search: the mesh's groups are not seen", s)
				return
			}
		}
		f.ok(subject, "programs see the mesh's groups (%d)", m.Snapshot.Groups)
	}
}
