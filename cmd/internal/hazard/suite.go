// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"mesh.internal/mesh/cmd/internal/lab"
	"mesh.internal/mesh/nss"
)

// suite is the host that tests run in. It has the modules and the tests' programs in dir.
type suite struct {
	ctx     context.Context
	host    *lab.Host
	work    string            // a folder of the machine
	lib     string            // where glibc finds the module
	missing map[string]string // what cannot be had, and why
}

const dir = "/var/hazard"

// hostsLines are the nsswitch.conf lines that tests use, by name.
var hostsLines = map[string]string{
	"":           "files mesh",
	"dns":        "files mesh dns",
	"nothing":    "files",
	"authority":  "files mesh [NOTFOUND=return] dns",
	"after-dns":  "files dns mesh",
	"resolve":    "files mesh resolve [!UNAVAIL=return] dns",
	"behind":     "files resolve [!UNAVAIL=return] mesh dns",
	"mdns":       "files mesh mdns4_minimal [NOTFOUND=return] dns",
	"after-mdns": "files mdns4_minimal [NOTFOUND=return] mesh dns",
	"myhostname": "files mesh myhostname dns",
	"own-name":   "files myhostname mesh dns",
	"debian":     "files mymachines mesh resolve [!UNAVAIL=return] mdns4_minimal [NOTFOUND=return] myhostname dns",
}

func snapshot(first string) nss.Set {
	a := netip.MustParseAddr
	many := nss.Host{Name: "many.mesh.internal", Aliases: []string{"many"}}
	for i := range 64 {
		many.Addrs = append(many.Addrs, netip.AddrFrom4([4]byte{10, 11, 1, byte(i)}))
	}
	return nss.Set{Created: time.Unix(1, 0), Hosts: []nss.Host{
		{Name: "bkero.mesh.internal", Aliases: []string{"bkero"}, Addrs: []netip.Addr{a(first), a("fd00::2")}},
		{Name: "v4.mesh.internal", Aliases: []string{"v4"}, Addrs: []netip.Addr{a("10.11.0.3")}}, many},
		Groups: []nss.Group{{Name: "friends", Members: []string{"bkero.mesh.internal", "bkero"}}}}
}

// damaged are the snapshots that testdata/differ.c damages: a small one that one read brings, one whose buckets hold copies,
// addresses by the dozen and groups that go on in further records, and one of one host.
func damaged() map[string]nss.Set {
	large := nss.Set{Created: time.Unix(2, 0)}
	all := nss.Group{Name: "all"}
	for i := range 300 {
		h := nss.Host{Name: fmt.Sprintf("host%d.mesh.internal", i), Aliases: []string{fmt.Sprintf("host%d", i)},
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 20, byte(i >> 8), byte(i)})}}
		if i%3 == 0 {
			h.Addrs = append(h.Addrs, netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(i >> 8), 15: byte(i)}))
		}
		for n := range 60 * (i % 50 / 49) {
			h.Addrs = append(h.Addrs, netip.AddrFrom4([4]byte{10, 30, byte(i / 50), byte(n)}))
		}
		large.Hosts = append(large.Hosts, h)
		all.Members = append(all.Members, h.Name, h.Aliases[0])
	}
	large.Groups = []nss.Group{{Name: "few", Members: all.Members[:4]}, all}
	one := nss.Set{Created: time.Unix(3, 0), Hosts: large.Hosts[7:8]}
	return map[string]nss.Set{"small": snapshot("10.11.0.2"), "large": large, "one": one}
}

// differ damages snapshots n times and returns what the modules' answers were.
func (s *suite) differ(n int, seed int64) (string, error) {
	h := &hazard{run: fmt.Sprintf("exec ./differ %d %d %s/ours.so %[3]s/twin.so damaged/*", n, seed, dir)}
	stdout, stderr, err := s.in(suiteLimit, h, "ours")
	if err != nil {
		return "", fmt.Errorf("damaged snapshots: %w\n%s%s", err, stdout, stderr)
	}
	return lastLine(stdout), nil
}

// prepare builds the modules and the tests' programs and furnishes the host.
func (s *suite) prepare() error {
	var err error
	if s.lib, err = lab.LibDir(); err != nil {
		return err
	}
	var root string
	if out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output(); err != nil {
		return fmt.Errorf("finding the source: %w", err)
	} else {
		root = strings.TrimSpace(string(out))
	}
	here, w := root+"/cmd/internal/hazard/testdata", s.work
	cflags := []string{"-O2", "-Wall", "-Wextra", "-Werror"}
	for _, c := range [][]string{
		{root + "/libnss_mesh/build.sh", w + "/ours.so"},
		append(append([]string{"gcc", "-std=c11", "-fvisibility=hidden", "-fPIC", "-shared", "-Wl,-soname,libnss_mesh.so.2", "-Wl,-z,now",
			"-Wl,--version-script=" + root + "/libnss_mesh/exports.map", "-o", w + "/twin.so"}, cflags...), root+"/libnss_mesh/nss.c", root+"/libnss_mesh/netgroup.c", root+"/libnss_mesh/reader.c"),
		{"go", "build", "-buildvcs=false", "-trimpath", "-buildmode=c-shared", "-o", w + "/naive.so", here + "/naive"},
		append(append([]string{"gcc", "-std=gnu11", "-o", w + "/hazard"}, cflags...), here+"/hazard.c", "-lpthread", "-ldl"),
		append(append([]string{"gcc", "-std=gnu11", "-o", w + "/differ"}, cflags...), here+"/differ.c", "-ldl"),
		{"gcc", "-std=gnu11", "-static", "-o", w + "/static", "-Wl,--no-warnings", here + "/static.c"},
		{"go", "build", "-buildvcs=false", "-tags", "netcgo", "-o", w + "/cgohost", here + "/cgohost"},
	} {
		cmd := exec.CommandContext(s.ctx, c[0], c[1:]...)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
		if out, err := cmd.CombinedOutput(); err != nil && !strings.HasSuffix(c[len(c)-1], "static.c") {
			return fmt.Errorf("%s: %w\n%s", strings.Join(c, " "), err, out)
		} else if err != nil {
			s.missing["static"] = "no static C library: " + lastLine(string(out))
		}
	}
	for name, first := range map[string]string{"a.db": "10.11.0.2", "b.db": "10.11.0.4"} {
		if err := nss.WriteFile(w+"/"+name, snapshot(first)); err != nil {
			return err
		}
	}
	for name, set := range damaged() {
		data, err := nss.Encode(set)
		if err != nil {
			return err
		}
		if err := s.host.WriteFile(dir+"/damaged/"+name, data, 0o644); err != nil {
			return err
		}
	}
	debs, err := s.packages()
	if err != nil {
		return err
	}

	files := map[string]os.FileMode{}
	for _, f := range []string{"ours.so", "twin.so", "naive.so", "a.db", "b.db"} {
		files[w+"/"+f] = 0o644
	}
	for _, f := range []string{"multi.py", "requests.py", "dns.py", "Hazard.java", "httpd.conf"} {
		files[here+"/"+f] = 0o644
	}
	files[w+"/hazard"], files[w+"/cgohost"], files[w+"/differ"] = 0o755, 0o755, 0o755
	if s.missing["static"] == "" {
		files[w+"/static"] = 0o755
	}
	for _, f := range debs {
		files[f] = 0o644
	}
	for f, mode := range files {
		if err := s.host.Install(f, dir+"/"+filepath.Base(f), mode); err != nil {
			return err
		}
	}
	for name, line := range hostsLines {
		text := "passwd: files\ngroup: files\nshadow: files\nhosts: " + line + "\nservices: files\nprotocols: files\nnetgroup: files mesh\n"
		if err := s.host.WriteFile(dir+"/nsswitch."+name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := s.host.Do(func() error { // setuid programs work where the host's /usr and /var are mounted so
		return errors.Join(unix.Mount("", "/usr", "", unix.MS_REMOUNT|unix.MS_BIND, ""), unix.Mount("", "/var", "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	}); err != nil {
		return fmt.Errorf("allowing setuid programs: %w", err)
	}
	return s.furnish(len(debs) > 0)
}

// packages downloads the Debian packages of the programs that the machine has not, and says what cannot be had.
func (s *suite) packages() ([]string, error) {
	var want []string
	for _, p := range programs {
		if _, err := os.Stat(p.file(s.lib)); err != nil && p.pkg != "" {
			want = append(want, p.pkg)
		}
	}
	if len(want) == 0 {
		return nil, nil
	}
	to := s.work + "/debs"
	if err := os.MkdirAll(to+"/partial", 0o755); err != nil {
		return nil, err
	}
	args := append([]string{"install", "--download-only", "--yes", "--no-install-recommends", "-o", "Dir::Cache::archives=" + to, "-o", "APT::Sandbox::User=root"}, want...)
	out, err := exec.CommandContext(s.ctx, "apt-get", args...).CombinedOutput()
	if err != nil {
		exec.CommandContext(s.ctx, "apt-get", "-qq", "update").Run()
		out, err = exec.CommandContext(s.ctx, "apt-get", args...).CombinedOutput()
	}
	if err != nil {
		fmt.Printf("downloading %s: %v: %s\n", strings.Join(want, " "), err, lastLine(string(out)))
		return nil, nil
	}
	return filepath.Glob(to + "/*.deb")
}

// furnish installs what was downloaded, in the host, and notes which programs are there.
func (s *suite) furnish(debs bool) error {
	script := `cd ` + dir + `
cp ours.so "$0/libnss_mesh.so.2"
mkdir -p www && echo hello >www/index.html && cp a.db hosts.db
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d
export DEBIAN_FRONTEND=noninteractive
` + map[bool]string{true: "dpkg -i --force-unsafe-io --force-confdef --force-confold *.deb\nrm -f *.deb"}[debs] + `
rm -f /etc/resolv.conf && printf 'nameserver 127.0.0.1\noptions timeout:1 attempts:1\n' >/etc/resolv.conf
install -m 4755 hazard hazard-setuid
[ ! -x "$(command -v ping)" ] || install -m 4755 "$(readlink -f "$(command -v ping)")" ping-setuid
mkdir -p /etc/sudoers.d /run/sshd && printf 'Defaults fqdn\nALL ALL=(ALL) NOPASSWD: ALL\n' >sudoers && install -m 440 sudoers /etc/sudoers.d/hazard
rm -f key && ssh-keygen -q -t ed25519 -N '' -f key && printf 'from="*.mesh.internal" ' | cat - key.pub >authorized_keys && chmod 644 authorized_keys
for f in Hazard.java; do command -v javac && javac $f; done
true
`
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
	defer cancel()
	out, err := s.host.Command(ctx, "sh", "-c", script, s.lib).CombinedOutput()
	if err != nil {
		return fmt.Errorf("furnishing the host: %w\n%s", err, out)
	}
	return s.host.Do(func() error {
		for _, p := range programs {
			if _, err := os.Stat(p.file(s.lib)); err != nil {
				s.missing[p.name] = p.name + " is not installed and cannot be had here"
			}
		}
		return nil
	})
}

// program is what tests need beyond a C library. The machine's own is taken, or else the package's, which is put into the
// host only: to install it on the machine would start a service or edit /etc/nsswitch.conf or /etc/resolv.conf. Programs
// without a package are installed by packaging/needs.
type program struct{ name, path, pkg string }

func (p program) file(lib string) string { return strings.Replace(p.path, "LIB", lib, 1) }

var programs = []program{
	{"apache2", "/usr/sbin/apache2", "apache2"},
	{"sshd", "/usr/sbin/sshd", "openssh-server"},
	{"sudo", "/usr/bin/sudo", "sudo"},
	{"nscd", "/usr/sbin/nscd", "nscd"},
	{"resolved", "/lib/systemd/systemd-resolved", "systemd-resolved"},
	{"nss-resolve", "LIB/libnss_resolve.so.2", "libnss-resolve"},
	{"nss-myhostname", "LIB/libnss_myhostname.so.2", "libnss-myhostname"},
	{"nss-mdns", "LIB/libnss_mdns4_minimal.so.2", "libnss-mdns"},
	{"curl", "/usr/bin/curl", ""},
	{"python3", "/usr/bin/python3", ""},
	{"node", "/usr/bin/node", ""},
	{"javac", "/usr/bin/javac", ""},
	{"valgrind", "/usr/bin/valgrind", ""},
	{"ping", "/bin/ping", ""},
	{"setpriv", "/usr/bin/setpriv", ""},
}

// arena is what every test has to itself: the module that is tested in glibc's folder, the snapshot, nsswitch.conf, /run,
// /tmp, processes, and a network with the addresses of bkero and v4.
const arena = `set -e
mount --bind ` + dir + `/$MODULE.so "$LIB/libnss_mesh.so.2"
mount --bind ` + dir + `/nsswitch.$HOSTS /etc/nsswitch.conf
mount -t tmpfs -o mode=755 tmpfs /run && mkdir /run/mesh /run/sshd && cp ` + dir + `/*.db /run/mesh/
mount -t tmpfs -o mode=1777 tmpfs /tmp
ip link set lo up
for a in 10.11.0.2/32 10.11.0.3/32 fd00::2/128; do ip addr add $a dev lo nodad; done 2>/dev/null
cd ` + dir + `
H=` + dir + `/hazard
`

// in runs a test's command with a module, in namespaces of its own. When the time is over everything in them ends.
func (s *suite) in(limit time.Duration, h *hazard, module string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(s.ctx, limit)
	defer cancel()
	cmd := s.host.Command(ctx, "unshare", "--mount", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", arena+h.run)
	cmd.Env = append(cmd.Env, "MODULE="+module, "HOSTS="+h.hosts, "LIB="+s.lib)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	err = cmd.Run()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if h.after != "" {
		s.host.Command(s.ctx, "sh", "-c", "MODULE="+module+"\n"+h.after).Run()
	}
	return o.String(), e.String(), err
}

// document is the table with what made it.
func (s *suite) document(done []*hazard, differ string) string {
	var b strings.Builder
	glibc, _ := exec.Command("getconf", "GNU_LIBC_VERSION").Output()
	var u unix.Utsname
	unix.Uname(&u)
	release, _, _ := bytes.Cut(u.Release[:], []byte{0})
	fmt.Fprintf(&b, `# Hazards

Generated by `+"`sudo make test-nss`"+` (cmd/internal/hazard): do not edit. %s, %s, Linux %s, %s.

Each test runs with three modules. **naive**: a Go module as one writes it at first, whose runtime starts in every process;
that it breaks shows that the test bites, and where it does not the reason is beside it. **C twin**: C only, with the same
file reads, written from docs/snapshot.md alone; it says whether glibc itself is to blame. **ours**: the shipped module.
What is bold is a failure.

| test | what happens | naive Go | C twin | ours |
|---|---|---|---|---|
`, runtime.Version(), strings.TrimSpace(string(glibc)), release, runtime.GOARCH)
	for _, h := range done {
		fmt.Fprintln(&b, h)
	}
	fmt.Fprintf(&b, "\nDamaged snapshots, one question about each to ours and to the C twin: %s. "+
		"(`sudo make fuzz-nss` damages 10,000,000.)\n", differ)
	return b.String()
}
