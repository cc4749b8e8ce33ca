// SPDX-License-Identifier: MIT

// Command gate refuses a libnss_mesh.so.2 in which anything but leaf code could run in a user's program.
//
//	gate [-trim] FILE    (unstripped; amd64 or arm64)
//
// It disassembles the library, walks the call graph from the trampoline and the initializer, and fails on: a function
// outside package leaf and the raw system call, an indirect call or jump, a use of g beyond the trampoline wrapper's
// load of it, a reference to the runtime's data, an entry of .init_array other than meshnss_init and the C compiler's
// own, runtime start code that is linked in, a wrong soname, or an exported symbol other than _nss_mesh_*. With -trim it
// then removes what the loader would do for that data.
//
// On another architecture the look-up is C (libnss_mesh/reader.c) and no Go code may run at all: meshnss_init must be a
// function of one instruction, its return, and meshnss_reader may run beside it when the library is loaded.
package main

import (
	"debug/elf"
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"sort"
	"strings"

	"golang.org/x/arch/arm64/arm64asm"
	"golang.org/x/arch/x86/x86asm"
)

var (
	allowed = regexp.MustCompile(`^(meshnss_(init|find)|mesh\.internal/mesh/nss/leaf\.\w+(\.abi0)?|syscall\.RawSyscall6(\.abi0)?|internal/runtime/syscall/linux\.Syscall6(\.abi0)?)$`)
	// What gcc and the linker put into .init_array of every shared library.
	compilers = []string{"frame_dummy"}
	roots     = []string{"meshnss_init", "meshnss_find"}
)

func main() {
	trims := flag.Bool("trim", false, "remove the relocations of data that nobody reads")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: gate [-trim] FILE")
		os.Exit(2)
	}
	file := flag.Arg(0)
	walked, bad, err := check(file)
	if err != nil {
		fmt.Fprintln(os.Stderr, "gate:", err)
		os.Exit(2)
	}
	for _, b := range bad {
		fmt.Fprintln(os.Stderr, "gate: refused:", b)
	}
	if len(bad) > 0 {
		os.Exit(1)
	}
	fmt.Printf("gate: %s: %d functions can run in a user's program, all of them leaves: %s\n", file, len(walked), strings.Join(walked, " "))
	if *trims {
		dropped, kept, err := trim(file)
		if err != nil {
			fmt.Fprintf(os.Stderr, "gate: trimming %s: %v\n", file, err)
			os.Exit(2)
		}
		fmt.Printf("gate: %d relocations of data that nobody reads removed, %d kept\n", dropped, kept)
	}
}

// call is a transfer of control out of a function, or another thing that may not be.
type call struct {
	target uint64
	bad    string
}

// library is an ELF file with its functions.
type library struct {
	*elf.File
	symbols []elf.Symbol // functions, by address
	text    *elf.Section
	code    []byte
	data    spans // the Go runtime's
}

// check returns the functions reachable from the roots and what is wrong with the library.
func check(path string) (walked, bad []string, err error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	l := &library{File: f, text: f.Section(".text")}
	if l.text == nil {
		return nil, nil, fmt.Errorf("%s has no .text", path)
	}
	if l.code, err = l.text.Data(); err != nil {
		return nil, nil, err
	}
	syms, err := f.Symbols()
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w: the gate needs the unstripped library", path, err)
	}
	for _, s := range syms {
		if elf.ST_TYPE(s.Info) == elf.STT_FUNC && s.Value != 0 {
			l.symbols = append(l.symbols, s)
			if strings.HasPrefix(s.Name, "_rt0_") {
				bad = append(bad, "runtime start code is linked in: "+s.Name+" (is -E=meshnss_init missing?)")
			}
		}
	}
	if l.data, err = goData(f); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	sort.Slice(l.symbols, func(i, j int) bool { return l.symbols[i].Value < l.symbols[j].Value })
	bad = append(bad, l.checkDynamic()...)
	bad = append(bad, l.checkInit(syms)...)

	todo, seen := slices.Clone(roots), map[string]bool{}
	if f.Machine != elf.EM_X86_64 && f.Machine != elf.EM_AARCH64 {
		todo = nil
		if s := l.byName("meshnss_init"); s == nil || s.Size > 8 { // with the padding behind it
			bad = append(bad, "meshnss_init does more than return")
		}
	}
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if seen[name] {
			continue
		}
		seen[name] = true
		s := l.byName(name)
		if s == nil {
			bad = append(bad, "no function "+name)
			continue
		}
		calls, err := l.calls(s)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, c := range calls {
			if c.bad != "" {
				bad = append(bad, name+": "+c.bad)
				continue
			}
			t := l.at(c.target)
			switch {
			case t == nil:
				bad = append(bad, fmt.Sprintf("%s: goes to %#x, which is no function", name, c.target))
			case !allowed.MatchString(t.Name):
				bad = append(bad, name+": calls "+t.Name)
			default:
				todo = append(todo, t.Name)
			}
		}
	}
	for n := range seen {
		walked = append(walked, n)
	}
	sort.Strings(walked)
	return walked, bad, nil
}

func (l *library) byName(name string) *elf.Symbol {
	for i := range l.symbols {
		if l.symbols[i].Name == name {
			return &l.symbols[i]
		}
	}
	return nil
}

// at returns the function that an address lies in.
func (l *library) at(addr uint64) *elf.Symbol {
	i := sort.Search(len(l.symbols), func(i int) bool { return l.symbols[i].Value > addr }) - 1
	if i < 0 || addr >= l.symbols[i].Value+max(l.symbols[i].Size, 1) {
		return nil
	}
	return &l.symbols[i]
}

func (l *library) checkDynamic() (bad []string) {
	if so, _ := l.DynString(elf.DT_SONAME); !slices.Equal(so, []string{"libnss_mesh.so.2"}) {
		bad = append(bad, fmt.Sprintf("soname is %q", so))
	}
	syms, _ := l.DynamicSymbols()
	exported := 0
	for _, s := range syms {
		if s.Section == elf.SHN_UNDEF || s.Section == elf.SHN_ABS || elf.ST_TYPE(s.Info) == elf.STT_SECTION {
			continue
		}
		exported++
		if !strings.HasPrefix(s.Name, "_nss_mesh_") {
			bad = append(bad, "exports "+s.Name)
		}
	}
	if exported == 0 {
		bad = append(bad, "exports nothing")
	}
	return bad
}

// checkInit looks at what the dynamic linker runs when the library is loaded.
func (l *library) checkInit(syms []elf.Symbol) (bad []string) {
	init := l.Section(".init_array")
	if init == nil {
		return []string{"no .init_array: meshnss_init never runs"}
	}
	data, err := init.Data()
	if err != nil {
		return []string{err.Error()}
	}
	// In a shared library the entries are written by relative relocations; their addends are the functions.
	entry := map[uint64]uint64{}
	for i := 0; i+8 <= len(data); i += 8 {
		entry[init.Addr+uint64(i)] = binary.LittleEndian.Uint64(data[i:])
	}
	if rela := l.Section(".rela.dyn"); rela != nil {
		d, _ := rela.Data()
		for ; len(d) >= 24; d = d[24:] {
			if off := binary.LittleEndian.Uint64(d); entry[off] != 0 || off >= init.Addr && off < init.Addr+init.Size {
				if a := binary.LittleEndian.Uint64(d[16:]); a != 0 {
					entry[off] = a
				}
			}
		}
	}
	found := false
	for _, addr := range entry {
		var names []string
		for _, s := range syms {
			if s.Value == addr && elf.ST_TYPE(s.Info) == elf.STT_FUNC {
				names = append(names, s.Name)
			}
		}
		switch {
		case slices.Contains(names, "meshnss_init"):
			found = true
		case len(names) == 1 && slices.Contains(compilers, names[0]):
		case slices.Contains(names, "meshnss_reader") && l.Machine != elf.EM_X86_64 && l.Machine != elf.EM_AARCH64:
		default:
			bad = append(bad, fmt.Sprintf("runs %q (%#x) when it is loaded", names, addr))
		}
	}
	if !found {
		bad = append(bad, "meshnss_init does not run when it is loaded")
	}
	return bad
}

// calls returns where a function's code may go, and what in it may not be.
func (l *library) calls(s *elf.Symbol) ([]call, error) {
	if s.Value < l.text.Addr || s.Value+s.Size > l.text.Addr+l.text.Size || s.Size == 0 {
		return nil, fmt.Errorf("its code is not in .text")
	}
	code := l.code[s.Value-l.text.Addr:][:s.Size]
	switch l.Machine {
	case elf.EM_X86_64:
		return l.callsAMD64(s, code)
	case elf.EM_AARCH64:
		return l.callsARM64(s, code)
	}
	return nil, fmt.Errorf("no rules for %s", l.Machine)
}

func (l *library) callsAMD64(s *elf.Symbol, code []byte) (out []call, err error) {
	for pc := s.Value; len(code) > 0; {
		in, err := x86asm.Decode(code, 64)
		if err != nil {
			return nil, fmt.Errorf("at %#x: %w", pc, err)
		}
		next := pc + uint64(in.Len)
		for _, a := range in.Args {
			switch a := a.(type) {
			case x86asm.Rel:
				if t := uint64(int64(next) + int64(a)); t < s.Value || t >= s.Value+s.Size {
					out = append(out, call{target: t})
				}
			case x86asm.Mem:
				// The wrapper between Go's two calling conventions loads g from thread-local storage into R14; nothing may
				// go through it.
				if a.Base == x86asm.R14 && a.Segment != x86asm.FS {
					out = append(out, call{bad: "uses g: " + in.String()})
				}
				if a.Base == x86asm.RIP && l.data.has(next+uint64(a.Disp)) {
					out = append(out, call{bad: "refers to the runtime's data: " + in.String()})
				}
			}
		}
		switch in.Op {
		case x86asm.CALL, x86asm.JMP, x86asm.LCALL, x86asm.LJMP:
			if _, rel := in.Args[0].(x86asm.Rel); !rel {
				out = append(out, call{bad: "goes where the gate cannot follow: " + in.String()})
			}
		}
		code, pc = code[in.Len:], next
	}
	return out, nil
}

func (l *library) callsARM64(s *elf.Symbol, code []byte) (out []call, err error) {
	for pc := s.Value; len(code) >= 4; code, pc = code[4:], pc+4 {
		if binary.LittleEndian.Uint32(code) == 0 {
			continue // padding
		}
		in, err := arm64asm.Decode(code)
		if err != nil {
			return nil, fmt.Errorf("at %#x: %w", pc, err)
		}
		for _, a := range in.Args {
			switch a := a.(type) {
			case arm64asm.PCRel:
				branch := in.Op == arm64asm.B || in.Op == arm64asm.BL || in.Op == arm64asm.CBZ || in.Op == arm64asm.CBNZ || in.Op == arm64asm.TBZ || in.Op == arm64asm.TBNZ
				if in.Op == arm64asm.ADRP && l.data.has(address(pc&^0xfff+uint64(int64(a)), code[4:])) {
					out = append(out, call{bad: "refers to the runtime's data: " + in.String()})
				}
				if t := uint64(int64(pc) + int64(a)); branch && (t < s.Value || t >= s.Value+s.Size) {
					out = append(out, call{target: t})
				}
			case arm64asm.MemImmediate:
				if a.Base == arm64asm.RegSP(arm64asm.X28) {
					out = append(out, call{bad: "uses g: " + in.String()})
				}
			}
		}
		if in.Op == arm64asm.BLR || in.Op == arm64asm.BR {
			out = append(out, call{bad: "goes where the gate cannot follow: " + in.String()})
		}
	}
	return out, nil
}

// address is what an ADRP of page and the instruction behind it come to: ADD, or a load or store, with a 12-bit immediate
// (Arm Architecture Reference Manual, C4.1).
func address(page uint64, code []byte) uint64 {
	if len(code) < 4 {
		return page
	}
	w := binary.LittleEndian.Uint32(code)
	imm := uint64(w >> 10 & 0xfff)
	switch {
	case w&0x7f800000 == 0x11000000: // ADD
		return page + imm
	case w&0x3b000000 == 0x39000000: // LDR, STR of 1<<size bytes
		return page + imm<<(w>>30)
	}
	return page
}
