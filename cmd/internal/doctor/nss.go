// SPDX-License-Identifier: MIT

//go:build linux

package doctor

import (
	"cmp"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"
)

// NSS finds out whether programs on a machine see mesh names through the name service switch of glibc: module, order of
// sources, snapshot, and then what is outside of it.
func NSS(m *Machine) []Finding {
	var f findings
	if m.OnMesh != "" {
		f.problem("mesh", "`mesh init` makes a mesh, `mesh join TOKEN` joins one", "%s", m.OnMesh)
	}
	checkModules(&f, m)
	checkHostsLine(&f, m)
	checkNetgroupLine(&f, m)
	checkSnapshot(&f, m)
	checkDaemon(&f, m)
	checkHostsFile(&f, m)
	checkCache(&f, m)
	checkLooks(&f, m)
	checkPrograms(&f, m)
	return f
}

// soname is what glibc asks the dynamic linker for.
const soname = "libnss_mesh.so.2"

func checkModules(f *findings, m *Machine) {
	const subject = "module"
	if len(m.Modules) == 0 {
		f.problem(subject, "use the mesh's DNS server: see below under programs", "no glibc was found on this machine, so there is no name service switch")
		return
	}
	for _, x := range m.Modules {
		pkg := "libnss-mesh"
		severity := Problem
		if x.Arch != m.Arch {
			pkg, severity = pkg+":"+x.Arch, Warning // of a second architecture
		}
		install := fmt.Sprintf("`apt install --reinstall %s`, or copy libnss_mesh.so.2 of the release for %s to %s, with mode 0644", pkg, x.Arch, path.Dir(x.Path))
		say := func(remedy, format string, args ...any) {
			*f = append(*f, Finding{Severity: severity, Subject: subject, What: fmt.Sprintf(format, args...), Remedy: remedy})
		}
		switch {
		case !x.Found && severity == Warning:
			say(install+"; where there is none for that architecture, treat these programs like static ones", "programs of %s (%s) do not see mesh names: %s is not there", x.Arch, x.Libc, x.Path)
		case !x.Found:
			say(install, "%s is not there", x.Path)
		case x.Err != "":
			say(install, "%s is damaged: %s", x.Path, x.Err)
		case x.ModuleArch != x.Arch:
			say(install, "%s is for %s, but the programs that load it are for %s", x.Path, x.ModuleArch, x.Arch)
		case x.Soname != soname:
			say(install, "%s calls itself %q, not %s: it is not the mesh's module", x.Path, x.Soname, soname)
		case !x.Functions["_nss_mesh_gethostbyname4_r"] || !x.Functions["_nss_mesh_gethostbyaddr2_r"]:
			say(install, "%s has no functions for host names", x.Path)
		case x.Mode&0o444 != 0o444:
			say(fmt.Sprintf("`chmod 0644 %s`", x.Path), "%s has mode %04o, so programs of other users cannot load it", x.Path, x.Mode.Perm())
		case x.Mode&0o022 != 0 || x.Owner != 0:
			severity = Problem
			say(fmt.Sprintf("`chown root:root %s && chmod 0644 %s`, after you have installed it again", x.Path, x.Path), "%s can be changed by others than root (mode %04o, user %d), and every program of this machine runs it", x.Path, x.Mode.Perm(), x.Owner)
		case x.Apart:
			severity = Warning
			say(fmt.Sprintf("move it to %s; then `ldconfig`", path.Dir(x.Libc)), "%s is not beside %s: it is found only while it is in the dynamic linker's cache", x.Path, x.Libc)
		case m.Snapshot.Groups > 0 && !x.Functions["_nss_mesh_setnetgrent"]:
			severity = Warning
			say(install, "%s is of an older version, which does not know groups", x.Path)
		default:
			f.ok(subject, "%s is there, for %s", x.Path, x.Arch)
		}
	}
}

func checkSnapshot(f *findings, m *Machine) {
	const subject = "snapshot"
	s := m.Snapshot
	folder := path.Dir(s.Path)
	again := "`systemctl restart meshd` writes it anew"
	switch {
	case s.Missing:
		f.problem(subject, "`systemctl start meshd`: it writes the file as soon as it runs", "%s is not there, so mesh has no names to give", s.Path)
		return
	case s.Err != "":
		f.problem(subject, again, "%s cannot be looked at: %s", s.Path, s.Err)
		return
	case !s.Mode.IsRegular():
		f.problem(subject, fmt.Sprintf("remove it; %s", again), "%s is %s: no program reads it", s.Path, kind(s.Mode))
		return
	case s.FolderMode&0o022 != 0:
		f.problem(subject, fmt.Sprintf("`chmod 0755 %s`, and find out who made it so", folder), "others may write to %s (mode %04o): they can give every program false names", folder, s.FolderMode.Perm())
	case s.Mode&0o022 != 0:
		f.problem(subject, fmt.Sprintf("`chmod 0644 %s`, and find out who made it so", s.Path), "others may write to %s (mode %04o): they can give every program false names", s.Path, s.Mode.Perm())
	case s.FolderOwner != 0 && s.FolderOwner != m.MeshUser || s.Owner != 0 && s.Owner != m.MeshUser:
		f.problem(subject, fmt.Sprintf("`chown -R root:root %s`, or let it be meshd's own user, and find out who made it so", folder), "%s is user %d's, and %s user %d's: they can give every program false names", folder, s.FolderOwner, s.Path, s.Owner)
	case s.FolderMode&0o005 != 0o005:
		f.problem(subject, fmt.Sprintf("`chmod 0755 %s`", folder), "%s has mode %04o, so programs of other users cannot reach the snapshot", folder, s.FolderMode.Perm())
	case s.Mode&0o444 != 0o444:
		f.problem(subject, fmt.Sprintf("`chmod 0644 %s`", s.Path), "%s has mode %04o, so programs of other users cannot read it", s.Path, s.Mode.Perm())
	}
	switch {
	case s.Damage != "":
		f.problem(subject, again+"; if that does not help, mesh and meshd are of different versions", "%s is not believed: %s", s.Path, s.Damage)
	case m.OnMesh == "" && !s.Own:
		f.problem(subject, again, "%s does not have this node, %s.%s: it is of another mesh, or of before", s.Path, m.Name, m.Zone)
	case !m.Now.Before(s.Created):
		f.ok(subject, "%s has %s, made %s ago, at revision %d", s.Path, count(len(s.Hosts), "host"), ago(m.Now.Sub(s.Created)), s.Revision)
	default:
		f.warning(subject, "set the clock, for example with systemd-timesyncd", "%s has %s and was made %s in the future: this machine's clock was or is wrong", s.Path, count(len(s.Hosts), "host"), ago(s.Created.Sub(m.Now)))
	}
}

func checkDaemon(f *findings, m *Machine) {
	const subject = "meshd"
	d := m.Daemon
	switch {
	case m.OnMesh != "":
	case d.Forbidden:
		f.warning(subject, "run this as root, or as a member of the group mesh", "it cannot be asked how old the names are: %s", d.Err)
	case d.Err != "":
		f.warning(subject, "`systemctl start meshd`, and `systemctl enable meshd` for the next boot; `journalctl -u meshd` says why it ended", "meshd does not run: names are as they were %s ago and do not change", ago(m.Now.Sub(m.Snapshot.Created)))
	case d.Warning != "":
		f.problem(subject, "make room on that file system, or give meshd the right to write there", "%s", d.Warning)
	case d.Stale > 0 && d.Store != "none":
		f.warning(subject, "`mesh status` says why; names go on resolving meanwhile", "meshd runs, but the store is %s: names are as of %s ago", d.Store, ago(d.Stale))
	case d.Version != m.Version:
		f.warning(subject, "`systemctl restart meshd`, after both have been brought to one version", "meshd runs as version %s, but this program is version %s", d.Version, m.Version)
	default:
		f.ok(subject, "meshd runs and the names are up to date")
	}
}

// checkHostsFile says which names of the mesh /etc/hosts gives another meaning, and which of its own are not seen.
func checkHostsFile(f *findings, m *Machine) {
	const subject = "/etc/hosts"
	if m.HostsFile.Err != "" || len(m.Snapshot.Hosts) == 0 {
		return
	}
	has := map[string]*Host{}
	for i := range m.Snapshot.Hosts {
		h := &m.Snapshot.Hosts[i]
		for _, n := range append([]string{h.Name, strings.TrimSuffix(h.Name, "."+m.Zone)}, h.Aliases...) {
			has[n] = h
		}
	}
	var other, own, same []string
	for n, line := range strings.Split(m.HostsFile.Text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		a, err := netip.ParseAddr(fields[0])
		if err != nil {
			continue
		}
		for _, name := range fields[1:] {
			h := has[strings.ToLower(strings.TrimSuffix(name, "."))]
			text := fmt.Sprintf("    line %d  %s %s", n+1, a, name)
			switch {
			case h == nil:
			case slices.Contains(h.Addrs, a):
				same = append(same, text)
			case h.Name == m.Name+"."+m.Zone:
				own = append(own, text)
			default:
				other = append(other, fmt.Sprintf("%s, on the mesh %s", text, h.Addrs[0]))
			}
		}
	}
	if len(other) > 0 {
		f.warning(subject, "remove these names from /etc/hosts, or live with it: here /etc/hosts wins", "it gives %s of the mesh another meaning on this machine", count(len(other), "name"))
		f.detail(other...)
	}
	if len(own) > 0 {
		f.warning(subject, "remove these names from /etc/hosts: mesh answers for them, without a network too", "this node's own name leads elsewhere here than on other nodes: programs that listen at it are not reached over the mesh")
		f.detail(own...)
	}
	if len(other)+len(own) > 0 {
		return
	}
	what := "it hides no name of the mesh"
	if len(same) > 0 {
		what = fmt.Sprintf("it says the same as the mesh of %s", count(len(same), "name"))
	}
	f.ok(subject, "%s", what)
}

func ownAddrs(m *Machine) []netip.Addr {
	for _, h := range m.Snapshot.Hosts {
		if h.Name == m.Name+"."+m.Zone {
			return h.Addrs
		}
	}
	return nil
}

func first(addrs []netip.Addr, none string) string {
	if len(addrs) == 0 {
		return none
	}
	return addrs[0].String()
}

func checkCache(f *findings, m *Machine) {
	const subject = "cache"
	switch c := m.Cache; {
	case c.Name == "":
	case !c.Hosts:
		f.ok(subject, "%s runs, but does not cache hosts", c.Name)
	default:
		f.warning(subject, "in /etc/nscd.conf write\n    enable-cache hosts no\nand `systemctl restart nscd`; `nscd -i hosts` forgets once what it has", "%s runs and answers before mesh does: a new name is not seen for 20 s after it was asked for in vain, an old one for up to an hour", c.Name)
	}
}

// checkLooks says what the look-ups that were really made found.
func checkLooks(f *findings, m *Machine) {
	const subject = "look-up"
	if m.OnMesh != "" {
		return
	}
	want := ownAddrs(m)
	sort := func(a []netip.Addr) []netip.Addr {
		return slices.Compact(slices.SortedFunc(slices.Values(a), netip.Addr.Compare))
	}
	// The best answer to why a look-up fails stands above; without one it is the module itself.
	broken := slices.ContainsFunc(*f, func(x Finding) bool { return x.Severity == Problem })
	for _, l := range m.Look {
		overlap := slices.ContainsFunc(l.Addrs, func(a netip.Addr) bool { return slices.Contains(want, a) })
		switch {
		case l.Missing:
			f.ok(subject, "there is no getent here, so no real look-up was made")
			return
		case l.Err == "" && overlap:
			f.ok(subject, "`%s` answers %s", l.Command, first(sort(l.Addrs), ""))
		case l.Err == "" && len(want) > 0:
			f.warning(subject, "see above for what comes before mesh; /etc/hosts wins over all", "`%s` answers %s, but on the mesh this node is %s", l.Command, first(l.Addrs, "nothing"), want[0])
		case broken:
			f.problem(subject, "see the problems above", "`%s` fails: %s", l.Command, l.Err)
		case l.Only:
			f.problem(subject, "install mesh, meshd and libnss-mesh of one version. If that does not help, see whether AppArmor or SELinux forbids it (`journalctl -k | grep -i denied`), and whether it opens both:\n    strace -e trace=openat "+l.Command, "`%s` fails, though module and snapshot are there: %s", l.Command, l.Err)
			broken = true
		default:
			f.problem(subject, "see the hosts line above", "`%s` fails, though mesh alone answers: %s", l.Command, l.Err)
		}
	}
}

// reasons in the order in which they are shown.
var reasons = []struct {
	why       Reason
	what      string // after the count of programs
	container bool
}{
	{Go, "built with Go without cgo", false},
	{Static, "linked statically", false},
	{Musl, "built for musl", false},
	{OtherLibc, "built for a libc that is not glibc", false},
	{NoSwitch, "in containers whose nsswitch.conf does not have mesh", true},
	{NoModule, "in containers that have no " + soname, true},
	{NoSnapshot, "that have another /run than this machine", true},
}

// shown bounds the programs that one finding lists.
const shown = 8

func checkPrograms(f *findings, m *Machine) {
	const subject = "programs"
	dns := fmt.Sprintf("they can ask DNS: let the server that they use send %s on to the one of this node (in dnsmasq `server=/%s/%s`), or put what `mesh hosts --format hosts` prints into the hosts file that they read", m.Zone, m.Zone, first(ownAddrs(m), "ADDRESS"))
	bind := fmt.Sprintf("in the image: install libnss-mesh and write `hosts: files mesh dns`; at the start of the container: `--volume %s:%s:ro`. Where the image has no glibc: DNS, as for static programs", path.Dir(m.Snapshot.Path), path.Dir(m.Snapshot.Path))
	for _, r := range reasons {
		list := slices.DeleteFunc(slices.Clone(m.Programs), func(p Program) bool { return p.Why != r.why })
		if len(list) == 0 {
			continue
		}
		slices.SortFunc(list, func(a, b Program) int {
			return cmp.Or(strings.Compare(a.Where, b.Where), cmp.Compare(b.Count, a.Count), strings.Compare(a.Path, b.Path))
		})
		remedy := dns
		switch {
		case r.why == NoSnapshot:
			remedy = fmt.Sprintf("let them see %s: in a unit `BindReadOnlyPaths=%s`, for a container `--volume %s:%s:ro`", path.Dir(m.Snapshot.Path), path.Dir(m.Snapshot.Path), path.Dir(m.Snapshot.Path), path.Dir(m.Snapshot.Path))
		case r.container:
			remedy = bind
		}
		f.warning(subject, remedy, "%s %s do not see mesh names", count(len(list), "running program"), r.what)
		if len(list) == 1 {
			(*f)[len(*f)-1].What = fmt.Sprintf("1 running program %s does not see mesh names", singular(r.what))
		}
		for i, p := range list {
			if i == shown {
				f.detail(fmt.Sprintf("    and %d more; all of them: `mesh doctor nss --json`", len(list)-shown))
				break
			}
			line := "    " + p.Path
			if p.Count > 1 {
				line += fmt.Sprintf(" ×%d", p.Count)
			} else {
				line += fmt.Sprintf(" (%d)", p.PID)
			}
			if p.Where != "" {
				line += " in " + p.Where
			}
			f.detail(line)
		}
	}
	switch {
	case m.Hidden > 0 && !m.Root:
		f.warning(subject, "run this as root", "%s of other users could not be looked at", count(m.Hidden, "process"))
	case len(m.Programs) == 0:
		f.ok(subject, "every running program can see mesh names")
	}
}

func singular(s string) string {
	return strings.NewReplacer("containers whose", "a container whose", "containers that have", "a container that has", "that have", "that has").Replace(s)
}

func count(n int, what string) string {
	switch {
	case n == 1:
		return "1 " + what
	case strings.HasSuffix(what, "s"):
		return fmt.Sprintf("%d %ses", n, what)
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// ago is a length of time at a glance.
func ago(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

func kind(m fs.FileMode) string {
	switch {
	case m&fs.ModeSymlink != 0:
		return "a symbolic link"
	case m.IsDir():
		return "a directory"
	case m&fs.ModeNamedPipe != 0:
		return "a named pipe"
	}
	return "no regular file"
}
