// SPDX-License-Identifier: MIT

//go:build linux

package doctor

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/cmd/internal/splitdns"
	"mesh.internal/mesh/nss"
)

// System is what Gather reads.
type System struct {
	Root    string       // "/", or where a test has put a machine
	Paths   config.Paths // on that machine
	Version string       // of the program that asks
}

// Gather reads a machine. It changes nothing, and ends when ctx does, at the latest after a few seconds.
func (s System) Gather(ctx context.Context) *Machine {
	m := &Machine{Now: time.Now(), Root: os.Geteuid() == 0, Arch: debian(runtime.GOARCH)}
	m.Hostname, _ = os.Hostname()
	m.Version = s.Version
	if u, err := user.Lookup("mesh"); err == nil {
		if id, err := strconv.ParseUint(u.Uid, 10, 32); err == nil {
			m.MeshUser = uint32(id)
		}
	}
	if c, err := config.Load(s.path(s.Paths.Config)); err != nil {
		m.OnMesh, m.Zone = err.Error(), config.Default().Domain
	} else {
		m.Name, m.Zone = c.Name, c.Domain
		s.asking(ctx, m, c)
	}
	m.Nsswitch, m.HostsFile = s.text(nsswitchFile), s.text("/etc/hosts")
	m.Modules = s.modules()
	m.Snapshot = s.snapshot(m)
	s.daemon(ctx, m)
	s.programs(m)
	if m.OnMesh == "" && s.Root == "/" {
		full := m.Name + "." + m.Zone
		m.Look = []Look{look(ctx, true, "getent", "-s", "hosts:mesh", "ahosts", full), look(ctx, false, "getent", "ahosts", m.Name)}
	}
	return m
}

// asking finds out whom programs ask that speak DNS.
func (s System) asking(ctx context.Context, m *Machine, c *config.Config) {
	if s.Root != "/" {
		return
	}
	w, err := splitdns.WantOf(s.Paths, c)
	if err != nil {
		m.Asking.Err = err.Error()
		return
	}
	m.Asking = AskedDNS{Plan: splitdns.Choose(splitdns.System{Root: "/"}.Gather(ctx, w), w), Name: m.Name + "." + m.Zone}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := splitdns.Sees(ctx, m.Asking.Name, w.Servers); err != nil {
		m.Asking.Sees = err.Error()
	}
}

// debian is Debian's word for an architecture of Go's.
func debian(goarch string) string {
	switch goarch {
	case "386":
		return "i386"
	case "arm":
		return "armhf"
	}
	return goarch
}

func (s System) path(p string) string { return filepath.Join(s.Root, p) }

func (s System) text(p string) File {
	b, err := os.ReadFile(s.path(p))
	if err != nil {
		return File{Err: reason(err)}
	}
	return File{Text: string(b)}
}

// reason is an error without the path, which is said beside it.
func reason(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}

// libraryFolders are where distributions keep libc.so.6, as patterns.
var libraryFolders = []string{"/usr/lib/*-linux-*", "/lib/*-linux-*", "/usr/lib64", "/lib64", "/usr/lib32", "/lib32", "/usr/libx32", "/libx32", "/usr/lib", "/lib"}

// modules finds each glibc, and the module that its programs load.
func (s System) modules() []Module {
	var out []Module
	var seen []string
	for _, pattern := range libraryFolders {
		found, _ := filepath.Glob(s.path(filepath.Join(pattern, "libc.so.6")))
		for _, libc := range found {
			real, err := filepath.EvalSymlinks(libc)
			if err != nil || slices.Contains(seen, real) {
				continue
			}
			seen = append(seen, real)
			b, err := readExecutable(libc)
			if err != nil {
				continue
			}
			out = append(out, s.module(libc, b.arch))
		}
	}
	return out
}

func (s System) module(libc, arch string) Module {
	x := Module{Libc: s.shown(libc), Arch: arch, Path: s.shown(filepath.Join(filepath.Dir(libc), soname))}
	candidates := []string{x.Path}
	for _, d := range s.linkerFolders("/etc/ld.so.conf", 0) {
		candidates = append(candidates, filepath.Join(d, soname))
	}
	for i, p := range candidates {
		fi, err := os.Stat(s.path(p))
		if err != nil {
			continue
		}
		b, err := readExecutable(s.path(p))
		if i > 0 && (err != nil || b.arch != arch) {
			continue // another architecture's
		}
		x.Found, x.Path, x.Mode, x.Apart = true, p, fi.Mode(), i > 0
		x.Owner = owner(fi)
		if err != nil {
			x.Err = reason(err)
			return x
		}
		x.ModuleArch, x.Soname, x.Functions = b.arch, b.soname, b.functions
		return x
	}
	return x
}

// owner is the user id of a file's owner.
func owner(fi fs.FileInfo) uint32 {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return st.Uid
}

// shown is a path as it is on the machine.
func (s System) shown(p string) string {
	rel, err := filepath.Rel(s.Root, p)
	if err != nil {
		return p
	}
	return "/" + rel
}

// linkerFolders are the folders that ld.so.conf names.
func (s System) linkerFolders(conf string, depth int) []string {
	var out []string
	for line := range strings.Lines(s.text(conf).Text) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		switch {
		case len(f) == 2 && f[0] == "include" && depth < 4:
			if !strings.HasPrefix(f[1], "/") {
				f[1] = filepath.Join(filepath.Dir(conf), f[1])
			}
			more, _ := filepath.Glob(s.path(f[1]))
			for _, c := range more {
				out = append(out, s.linkerFolders(s.shown(c), depth+1)...)
			}
		case len(f) == 1 && strings.HasPrefix(f[0], "/"):
			out = append(out, f[0])
		}
	}
	return out
}

// snapshot reads the file as whoever may write beside it could have made it: nothing that is no regular file is opened.
func (s System) snapshot(m *Machine) Snapshot {
	x, path := Snapshot{Path: s.Paths.Snapshot()}, s.path(s.Paths.Snapshot())
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		x.Missing = true
		return x
	}
	folder, err2 := os.Stat(filepath.Dir(path))
	if err := errors.Join(err, err2); err != nil {
		x.Err = err.Error()
		return x
	}
	x.Mode, x.FolderMode, x.Owner, x.FolderOwner = fi.Mode(), folder.Mode(), owner(fi), owner(folder)
	if !fi.Mode().IsRegular() {
		return x
	}
	set, err := nss.ReadFile(path)
	if err != nil {
		x.Damage = err.Error()
		return x
	}
	x.Created, x.Revision, x.Groups = set.Created, set.Revision, len(set.Groups)
	for _, h := range set.Hosts {
		x.Hosts = append(x.Hosts, Host{Name: h.Name, Aliases: h.Aliases, Addrs: h.Addrs})
	}
	if m.OnMesh == "" {
		if _, x.Own, err = nss.LookupName(path, m.Name+"."+m.Zone); err != nil {
			x.Damage = "the look-up that programs make cannot read it, though its content is right"
		}
	}
	return x
}

// daemon asks meshd, if it runs.
func (s System) daemon(ctx context.Context, m *Machine) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	c := api.Client{Path: s.path(s.Paths.Socket())}
	var st api.Status
	if err := c.Do(ctx, "GET", "/v1/status", nil, &st); err != nil {
		m.Daemon = Daemon{Err: err.Error(), Forbidden: errors.Is(err, fs.ErrPermission)}
		if fi, err := os.Stat(c.Path); err == nil && !m.Root && syscall.Access(c.Path, 2) != nil && fi.Mode()&fs.ModeSocket != 0 {
			m.Daemon.Forbidden = true
		}
		return
	}
	m.Daemon = Daemon{Version: st.Version, Store: st.Store.State, Stale: time.Duration(st.Snapshot.Age * float64(time.Second))}
	for _, w := range st.Warnings {
		if strings.HasPrefix(w, api.SnapshotWarning) {
			m.Daemon.Warning = w
		}
	}
}

// look makes a look-up with a program of the system.
func look(ctx context.Context, only bool, args ...string) Look {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	l := Look{Command: strings.Join(args, " "), Only: only}
	path, err := exec.LookPath(args[0])
	if err != nil {
		l.Missing = true
		return l
	}
	cmd := exec.CommandContext(ctx, path, args[1:]...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	b, err := cmd.Output()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		l.Err = "no answer within 5 s"
	case errors.As(err, &exit) && exit.ExitCode() == 2:
		l.Err = "no such name"
	case err != nil:
		l.Err = err.Error()
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if a, err := netip.ParseAddr(f[0]); err == nil && !slices.Contains(l.Addrs, a.WithZone("")) {
			l.Addrs = append(l.Addrs, a.WithZone(""))
		}
	}
	if l.Err == "" && len(l.Addrs) == 0 {
		l.Err = "no address"
	}
	if l.Err == "" && len(l.Addrs) == 0 {
		l.Err = "no address"
	}
	return l
}
