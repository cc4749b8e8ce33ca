// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

//go:embed testdata/*.c
var sources embed.FS

// snapshot is where the shipped module looks.
const snapshot = "/run/mesh/hosts.db"

// build makes the module, its twin, the module that runs etcdctl, and the harness.
func build(ctx context.Context, dir string) error {
	here, err := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", "mesh.internal/mesh/libnss_mesh").Output()
	if err != nil {
		return fmt.Errorf("finding the module's source: run this inside the repository: %w", err)
	}
	if err := os.CopyFS(dir, sources); err != nil {
		return err
	}
	compile := func(args ...string) []string {
		return append([]string{"gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"}, args...)
	}
	for _, c := range [][]string{
		{filepath.Join(strings.TrimSpace(string(here)), "build.sh"), "lib/libnss_mesh.so.2"},
		compile("-fPIC", "-shared", "-fvisibility=hidden", "-Wl,-soname,libnss_twin.so.2", "-Wl,-z,now", "-o", "lib/libnss_twin.so.2", "testdata/twin.c"),
		compile("-fPIC", "-shared", "-fvisibility=hidden", "-DETCDCTL=\""+dir+"/unpacked/usr/bin/etcdctl\"", "-o", "lib/libnss_etcdctl.so.2", "testdata/etcdctl.c"),
		compile("-o", "harness", "testdata/harness.c", "-lpthread", "-ldl"),
	} {
		cmd := exec.CommandContext(ctx, c[0], c[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building: %s: %w\n%s", strings.Join(c, " "), err, out)
		}
	}
	return nil
}

// stage is the namespaces and what is in them.
type stage struct {
	dir  string // of this run
	lib  string // library folder
	apt  string // packages, unpacked
	self string
}

// openStage makes the namespaces this process is in what the benchmark needs: /etc and the library folder become copies
// that can be written to, /run is empty, and the files that sources read are in memory.
func openStage(o options) (*stage, error) {
	triplet, ok := map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}[runtime.GOARCH]
	lib := "/usr/lib/" + triplet
	if _, err := os.Stat(lib); !ok || err != nil {
		return nil, fmt.Errorf("this is no Debian multiarch system: it has no %s", lib)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := &stage{dir: o.Dir, lib: lib, apt: o.Unpacked, self: self}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("making mounts private: %w", err)
	}
	mem := filepath.Join(o.Dir, "mem")
	mount := func(kind, at, data string) {
		if err == nil {
			if err = unix.Mount(kind, at, kind, 0, data); err != nil {
				err = fmt.Errorf("mounting %s on %s: %w", kind, at, err)
			}
		}
	}
	if err := os.Mkdir(mem, 0o755); err != nil {
		return nil, err
	}
	mount("proc", "/proc", "")
	mount("tmpfs", mem, "mode=0755")
	for _, folder := range []string{"/etc", lib, "/var/cache"} {
		upper, work := filepath.Join(mem, folder), filepath.Join(mem, "work", folder)
		if err = errors.Join(err, os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755)); err != nil {
			return nil, err
		}
		mount("overlay", folder, "lowerdir="+folder+",upperdir="+upper+",workdir="+work)
	}
	mount("tmpfs", "/run", "mode=0755")
	if err = errors.Join(err, os.MkdirAll(filepath.Dir(snapshot), 0o755)); err != nil {
		return nil, err
	}
	for _, from := range []string{filepath.Join(o.Dir, "lib"), filepath.Join(s.apt, "usr/lib", triplet), filepath.Join(s.apt, "lib", triplet)} {
		if err := installModules(from, lib); err != nil {
			return nil, err
		}
	}
	// As after an installation the loader knows where the modules are.
	if out, err := exec.Command("/sbin/ldconfig").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("ldconfig: %w: %s", err, out)
	}
	// Files of their own file system, as quick to open as a machine's: an overlay's are slower.
	for name, content := range map[string]string{
		"nsswitch.conf": "hosts: files\n",
		"hosts":         "127.0.0.1 localhost\n",
		"resolv.conf":   "nameserver 127.0.0.1\n",
		"host.conf":     "multi on\n", // Debian's
	} {
		bound := filepath.Join(mem, name)
		os.Remove("/etc/" + name) // where it is a link
		if err := errors.Join(os.WriteFile(bound, []byte(content), 0o644), os.WriteFile("/etc/"+name, nil, 0o644)); err != nil {
			return nil, err
		}
		if err := unix.Mount(bound, "/etc/"+name, "", unix.MS_BIND, ""); err != nil {
			return nil, fmt.Errorf("binding /etc/%s: %w", name, err)
		}
	}
	if err := unix.Sethostname([]byte("bench")); err != nil {
		return nil, fmt.Errorf("naming the host: %w", err)
	}
	return s, loopbackUp()
}

// installModules copies NSS modules.
func installModules(from, to string) error {
	found, err := filepath.Glob(filepath.Join(from, "libnss_*.so.2"))
	for _, f := range found {
		var b []byte
		if b, err = os.ReadFile(f); err == nil {
			err = os.WriteFile(filepath.Join(to, filepath.Base(f)), b, 0o644)
		}
		if err != nil {
			return fmt.Errorf("installing a module: %w", err)
		}
	}
	return err
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bringing the loopback interface up: %w", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err == nil {
		lo.SetUint16(unix.IFF_UP)
		err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
	}
	if err != nil {
		return fmt.Errorf("bringing the loopback interface up: %w", err)
	}
	return nil
}

// module is an entry of the harness that calls a module itself.
func (s *stage) module(name string) string {
	return name + "=" + filepath.Join(s.lib, "libnss_"+name+".so.2")
}

// hostsFile and snapshotFile hold so many hosts.
func (s *stage) hostsFile(n int) string    { return fmt.Sprintf("%s/mem/hosts-%d", s.dir, n) }
func (s *stage) snapshotFile(n int) string { return fmt.Sprintf("/run/mesh/hosts-%d.db", n) }

// questions is a file of questions of one kind about so many hosts.
func (s *stage) questions(kind string, n int) string {
	return fmt.Sprintf("%s/mem/%s-%d", s.dir, kind, n)
}

// set makes a source the only one that is asked.
func (s *stage) set(src source) error {
	if err := os.WriteFile("/etc/nsswitch.conf", []byte("hosts: "+src.line+"\n"), 0o644); err != nil {
		return err
	}
	if src.line == "files" {
		b, err := os.ReadFile(s.hostsFile(src.hosts))
		if err == nil {
			err = os.WriteFile("/etc/hosts", b, 0o644)
		}
		return err
	}
	if src.line == "mesh" || src.line == "twin" {
		return s.setSnapshot(src.hosts)
	}
	return nil
}

func (s *stage) setSnapshot(n int) error {
	next := snapshot + ".next"
	if err := os.Link(s.snapshotFile(n), next); err != nil {
		return err
	}
	os.Remove(snapshot) // renaming a link over one to the same file does nothing
	return os.Rename(next, snapshot)
}

// harness runs it and returns its lines of numbers.
func (s *stage) harness(args ...string) ([][]float64, error) {
	var stderr strings.Builder
	cmd := exec.Command(filepath.Join(s.dir, "harness"), args...)
	cmd.Stderr = &stderr
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("harness %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	var all [][]float64
	for line := range strings.Lines(string(out)) {
		var row []float64
		for _, f := range strings.Fields(line) {
			var v float64
			if _, err := fmt.Sscan(f, &v); err != nil {
				return nil, fmt.Errorf("harness %s printed %q", strings.Join(args, " "), line)
			}
			row = append(row, v)
		}
		all = append(all, row)
	}
	return all, nil
}
