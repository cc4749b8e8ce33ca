// SPDX-License-Identifier: MIT

//go:build linux

package doctor

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/nss"
)

// tree is a machine in a folder: its Root.
type tree struct {
	*testing.T
	root string
}

func (t tree) write(path, text string) {
	t.Helper()
	path = filepath.Join(t.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// process adds one to /proc: exe and root are paths in the tree, ns a mount namespace.
func (t tree) process(pid int, exe, root, ns string) {
	t.Helper()
	dir := filepath.Join(t.root, "proc", fmt.Sprint(pid))
	if err := os.MkdirAll(filepath.Join(dir, "ns"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"exe": filepath.Join(t.root, exe), "root": filepath.Join(t.root, root), "ns/mnt": "mnt:[" + ns + "]"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// glibcProgram is any program of this system that has a dynamic linker, and how to make others of it.
func glibcProgram(t *testing.T) (program []byte, withInterp func(string) []byte) {
	t.Helper()
	var at, size uint64
	for _, path := range []string{"/usr/bin/true", "/bin/sh", "/usr/bin/env"} {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		f, err := elf.Open(path)
		if err != nil {
			continue
		}
		defer f.Close()
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP && f.Class == elf.ELFCLASS64 && f.ByteOrder == binary.LittleEndian {
				program, at, size = b, p.Off, p.Filesz
			}
		}
		if program != nil && strings.Contains(string(program[at:at+size]), "ld-linux") {
			break
		}
		program = nil
	}
	if program == nil {
		t.Skip("this system has no program of 64 bits for glibc")
	}
	return program, func(interp string) []byte {
		b := slices.Clone(program)
		if interp != "" {
			copy(b[at:at+size], interp+strings.Repeat("\x00", int(size)-len(interp)))
			return b
		}
		for h := binary.LittleEndian.Uint64(b[32:]); ; h += 56 { // the header of the program's part that names its linker
			if elf.ProgType(binary.LittleEndian.Uint32(b[h:])) == elf.PT_INTERP {
				binary.LittleEndian.PutUint32(b[h:], uint32(elf.PT_NULL))
				return b
			}
		}
	}
}

func TestGather(t *testing.T) {
	program, withInterp := glibcProgram(t)
	m := tree{t, t.TempDir()}
	snapshot := filepath.Join(m.root, "run/mesh/hosts.db")
	c := config.Default()
	c.Name, c.Prefix, c.Store.Embedded = "nibz", "10.11.0.0/16", true
	b, err := c.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	m.write("etc/mesh/mesh.toml", string(b))
	m.write("etc/nsswitch.conf", "hosts: files mesh dns\n")
	m.write("etc/hosts", "127.0.0.1 localhost\n")
	m.write("etc/ld.so.conf", "include ld.so.conf.d/*.conf # more\n")
	m.write("etc/ld.so.conf.d/local.conf", "/opt/lib\n")
	m.write("etc/nscd.conf", "# x\n\tenable-cache\t\thosts\t\tyes\n")
	m.write("usr/lib/x86_64-linux-gnu/libc.so.6", string(program)) // only its architecture is looked at
	m.write("usr/lib64/libc.so.6", "no library")
	m.write("opt/lib/libnss_mesh.so.2", string(withInterp("")))
	m.write("run/mesh/x", "")
	set := nss.Set{Created: time.Now(), Revision: 5, Groups: []nss.Group{{Name: "friends", Members: []string{"nibz"}}},
		Hosts: []nss.Host{{Name: "nibz.mesh.internal", Aliases: []string{"nibz"}, Addrs: []netip.Addr{netip.MustParseAddr("10.11.0.3")}}}}
	if err := nss.WriteFile(snapshot, set); err != nil {
		t.Fatal(err)
	}

	m.write("bin/glibc", string(program))
	m.write("bin/static", string(withInterp("")))
	m.write("bin/musl", string(withInterp("/lib/ld-musl-x.so.1")))
	m.write("bin/other", string(withInterp("/lib/linker")))
	m.write("bin/script", "#!/bin/sh\n")
	m.write("bin/nscd", string(program))
	for _, name := range []string{"web", "db"} {
		m.write(name+"/etc/hostname", name+"\n")
		m.write(name+"/etc/os-release", "NAME=x\nID=\"debian\"\n")
	}
	m.write("web/etc/nsswitch.conf", "hosts: files dns\n")
	m.write("db/etc/nsswitch.conf", "hosts: files mesh dns\n")
	m.write("full/etc/nsswitch.conf", "hosts: mesh\n")
	m.write("full/usr/lib64/libc.so.6", string(program))
	m.write("full/usr/lib64/libnss_mesh.so.2", string(program))
	m.write("flat/.flatpak-info", "[Application]\nname=org.x\n")
	for i, p := range []struct{ exe, root, ns string }{
		{"bin/glibc", "", "1"}, {"bin/static", "", "1"}, {"bin/static", "", "1"}, {"bin/musl", "web", "2"}, {"bin/other", "", "1"}, {"bin/script", "", "1"},
		{"bin/nscd", "", "1"}, {"bin/glibc", "web", "2"}, {"bin/glibc", "db", "3"}, {"bin/glibc", "flat", "4"}, {"bin/glibc", "", "5"}, {"bin/glibc", "full", "6"}, {"bin/gone", "", "1"},
	} {
		m.process(100+i, p.exe, p.root, p.ns)
	}
	if err := os.MkdirAll(filepath.Join(m.root, "proc/self/ns"), 0o755); err != nil {
		t.Fatal(err)
	}
	os.Symlink("mnt:[1]", filepath.Join(m.root, "proc/self/ns/mnt"))

	got := System{Root: m.root, Paths: config.DefaultPaths}.Gather(t.Context())
	if got.OnMesh != "" || got.Name != "nibz" || got.Zone != "mesh.internal" || got.Daemon.Err == "" || got.Hidden != 0 {
		t.Errorf("%+v", got)
	}
	if s := got.Snapshot; !s.Own || s.Damage != "" || s.Missing || len(s.Hosts) != 1 || s.Groups != 1 || s.Revision != 5 || s.Mode.Perm() != 0o644 {
		t.Errorf("snapshot %+v", s)
	}
	if len(got.Modules) != 1 || got.Modules[0].Path != "/opt/lib/libnss_mesh.so.2" || !got.Modules[0].Apart || got.Modules[0].Libc != "/usr/lib/x86_64-linux-gnu/libc.so.6" {
		t.Errorf("modules %+v", got.Modules)
	}
	if got.Cache != (Cache{"nscd", true}) {
		t.Errorf("cache %+v", got.Cache)
	}
	var programs []string
	for _, p := range got.Programs {
		programs = append(programs, fmt.Sprintf("%s %s %s %d", filepath.Base(p.Path), p.Where, p.Why, p.Count))
	}
	want := []string{"static  static 2", "musl container web (debian) musl 1", "other  other libc 1", "glibc container web (debian) no nsswitch 1",
		"glibc container db (debian) no module 1", "glibc flatpak org.x no nsswitch 1", "glibc a container no snapshot 1"}
	if !slices.Equal(programs, want) {
		t.Errorf("programs\n%s\nwant\n%s", strings.Join(programs, "\n"), strings.Join(want, "\n"))
	}

	os.Remove(snapshot)
	os.Symlink("/etc/hosts", snapshot)
	if s := (System{Root: m.root, Paths: config.DefaultPaths}).Gather(t.Context()).Snapshot; s.Mode&os.ModeSymlink == 0 || s.Hosts != nil {
		t.Errorf("a symbolic link: %+v", s)
	}
}

// TestGoWithoutCgo reads a program that the go command makes.
func TestGoWithoutCgo(t *testing.T) {
	dir := t.TempDir()
	tree{t, dir}.write("main.go", "package main\n\nimport \"net\"\n\nfunc main() { net.LookupHost(\"x\") }\n")
	tree{t, dir}.write("go.mod", "module example.test\n")
	out := filepath.Join(dir, "x")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", out, ".")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	if b, err := readExecutable(out); err != nil || b.reason() != Go || b.module != "example.test" {
		t.Errorf("%q %+v %v", b.reason(), b, err)
	}
}
