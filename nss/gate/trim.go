// SPDX-License-Identifier: MIT

package main

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
)

// No Go runtime ever starts in the module, and check has shown that no function of it can run and that none of those that
// do refers to its data: nobody reads that. But the loader of each process that looks up a name would relocate it:
// thousands of pointers on some twenty pages, each of which costs a page fault and a copy. So trim removes these
// relocations. Where that data is the Go linker's own symbols say; what is C's, or the loader's, keeps its relocations.
// The library is changed in place, its layout is not.

// entry is the size of a relocation in .rela.dyn.
const entry = 24

func trim(path string) (dropped, kept int, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, err
	}
	f, err := elf.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	relative, ok := map[elf.Machine]uint64{elf.EM_X86_64: uint64(elf.R_X86_64_RELATIVE), elf.EM_AARCH64: uint64(elf.R_AARCH64_RELATIVE)}[f.Machine]
	if !ok {
		return 0, 0, nil // there the look-up is C and the module is as it was linked
	}
	rela, dynamic := f.Section(".rela.dyn"), f.Section(".dynamic")
	if rela == nil || dynamic == nil || rela.Size%entry != 0 || rela.Entsize != entry {
		return 0, 0, fmt.Errorf("not a library of a known kind: %s", f.Machine)
	}
	data, err := goData(f)
	if err != nil {
		return 0, 0, err
	}
	le := binary.LittleEndian
	table := b[rela.Offset : rela.Offset+rela.Size]
	var out []byte
	relatives := 0
	for i := 0; i < len(table); i += entry {
		r := table[i : i+entry]
		at, isRelative := le.Uint64(r), le.Uint64(r[8:]) == relative
		if isRelative && data.has(at) {
			dropped++
			continue
		}
		if isRelative {
			if len(out) != relatives*entry {
				return 0, 0, errors.New("its relative relocations are not all in front")
			}
			relatives++
		}
		out = append(out, r...)
	}
	kept = len(out) / entry
	clear(table[copy(table, out):])
	set := map[elf.DynTag]uint64{elf.DT_RELASZ: uint64(len(out)), elf.DT_RELACOUNT: uint64(relatives)}
	for d := b[dynamic.Offset : dynamic.Offset+dynamic.Size]; len(d) >= 16; d = d[16:] {
		if v, ok := set[elf.DynTag(le.Uint64(d))]; ok {
			le.PutUint64(d[8:], v)
			delete(set, elf.DynTag(le.Uint64(d)))
		}
	}
	if len(set) > 0 || dropped == 0 {
		return 0, 0, errors.New("it has not what is to be changed: has it been trimmed or stripped already?")
	}
	return dropped, kept, os.WriteFile(path, b, 0o755)
}

type span struct{ from, to uint64 }

type spans []span

func (s spans) has(at uint64) bool {
	for _, x := range s {
		if at >= x.from && at+8 <= x.to {
			return true
		}
	}
	return false
}

// goData returns where the Go linker put types, variables and tables.
func goData(f *elf.File) (spans, error) {
	symbols, err := f.Symbols()
	if err != nil {
		return nil, fmt.Errorf("reading its symbols: %w", err)
	}
	at := map[string]elf.Symbol{}
	for _, s := range symbols {
		at[s.Name] = s
	}
	var out spans
	for from, to := range map[string]string{"runtime.types": "runtime.etypes", "runtime.data": "runtime.edata", "runtime.noptrdata": "runtime.enoptrdata"} {
		a, b := at[from], at[to]
		if a.Value == 0 || b.Value <= a.Value || a.Section != b.Section {
			return nil, fmt.Errorf("no %s and %s in one section", from, to)
		}
		out = append(out, span{a.Value, b.Value})
	}
	for _, s := range f.Sections {
		if strings.HasPrefix(s.Name, ".go.") {
			out = append(out, span{s.Addr, s.Addr + s.Size})
		}
	}
	return out, nil
}
