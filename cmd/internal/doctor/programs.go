// SPDX-License-Identifier: MIT

//go:build linux

package doctor

import (
	"debug/buildinfo"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// executable is what an ELF file says of itself.
type executable struct {
	arch      string // in Debian's words
	interp    string // dynamic linker; empty: static
	soname    string
	functions map[string]bool // exported
	golang    bool
	pureGo    bool   // Go that has its own resolver only
	module    string // of Go: the main package's module
}

func readExecutable(path string) (executable, error) {
	r, err := os.Open(path)
	if err != nil {
		return executable{}, err
	}
	defer r.Close()
	f, err := elf.NewFile(r)
	if err != nil {
		return executable{}, err
	}
	b := executable{arch: archOf(f), functions: map[string]bool{}}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP && p.Filesz < 4096 {
			name := make([]byte, p.Filesz)
			if _, err := p.ReadAt(name, 0); err == nil {
				b.interp = strings.TrimRight(string(name), "\x00")
			}
		}
	}
	if f.Type == elf.ET_DYN && b.interp == "" { // a library
		if names, err := f.DynString(elf.DT_SONAME); err == nil && len(names) > 0 {
			b.soname = names[0]
		}
		syms, _ := f.DynamicSymbols()
		for _, s := range syms {
			if s.Section != elf.SHN_UNDEF {
				b.functions[s.Name] = true
			}
		}
	}
	if info, err := buildinfo.Read(r); err == nil {
		b.golang, b.module = true, info.Main.Path
		b.pureGo = b.interp == ""
		for _, s := range info.Settings {
			switch s.Key {
			case "CGO_ENABLED":
				b.pureGo = b.pureGo || s.Value == "0"
			case "-tags":
				b.pureGo = b.pureGo || slices.Contains(strings.Split(s.Value, ","), "netgo")
			}
		}
	}
	return b, nil
}

// archOf is an ELF file's architecture in Debian's words.
func archOf(f *elf.File) string {
	switch wide := f.Class == elf.ELFCLASS64; f.Machine {
	case elf.EM_X86_64:
		if wide {
			return "amd64"
		}
		return "x32"
	case elf.EM_386:
		return "i386"
	case elf.EM_AARCH64:
		return "arm64"
	case elf.EM_ARM:
		return "armhf"
	case elf.EM_RISCV:
		return "riscv64"
	case elf.EM_PPC64:
		return "ppc64el"
	case elf.EM_S390:
		return "s390x"
	case elf.EM_LOONGARCH:
		return "loong64"
	}
	return strings.ToLower(strings.TrimPrefix(f.Machine.String(), "EM_"))
}

// reason is why a program of this kind cannot see mesh names, wherever it runs; empty if it can.
func (b executable) reason() Reason {
	switch linker := filepath.Base(b.interp); {
	case b.golang && b.pureGo:
		return Go
	case b.interp == "":
		return Static
	case strings.HasPrefix(linker, "ld-musl-"):
		return Musl
	case !strings.HasPrefix(linker, "ld-linux") && !strings.HasPrefix(linker, "ld64.so") && linker != "ld.so.1":
		return OtherLibc
	}
	return ""
}

// ours is the module of mesh's own programs, which never look a mesh name up.
const ours = "mesh.internal/mesh"

// programs walks /proc: what runs and cannot see mesh names, how much is hidden, and the cache of names.
func (s System) programs(m *Machine) {
	procs, _ := filepath.Glob(s.path("/proc/[0-9]*"))
	binaries := map[string]*executable{} // by device and inode; nil: not to be read
	views := map[string]view{}           // by mount namespace and root
	found := map[Program]*Program{}      // without count and PID
	for _, p := range procs {
		pid, err := strconv.Atoi(filepath.Base(p))
		if err != nil {
			continue
		}
		exe, err := os.Readlink(p + "/exe")
		if errors.Is(err, fs.ErrPermission) {
			m.Hidden++
			continue
		}
		id := identify(p + "/exe")
		if err != nil || id == "" {
			continue // a thread of the kernel, or gone
		}
		exe = strings.TrimSuffix(exe, " (deleted)")
		if name := filepath.Base(exe); name == "nscd" || name == "unscd" || name == "nsncd" {
			m.Cache = Cache{Name: name, Hosts: name != "nsncd" && cachesHosts(s.text("/etc/nscd.conf").Text)}
		}
		b, known := binaries[id]
		if !known {
			if x, err := readExecutable(p + "/exe"); err == nil {
				b = &x
			}
			binaries[id] = b
		}
		if b == nil || b.module == ours {
			continue
		}
		v := s.viewOf(p, views)
		x := Program{Path: exe, Where: v.where, Why: b.reason()}
		if x.Why == "" {
			x.Why = v.why
		}
		if x.Why == "" {
			continue
		}
		if found[x] == nil {
			found[x] = &Program{Path: x.Path, Where: x.Where, Why: x.Why, PID: pid}
		}
		found[x].Count++
		found[x].PID = min(found[x].PID, pid)
	}
	for _, x := range found {
		m.Programs = append(m.Programs, *x)
	}
	slices.SortFunc(m.Programs, func(a, b Program) int { return a.PID - b.PID })
}

// identify tells files apart; empty if there is none.
func identify(path string) string {
	fi, err := os.Stat(path)
	if err != nil {
		return ""
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// view is what a process sees instead of this machine's files.
type view struct {
	where string // what runs it; empty: it has this machine's root
	why   Reason // why glibc's programs there do not see mesh names
}

// viewOf says what the process with the folder proc sees.
func (s System) viewOf(proc string, views map[string]view) view {
	ns, err := os.Readlink(proc + "/ns/mnt")
	root := proc + "/root"
	key := ns + " " + identify(root)
	if v, ok := views[key]; ok {
		return v
	}
	mine, _ := os.Readlink(s.path("/proc/self/ns/mnt"))
	var v view
	if err == nil && (ns != mine || identify(root) != identify(s.Root)) {
		v = s.look(root)
	}
	views[key] = v
	return v
}

func (s System) look(root string) view {
	var v view
	in := System{Root: root}
	if identify(root) != identify(s.Root) || identify(root+nsswitchFile) != identify(s.path(nsswitchFile)) {
		v.where = in.label()
		if d := ParseNsswitch(in.text(nsswitchFile).Text)["hosts"]; d == nil || !slices.ContainsFunc(d.Services, func(x Service) bool { return x.Name == moduleName }) {
			v.why = NoSwitch
			return v
		}
		if !slices.ContainsFunc(in.modules(), func(x Module) bool { return x.Found }) {
			v.why = NoModule
			return v
		}
	}
	if here := identify(s.path(s.Paths.Snapshot())); here != "" && identify(root+s.Paths.Snapshot()) != here {
		v.why = NoSnapshot
	}
	return v
}

// label is what to call a container by.
func (s System) label() string {
	for line := range strings.Lines(s.text("/.flatpak-info").Text) {
		if name, ok := strings.CutPrefix(line, "name="); ok {
			return "flatpak " + strings.TrimSpace(name)
		}
	}
	name := strings.TrimSpace(s.text("/etc/hostname").Text)
	for line := range strings.Lines(s.text("/etc/os-release").Text) {
		if id, ok := strings.CutPrefix(line, "ID="); ok {
			name = strings.TrimSpace(fmt.Sprintf("%s (%s)", name, strings.Trim(strings.TrimSpace(id), `"`)))
		}
	}
	if name == "" {
		return "a container"
	}
	return "container " + name
}

// cachesHosts reports whether nscd.conf lets nscd cache hosts.
func cachesHosts(conf string) bool {
	for line := range strings.Lines(conf) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == "enable-cache" && f[1] == "hosts" {
			return f[2] == "yes"
		}
	}
	return false
}
