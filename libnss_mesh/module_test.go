// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"mesh.internal/mesh/nss"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.dir != "" {
		os.RemoveAll(shared.dir)
	}
	os.Exit(code)
}

var shared struct {
	once sync.Once
	dir  string
	err  error
}

// files are the module built for a snapshot of the test's own, the snapshot, and the harness.
func files(t *testing.T) (module, snapshot, harness string) {
	t.Helper()
	if testing.Short() {
		t.Skip("builds and tests the module, which the race detector does not see")
	}
	for _, tool := range []string{"gcc", "strip"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed, so the module cannot be built", tool)
		}
	}
	shared.once.Do(func() {
		shared.dir, shared.err = os.MkdirTemp("", "libnss_mesh")
		d := shared.dir
		for _, c := range [][]string{
			{"./build.sh", d + "/libnss_mesh.so.2", d + "/hosts.db"},
			{"./build.sh", d + "/shipped/libnss_mesh.so.2"},
			{"gcc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-o", d + "/harness", "testdata/harness.c", "-lpthread", "-ldl"},
		} {
			if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil && shared.err == nil {
				shared.err = fmt.Errorf("%v: %w\n%s", c, err, out)
			}
		}
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	snapshot = filepath.Join(shared.dir, "hosts.db")
	if err := nss.WriteFile(snapshot, content()); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(shared.dir, "libnss_mesh.so.2"), snapshot, filepath.Join(shared.dir, "harness")
}

func content() nss.Set {
	many := nss.Host{Name: "many.mesh.internal", Aliases: []string{"many"}}
	for i := range 64 {
		many.Addrs = append(many.Addrs, netip.AddrFrom4([4]byte{10, 11, 0, byte(100 + i)}))
	}
	crowd := nss.Group{Name: "crowd"}
	for i := range 500 {
		crowd.Members = append(crowd.Members, fmt.Sprintf("host%d.mesh.internal", i))
	}
	groups := []nss.Group{{Name: "friends", Members: []string{"bkero.mesh.internal", "bkero"}}, crowd, {Name: "empty"}}
	return nss.Set{Created: time.Unix(1, 0), Groups: groups, Hosts: []nss.Host{
		{Name: "bkero.mesh.internal", Aliases: []string{"bkero"}, Addrs: []netip.Addr{netip.MustParseAddr("10.11.0.2"), netip.MustParseAddr("fd00::2")}},
		{Name: "v4.mesh.internal", Aliases: []string{"v4"}, Addrs: []netip.Addr{netip.MustParseAddr("10.11.0.3")}}, many}}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("%s %v: %v", name, args, err)
	}
}

func TestUnnoticed(t *testing.T) { m, _, h := files(t); run(t, h, m, "unnoticed") }
func TestFork(t *testing.T)      { m, _, h := files(t); run(t, h, m, "fork") }
func TestERANGE(t *testing.T)    { m, _, h := files(t); run(t, h, m, "erange") }
func TestContract(t *testing.T)  { m, _, h := files(t); run(t, h, m, "contract") }
func TestNetgroup(t *testing.T)  { m, _, h := files(t); run(t, h, m, "netgroup") }

func TestNoFile(t *testing.T) {
	m, s, h := files(t)
	if err := os.Remove(s); err != nil {
		t.Fatal(err)
	}
	run(t, h, m, "absent")
}

func TestLimits(t *testing.T) {
	m, _, h := files(t)
	for _, limit := range []string{"-v 65536", "-d 16384", "-n 5"} {
		run(t, "sh", "-c", "ulimit "+limit+" && exec \"$0\" \"$@\"", h, m, "contract")
	}
}

// TestPrograms installs the shipped module in a mount namespace and asks the system's own programs.
func TestPrograms(t *testing.T) {
	_, _, _ = files(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root for a mount namespace")
	}
	triplet := map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}[runtime.GOARCH]
	lib := "/usr/lib/" + triplet
	if _, err := os.Stat(lib); err != nil {
		t.Skip("not a Debian multiarch system: no " + lib)
	}
	d := shared.dir
	if err := nss.WriteFile(d+"/installed.db", content()); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf(`set -e
mkdir -p %[1]s/ov && mount -t tmpfs tmpfs %[1]s/ov && mkdir %[1]s/ov/u %[1]s/ov/w && cp %[1]s/shipped/libnss_mesh.so.2 %[1]s/ov/u
mount -t overlay overlay -o lowerdir=%[2]s,upperdir=%[1]s/ov/u,workdir=%[1]s/ov/w %[2]s
sed 's/^hosts:.*/hosts: files mesh/; s/^netgroup:.*/netgroup: files mesh/' /etc/nsswitch.conf >%[1]s/nsswitch.conf && mount --bind %[1]s/nsswitch.conf /etc/nsswitch.conf
mkdir -p %[1]s/run && mount -t tmpfs tmpfs /run && mkdir /run/mesh && cp %[1]s/installed.db /run/mesh/hosts.db
exec "$@"`, d, lib)
	in := func(args ...string) string {
		t.Helper()
		c := exec.Command("unshare", append([]string{"-m", "--propagation", "private", "sh", "-c", script, "sh"}, args...)...)
		out, err := c.CombinedOutput()
		if err != nil {
			return strings.TrimSpace(string(out)) + " [" + err.Error() + "]"
		}
		return strings.TrimSpace(string(out))
	}
	for _, c := range []struct {
		cmd  string
		want []string
	}{
		{"getent hosts bkero", []string{"fd00::2", "bkero.mesh.internal"}},
		{"getent ahosts BKERO.", []string{"10.11.0.2", "fd00::2", "STREAM bkero.mesh.internal"}},
		{"getent ahostsv4 bkero.mesh.internal", []string{"10.11.0.2"}},
		{"getent hosts 10.11.0.2", []string{"10.11.0.2       bkero.mesh.internal bkero"}},
		{"getent hosts fd00::2", []string{"fd00::2         bkero.mesh.internal bkero"}},
		{"getent hosts", []string{"bkero.mesh.internal bkero", "v4.mesh.internal v4", "many.mesh.internal many"}},
		{"getent hosts nobody", []string{"[exit status 2]"}},
		{"getent netgroup friends", []string{"(bkero.mesh.internal,-,) (bkero,-,)"}},
		{"getent netgroup nobody", []string{"[exit status 2]"}},
		{"getent ahosts localhost", []string{"127.0.0.1"}},
	} {
		got := in(strings.Fields(c.cmd)...)
		for _, w := range c.want {
			if !strings.Contains(got, w) {
				t.Errorf("%s printed %q, want %q in it", c.cmd, got, w)
			}
		}
	}
}

// TestGate builds libraries that must be refused.
func TestGate(t *testing.T) {
	files(t)
	dir := t.TempDir()
	gate := filepath.Join(dir, "gate")
	run(t, "go", "build", "-o", gate, "../nss/gate")
	build := func(out string, args ...string) {
		t.Helper()
		run(t, "go", append([]string{"build", "-buildmode=c-shared", "-o", out}, args...)...)
	}
	here, _ := os.Getwd()
	ext := "-extldflags '-Wl,-soname,libnss_mesh.so.2 -Wl,-z,now -Wl,--version-script=" + here + "/exports.map'"
	// A copy of package leaf whose Find reads a variable with a pointer: after trimming it would lead nowhere.
	overlay := filepath.Join(dir, "overlay.json")
	leaf, _ := filepath.Abs("../nss/leaf/leaf.go")
	src, err := os.ReadFile(leaf)
	if err != nil {
		t.Fatal(err)
	}
	bad := strings.Replace(string(src), "	b := ptr(&r.Buf)\n	load(fd, 0,", "	b := ptr(&r.Buf)\n	r.Seed = uint64(uintptr(ptr(global)))\n	load(fd, 0,", 1) + "\nvar global = &target\n\nvar target int\n"
	if bad == string(src)+"\nvar global = &target\n\nvar target int\n" {
		t.Fatal("leaf.go has changed: the test must too")
	}
	if err := os.WriteFile(dir+"/leaf.go", []byte(bad), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(overlay, fmt.Appendf(nil, `{"Replace":{%q:%q}}`, leaf, dir+"/leaf.go"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"Go data":         {[]string{"-overlay", overlay, "-ldflags", "-E=meshnss_init " + ext, "."}, "refers to the runtime's data"},
		"runtime started": {[]string{"-ldflags", ext, "."}, "runtime start code"},
		"symbols leak":    {[]string{"-ldflags", "-E=meshnss_init -extldflags '-Wl,-soname,libnss_mesh.so.2'", "."}, "exports "},
		"another soname":  {[]string{"-ldflags", "-E=meshnss_init -extldflags '-Wl,-soname,libnss_x.so.2 -Wl,--version-script=" + here + "/exports.map'", "."}, "soname is"},
		"race detector":   {[]string{"-race", "-ldflags", "-E=meshnss_init " + ext, "."}, "calls "},
	} {
		out := filepath.Join(dir, "x.so")
		build(out, c.args...)
		got, err := exec.Command(gate, out).CombinedOutput()
		if err == nil || !strings.Contains(string(got), c.want) {
			t.Errorf("%s: the gate said %q, %v; want %q", name, got, err, c.want)
		}
	}
}
