// SPDX-License-Identifier: MIT

//go:build linux

package doctor

import (
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

// healthy is a machine on which all is as it should be.
func healthy() *Machine {
	a := netip.MustParseAddr
	return &Machine{
		Now: now, Root: true, Arch: "amd64", Hostname: "nibz", Name: "nibz", Zone: "mesh.internal",
		Nsswitch:  File{Text: "passwd: files\nhosts: files mesh mdns4_minimal [NOTFOUND=return] dns\nnetgroup: files mesh\n"},
		HostsFile: File{Text: "127.0.0.1 localhost\n192.0.2.1 nas # at home\n"},
		Modules: []Module{{Libc: "/usr/lib/x86_64-linux-gnu/libc.so.6", Arch: "amd64", Path: "/usr/lib/x86_64-linux-gnu/libnss_mesh.so.2",
			Found: true, Mode: 0o644, ModuleArch: "amd64", Soname: soname,
			Functions: map[string]bool{"_nss_mesh_gethostbyname4_r": true, "_nss_mesh_gethostbyaddr2_r": true, "_nss_mesh_setnetgrent": true}}},
		Snapshot: Snapshot{Path: "/run/mesh/hosts.db", Mode: 0o644, FolderMode: fs.ModeDir | 0o755, Created: now.Add(-3 * time.Hour), Revision: 7, Own: true, Groups: 2,
			Hosts: []Host{
				{Name: "nibz.mesh.internal", Aliases: []string{"nibz"}, Addrs: []netip.Addr{a("10.11.0.3"), a("fd00::3")}},
				{Name: "printer.mesh.internal", Aliases: []string{"printer", "laser", "laser.mesh.internal"}, Addrs: []netip.Addr{a("10.11.0.77")}},
			}},
		Daemon: Daemon{Store: "ok"},
		Look: []Look{{Command: "getent -s hosts:mesh ahosts nibz.mesh.internal", Only: true, Addrs: []netip.Addr{a("10.11.0.3"), a("fd00::3")}},
			{Command: "getent ahosts nibz", Addrs: []netip.Addr{a("fd00::3"), a("10.11.0.3")}}},
	}
}

// hosts is a change of the hosts line.
func hosts(line string) func(*Machine) {
	return func(m *Machine) { m.Nsswitch.Text = "hosts: " + line + "\nnetgroup: files mesh\n" }
}

func hostsFile(text string) func(*Machine) {
	return func(m *Machine) { m.HostsFile.Text = "127.0.0.1 localhost\n" + text + "\n" }
}

func TestNSS(t *testing.T) {
	// What is found beside what is good: "SEVERITY SUBJECT: part of what, part of the remedy", one or more.
	for _, c := range []struct {
		name   string
		change func(*Machine)
		want   []string
	}{
		{"healthy", func(*Machine) {}, nil},
		{"on no mesh", func(m *Machine) { m.OnMesh, m.Name = "mesh.toml does not exist", "" }, []string{"problem mesh: mesh.toml does not exist, mesh join"}},

		// The module.
		{"no glibc", func(m *Machine) { m.Modules = nil }, []string{"problem module: no glibc, DNS"}},
		{"no module", func(m *Machine) { m.Modules[0].Found = false }, []string{"problem module: is not there, apt install --reinstall libnss-mesh`"}},
		{"damaged module", func(m *Machine) { m.Modules[0].Err = "bad magic" }, []string{"problem module: bad magic, reinstall"}},
		{"wrong architecture", func(m *Machine) { m.Modules[0].ModuleArch = "arm64" }, []string{"problem module: is for arm64, for amd64"}},
		{"wrong soname", func(m *Machine) { m.Modules[0].Soname = "libnss_mesh.so.1" }, []string{"problem module: libnss_mesh.so.1, reinstall"}},
		{"no functions", func(m *Machine) { m.Modules[0].Functions = nil }, []string{"problem module: no functions, reinstall"}},
		{"old module", func(m *Machine) { delete(m.Modules[0].Functions, "_nss_mesh_setnetgrent") }, []string{"warning module: older version, reinstall"}},
		{"unreadable module", func(m *Machine) { m.Modules[0].Mode = 0o600 }, []string{"problem module: 0600, chmod 0644"}},
		{"open module", func(m *Machine) { m.Modules[0].Mode = 0o666 }, []string{"problem module: changed by others, chmod 0644"}},
		{"somebody's module", func(m *Machine) { m.Modules[0].Owner = 1000 }, []string{"problem module: user 1000, chown root"}},
		{"module apart", func(m *Machine) { m.Modules[0].Apart = true }, []string{"warning module: cache, ldconfig"}},
		{"second architecture without", func(m *Machine) {
			m.Modules = append(m.Modules, Module{Libc: "/usr/lib/i386-linux-gnu/libc.so.6", Arch: "i386", Path: "/usr/lib/i386-linux-gnu/libnss_mesh.so.2"})
		}, []string{"warning module: programs of i386, libnss-mesh:i386"}},

		// The order of sources.
		{"no nsswitch.conf", func(m *Machine) { m.Nsswitch = File{Err: "no such file"} }, []string{"problem hosts: defaults, hosts: files mesh dns"}},
		{"no hosts line", func(m *Machine) { m.Nsswitch.Text = "netgroup: mesh\n" }, []string{"problem hosts: no hosts line, hosts: files mesh dns"}},
		{"Debian's default", hosts("files dns"), []string{"problem hosts: not in the hosts line, hosts: files mesh dns"}},
		{"upper case", hosts("files Mesh dns"), []string{`problem hosts: "Mesh", files mesh Mesh dns`}},
		{"commented out", hosts("files dns # mesh"), []string{"problem hosts: not in the hosts line, files mesh dns"}},
		{"at the end of files", hosts("files mesh"), nil},
		{"twice", hosts("files mesh dns mesh"), []string{"warning hosts: twice, files mesh dns"}},
		{"two lines", hosts("files dns\nhosts: files mesh dns"), []string{"warning hosts: more than one, remove line 1"}},
		{"two lines, the wrong one last", hosts("files mesh dns\nhosts: files dns"), []string{"warning hosts: only the last, line 1", "problem hosts: not in, files mesh dns"}},
		{"after dns", hosts("files dns mesh"), []string{"warning hosts: asked for in the network first, files mesh dns"}},
		{"after dns that ends it", hosts("files dns [NOTFOUND=return] mesh"), []string{"problem hosts: dns [NOTFOUND=return] comes before, files mesh dns [NOTFOUND=return]"}},
		{"after dns that ends it without network", hosts("files dns [TRYAGAIN=return] mesh"), []string{"problem hosts: network is away, files mesh dns"}},
		{"after resolve", hosts("files resolve [!UNAVAIL=return] mesh dns"), []string{"problem hosts: only when resolve is down, files mesh resolve [!UNAVAIL=return] dns"}},
		{"before resolve", hosts("files mesh resolve [!UNAVAIL=return] dns"), nil},
		{"after mdns4_minimal", hosts("files mdns4_minimal [NOTFOUND=return] mesh dns"), []string{"warning hosts: leaves all but .local alone, files mesh mdns4_minimal [NOTFOUND=return] dns"}},
		{"after mdns4_minimal, below .local", func(m *Machine) {
			hosts("files mdns4_minimal [NOTFOUND=return] mesh dns")(m)
			m.Zone, m.Snapshot.Hosts, m.Look = "my.local", nil, nil
		}, []string{"problem hosts: never asked, files mesh mdns4_minimal"}},
		{"after mdns4_minimal that ends all", hosts("files mdns4_minimal [UNAVAIL=return] mesh dns"), []string{"problem hosts: never asked, files mesh"}},
		{"after mdns", hosts("files mdns [NOTFOUND=return] mesh dns"), []string{"problem hosts: only when mdns is down, files mesh"}},
		{"after myhostname", hosts("files myhostname mesh dns"), []string{"warning hosts: its own name nibz, files mesh myhostname dns"}},
		{"after myhostname, another name", func(m *Machine) { hosts("files myhostname mesh dns")(m); m.Hostname = "laptop" }, nil},
		{"after mymachines", hosts("files mymachines mesh dns"), nil},
		{"after a directory that ends it when it is away", hosts("files sss [UNAVAIL=return] mesh dns"), []string{"warning hosts: does not work, files mesh sss"}},
		{"after files that ends it", hosts("files [NOTFOUND=return] mesh dns"), []string{"problem hosts: never asked, hosts: files mesh dns"}},
		{"after files that goes on", hosts("files [SUCCESS=continue] mesh dns"), []string{"warning hosts: thrown away, files mesh dns"}},
		{"merged", hosts("files [SUCCESS=merge] mesh dns"), []string{"problem hosts: merges groups only, files mesh dns"}},
		{"before files", hosts("mesh files dns"), []string{"warning hosts: files comes after, files mesh dns"}},
		{"mesh ends it", hosts("files mesh [NOTFOUND=return] dns"), []string{"problem hosts: dns is never asked, files mesh dns"}},
		{"mesh ends it, last", hosts("files mesh [NOTFOUND=return]"), nil},
		{"mesh ends it without snapshot", hosts("files mesh [UNAVAIL=return] dns"), []string{"problem hosts: every name of the world, files mesh dns"}},
		{"mesh goes on", hosts("files mesh [SUCCESS=continue] dns"), []string{"problem hosts: does not stop, files mesh dns"}},
		{"a bracket that is open", hosts("files [NOTFOUND=return mesh dns"), []string{"problem hosts: not closed, files mesh", "problem hosts: not in, files mesh"}},
		{"an unknown action", hosts("files mesh [NOTFOUND=stop] dns"), []string{"problem hosts: NOTFOUND=stop, hosts: files mesh"}},

		// Groups.
		{"netgroup as Debian has it", func(m *Machine) { m.Nsswitch.Text = "hosts: files mesh dns\nnetgroup: nis\n" }, []string{"warning netgroup: not in the netgroup line, netgroup: files mesh"}},
		{"no netgroup line", func(m *Machine) { m.Nsswitch.Text = "hosts: files mesh dns\n" }, []string{"warning netgroup: groups (2), netgroup: files mesh"}},
		{"no groups", func(m *Machine) { m.Nsswitch.Text, m.Snapshot.Groups = "hosts: files mesh dns\n", 0 }, nil},
		{"netgroup ends before", func(m *Machine) { m.Nsswitch.Text = "hosts: files mesh dns\nnetgroup: files [NOTFOUND=return] mesh\n" }, []string{"warning netgroup: ends the search, netgroup: files mesh"}},
		{"netgroup with a directory", func(m *Machine) { m.Nsswitch.Text = "hosts: files mesh dns\nnetgroup: sss\n" }, []string{"warning netgroup: not in, netgroup: files mesh sss"}},

		// The snapshot.
		{"no snapshot", func(m *Machine) { m.Snapshot = Snapshot{Path: "/run/mesh/hosts.db", Missing: true}; m.Look = nil }, []string{"problem snapshot: is not there, systemctl start meshd"}},
		{"a symbolic link", func(m *Machine) { m.Snapshot.Mode = fs.ModeSymlink | 0o777 }, []string{"problem snapshot: a symbolic link, remove it"}},
		{"a pipe", func(m *Machine) { m.Snapshot.Mode = fs.ModeNamedPipe | 0o644 }, []string{"problem snapshot: a named pipe, remove it"}},
		{"private", func(m *Machine) { m.Snapshot.Mode = 0o600 }, []string{"problem snapshot: 0600, chmod 0644"}},
		{"anybody's", func(m *Machine) { m.Snapshot.Mode = 0o666 }, []string{"problem snapshot: false names, chmod 0644"}},
		{"anybody's folder", func(m *Machine) { m.Snapshot.FolderMode = fs.ModeDir | 0o777 }, []string{"problem snapshot: others may write to /run/mesh, chmod 0755 /run/mesh"}},
		{"a closed folder", func(m *Machine) { m.Snapshot.FolderMode = fs.ModeDir | 0o750 }, []string{"problem snapshot: cannot reach, chmod 0755"}},
		{"somebody's folder", func(m *Machine) { m.Snapshot.FolderOwner = 1000 }, []string{"problem snapshot: /run/mesh is user 1000's, chown"}},
		{"meshd's folder", func(m *Machine) { m.Snapshot.FolderOwner, m.Snapshot.Owner, m.MeshUser = 998, 998, 998 }, nil},
		{"damage", func(m *Machine) { m.Snapshot.Damage = "version 3" }, []string{"problem snapshot: version 3, versions"}},
		{"another mesh's", func(m *Machine) { m.Snapshot.Own = false }, []string{"problem snapshot: does not have this node, restart"}},
		{"of tomorrow", func(m *Machine) { m.Snapshot.Created = now.Add(24 * time.Hour) }, []string{"warning snapshot: 24 h in the future, set the clock"}},

		// The daemon.
		{"no meshd", func(m *Machine) { m.Daemon = Daemon{Err: "meshd is not running"} }, []string{"warning meshd: as they were 3 h ago, systemctl start meshd"}},
		{"not asked", func(m *Machine) { m.Daemon = Daemon{Err: "root and the group mesh only", Forbidden: true} }, []string{"warning meshd: cannot be asked, as root"}},
		{"no store", func(m *Machine) { m.Daemon = Daemon{Store: "unreachable", Stale: 5 * time.Minute} }, []string{"warning meshd: as of 5 min ago, mesh status"}},
		{"of two versions", func(m *Machine) { m.Daemon.Version = "v1" }, []string{"warning meshd: version v1, systemctl restart meshd"}},
		{"full disk", func(m *Machine) { m.Daemon.Warning = "names are not brought up to date: no space left" }, []string{"problem meshd: no space, make room"}},

		// /etc/hosts.
		{"hides a host", hostsFile("192.0.2.9 PRINTER"), []string{"warning /etc/hosts: 1 name of the mesh, /etc/hosts wins"}},
		{"hides full names and aliases", hostsFile("192.0.2.9 printer.mesh.internal laser"), []string{"warning /etc/hosts: 2 names, wins"}},
		{"says the same", hostsFile("10.11.0.77 printer"), nil},
		{"Debian's 127.0.1.1", hostsFile("127.0.1.1 nibz.mesh.internal nibz"), []string{"warning /etc/hosts: own name, remove these names"}},

		// Caches and look-ups.
		{"nscd", func(m *Machine) { m.Cache = Cache{Name: "nscd", Hosts: true} }, []string{"warning cache: before mesh does, enable-cache hosts no"}},
		{"nscd without hosts", func(m *Machine) { m.Cache = Cache{Name: "nscd"} }, nil},
		{"no getent", func(m *Machine) { m.Look[0].Missing = true }, nil},
		{"module does not answer", func(m *Machine) { m.Look[0].Err, m.Look[1].Err = "no such name", "no such name" },
			[]string{"problem look-up: -s hosts:mesh ahosts nibz.mesh.internal` fails, one version", "problem look-up: ahosts nibz` fails, above"}},
		{"the order swallows it", func(m *Machine) { m.Look[1] = Look{Command: "getent ahosts nibz", Err: "no such name"} }, []string{"problem look-up: though mesh alone answers, hosts line"}},
		{"another answer", func(m *Machine) { m.Look[1].Addrs = []netip.Addr{netip.MustParseAddr("127.0.1.1")} }, []string{"warning look-up: 127.0.1.1, /etc/hosts wins"}},

		// Programs.
		{"programs", func(m *Machine) {
			m.Programs = []Program{{Path: "/usr/bin/prometheus", Why: Go, Count: 1, PID: 7}, {Path: "/sbin/a", Why: Static, Count: 2, PID: 8}, {Path: "/sbin/b", Why: Static, Count: 1, PID: 9},
				{Path: "/bin/busybox", Where: "container web (alpine)", Why: Musl, Count: 1, PID: 10}, {Path: "/usr/sbin/nginx", Where: "container db (debian)", Why: NoSwitch, Count: 3, PID: 11}}
		}, []string{"warning programs: 1 running program built with Go without cgo does not, server=/mesh.internal/10.11.0.3", "warning programs: 2 running programs linked statically do not, mesh hosts --format hosts",
			"warning programs: built for musl, DNS", "warning programs: in a container whose nsswitch.conf does not have mesh does not see, --volume /run/mesh:/run/mesh:ro"}},
		{"a unit with its own /run", func(m *Machine) { m.Programs = []Program{{Path: "/bin/x", Why: NoSnapshot, Count: 1, PID: 7}} },
			[]string{"warning programs: that has another /run than this machine, BindReadOnlyPaths=/run/mesh"}},
		{"hidden programs", func(m *Machine) { m.Root, m.Hidden = false, 12 }, []string{"warning programs: 12 processes, as root"}},
		{"hidden from root", func(m *Machine) { m.Hidden = 1 }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := healthy()
			c.change(m)
			var got []string
			for _, f := range NSS(m) {
				if f.Severity == OK {
					continue
				}
				got = append(got, fmt.Sprintf("%s %s: %s\n%s\n→ %s", f.Severity, f.Subject, f.What, strings.Join(f.Detail, "\n"), f.Remedy))
				if f.Remedy == "" {
					t.Errorf("no remedy: %s", f.What)
				}
			}
			ok := len(got) == len(c.want)
			for i := range min(len(got), len(c.want)) {
				head, remedy, _ := strings.Cut(c.want[i], ", ")
				kind, what, _ := strings.Cut(head, ": ")
				is, rest, _ := strings.Cut(got[i], "\n→ ")
				ok = ok && strings.HasPrefix(is, kind+": ") && strings.Contains(is, what) && strings.Contains(rest, remedy)
			}
			if !ok {
				t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

func TestManyPrograms(t *testing.T) {
	m := healthy()
	for i := range 20 {
		m.Programs = append(m.Programs, Program{Path: fmt.Sprintf("/bin/p%02d", i), Why: Static, Count: 1 + i, PID: i})
	}
	f := NSS(m)
	last := f[len(f)-1]
	if len(last.Detail) != shown+1 || last.Detail[0] != "    /bin/p19 ×20" || !strings.Contains(last.Detail[shown], "and 12 more") {
		t.Errorf("%q", last.Detail)
	}
}
