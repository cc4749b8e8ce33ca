// SPDX-License-Identifier: MIT

// Package nss is the snapshot file: the mesh's names as libnss_mesh reads them in every process of a machine.
//
// A snapshot is written once and never changed; a new one replaces it by rename. The format is in docs/snapshot.md.
// Looking up is package leaf's, the same code that the module runs; this package writes the file, reads it as a whole,
// and reads /etc/hosts syntax. It keeps no state and starts no goroutine.
package nss

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"mesh.internal/mesh/nss/leaf"
)

// MaxAddrs bounds the addresses of one family that a host has.
const MaxAddrs = 64

// Host is one host of a snapshot.
type Host struct {
	Name    string       // canonical: what reverse look-ups return, in lower case
	Aliases []string     // every other name that finds the host, in lower case
	Addrs   []netip.Addr // IPv4 addresses are given before IPv6 ones
}

// Set is the content of a snapshot.
type Set struct {
	Hosts    []Host
	Created  time.Time // to the nanosecond
	Revision int64     // of what the names were taken from
}

var le = binary.LittleEndian

// Encode makes a snapshot. Of several hosts with one name the first has it; an address leads back to the first host
// that has it. It fails where a host does not fit the format.
func Encode(s Set) ([]byte, error) {
	names, addrs := map[string]int{}, map[netip.Addr]int{}
	for i, h := range s.Hosts {
		for _, n := range append([]string{h.Name}, h.Aliases...) {
			if err := checkName(n); err != nil {
				return nil, err
			}
			if _, ok := names[n]; !ok {
				names[n] = i
			}
		}
		for _, a := range h.Addrs {
			if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
				return nil, fmt.Errorf("host %s: address %q cannot be in a snapshot", h.Name, a)
			}
			if _, ok := addrs[a]; !ok {
				addrs[a] = i
			}
		}
	}
	var seed [8]byte
	rand.Read(seed[:]) // so that nobody can choose names that collide
	for lines := 1; lines <= 1<<28; lines *= 2 {
		e := encoder{set: s, seed: le.Uint64(seed[:]), names: names, addrs: addrs,
			nameLines: lines * linesFor(len(names)), addrLines: lines * linesFor(len(addrs))}
		b, err := e.encode()
		if !errors.Is(err, errFull) {
			return b, err
		}
	}
	return nil, errors.New("the names do not spread over any index: this cannot happen by chance")
}

// linesFor is the power of two at which n slots fill at most half of an index.
func linesFor(n int) int {
	return 1 << bits.Len(uint(2*n/leaf.LineSlots))
}

var errFull = errors.New("a chain of the index is too long")

func checkName(n string) error {
	if n == "" || len(n) > 253 {
		return fmt.Errorf("name %q is empty or longer than 253 bytes", n)
	}
	for _, l := range strings.Split(n, ".") {
		if l == "" || len(l) > 63 {
			return fmt.Errorf("name %q has an empty label or one of over 63 bytes", n)
		}
		for _, c := range []byte(l) {
			if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return fmt.Errorf("name %q has a byte that no host name in lower case has: %q", n, c)
			}
		}
	}
	return nil
}

type encoder struct {
	set                  Set
	seed                 uint64
	names                map[string]int
	addrs                map[netip.Addr]int
	nameLines, addrLines int
}

func (e *encoder) encode() ([]byte, error) {
	nameOff := leaf.HeaderSize
	addrOff := nameOff + e.nameLines*leaf.LineSize
	recOff := addrOff + e.addrLines*leaf.LineSize
	b := make([]byte, recOff, recOff+len(e.set.Hosts)*96)
	at := make([]uint32, len(e.set.Hosts)) // offset/8 of each host's record
	for i, h := range e.set.Hosts {
		at[i] = uint32(len(b) / 8)
		start := len(b)
		b = append(b, make([]byte, leaf.RecordHead)...)
		var n4, n6 int
		for _, a := range h.Addrs {
			if a.Is4() {
				b = append(b, a.AsSlice()...)
				n4++
			}
		}
		for _, a := range h.Addrs {
			if a.Is6() {
				b = append(b, a.AsSlice()...)
				n6++
			}
		}
		// Only names that lead here, and each once, so that what a program is shown is what it would find.
		count := 0
		list := append([]string{h.Name}, h.Aliases...)
		for j, n := range list {
			if j == 0 || e.names[n] == i && !slices.Contains(list[:j], n) {
				b = append(append(b, byte(len(n))), n...)
				count++
			}
		}
		for len(b)%8 != 0 {
			b = append(b, 0)
		}
		r := b[start:]
		if len(r) > leaf.MaxRecord || n4 > MaxAddrs || n6 > MaxAddrs {
			return nil, fmt.Errorf("host %s has too many addresses (%d IPv4, %d IPv6; at most %d each) or names (%d) for a record of %d bytes",
				h.Name, n4, n6, MaxAddrs, count, leaf.MaxRecord)
		}
		le.PutUint32(r[8:], uint32(len(r)))
		le.PutUint16(r[12:], uint16(count))
		r[14], r[15] = byte(n4), byte(n6)
		le.PutUint64(r, leaf.Sum(r[8:], e.seed, uint64(start)))
	}
	end := len(b)
	names, addrs := b[nameOff:addrOff], b[addrOff:recOff]
	for n, i := range e.names {
		if !insert(names, leaf.Hash([]byte(n), leaf.Name, e.seed), at[i]) {
			return nil, errFull
		}
	}
	for a, i := range e.addrs {
		key := a.AsSlice()
		if !insert(addrs, leaf.Hash(key, uintptr(len(key)), e.seed), at[i]) {
			return nil, errFull
		}
	}
	for off := nameOff; off < recOff; off += leaf.LineSize {
		l := b[off : off+leaf.LineSize]
		le.PutUint64(l[leaf.LineSize-8:], leaf.Sum(l[:leaf.LineSize-8], e.seed, uint64(off)))
	}
	h := b[:leaf.HeaderSize]
	le.PutUint64(h[0:], leaf.Magic)
	le.PutUint32(h[8:], leaf.Version)
	le.PutUint32(h[12:], leaf.HeaderSize)
	le.PutUint64(h[16:], uint64(len(b)))
	le.PutUint64(h[24:], uint64(e.set.Created.UnixNano()))
	le.PutUint64(h[32:], uint64(e.set.Revision))
	le.PutUint64(h[40:], e.seed)
	le.PutUint32(h[48:], uint32(e.nameLines))
	le.PutUint32(h[52:], uint32(e.addrLines))
	le.PutUint32(h[56:], uint32(len(e.set.Hosts)))
	le.PutUint32(h[60:], uint32(len(e.names)))
	le.PutUint64(h[64:], uint64(nameOff))
	le.PutUint64(h[72:], uint64(addrOff))
	le.PutUint64(h[80:], uint64(recOff))
	le.PutUint64(h[88:], uint64(end))
	le.PutUint64(h[leaf.HeaderSize-8:], leaf.Sum(h[:leaf.HeaderSize-8], e.seed, 0))
	return b, nil
}

// insert puts a slot into the first line with room from the hash's own on, and reports whether there is one.
func insert(index []byte, hash uint64, at uint32) bool {
	lines := len(index) / leaf.LineSize
	for p := range leaf.MaxProbe {
		l := index[(int(hash>>32)+p)&(lines-1)*leaf.LineSize:]
		for s := range leaf.LineSlots {
			if le.Uint32(l[s*8+4:]) == 0 {
				le.PutUint32(l[s*8:], uint32(hash))
				le.PutUint32(l[s*8+4:], at)
				return true
			}
		}
		if lines == 1 {
			break
		}
	}
	return false
}

// WriteFile replaces the snapshot at path: a new file beside it, readable by all, synced, renamed. Readers see the old
// or the new one, never a part.
func WriteFile(path string, s Set) error {
	b, err := Encode(s)
	if err != nil {
		return fmt.Errorf("making a snapshot: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return fmt.Errorf("writing a snapshot: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing a snapshot: %w", err)
	}
	return nil
}

// ReadFile reads a whole snapshot and checks all of it.
func ReadFile(path string) (Set, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Set{}, fmt.Errorf("reading a snapshot: %w", err)
	}
	s, err := Decode(b)
	if err != nil {
		return Set{}, fmt.Errorf("snapshot %s: %w", path, err)
	}
	return s, nil
}

// Decode reads a snapshot's bytes without its index, and checks them. It shares no code with package leaf but the
// checksum, so that one can be held against the other.
func Decode(b []byte) (Set, error) {
	if len(b) < leaf.HeaderSize || le.Uint64(b) != leaf.Magic {
		return Set{}, errors.New("this is no snapshot of mesh names")
	}
	if v := le.Uint32(b[8:]); v != leaf.Version {
		return Set{}, fmt.Errorf("the format is version %d, this program reads version %d", v, leaf.Version)
	}
	seed, rec, end := le.Uint64(b[40:]), le.Uint64(b[80:]), le.Uint64(b[88:])
	if leaf.Sum(b[:leaf.HeaderSize-8], seed, 0) != le.Uint64(b[leaf.HeaderSize-8:]) {
		return Set{}, errors.New("the header is damaged")
	}
	if le.Uint64(b[16:]) != uint64(len(b)) || end > uint64(len(b)) || rec > end || rec%8 != 0 {
		return Set{}, fmt.Errorf("the file has %d bytes, not the %d that it was written with", len(b), le.Uint64(b[16:]))
	}
	s := Set{Created: time.Unix(0, int64(le.Uint64(b[24:]))), Revision: int64(le.Uint64(b[32:]))}
	for off := rec; off < end; {
		bad := fmt.Errorf("the record at byte %d is damaged", off)
		if end-off < leaf.RecordHead {
			return Set{}, bad
		}
		size := uint64(le.Uint32(b[off+8:]))
		if size < leaf.RecordHead || size > leaf.MaxRecord || size%8 != 0 || size > end-off {
			return Set{}, bad
		}
		r := b[off : off+size]
		if leaf.Sum(r[8:], seed, off) != le.Uint64(r) {
			return Set{}, bad
		}
		h, ok := decodeRecord(r)
		if !ok {
			return Set{}, bad
		}
		s.Hosts = append(s.Hosts, h)
		off += size
	}
	if uint32(len(s.Hosts)) != le.Uint32(b[56:]) {
		return Set{}, fmt.Errorf("the file has %d hosts, not the %d that it was written with", len(s.Hosts), le.Uint32(b[56:]))
	}
	return s, nil
}

func decodeRecord(r []byte) (h Host, ok bool) {
	names, n4, n6 := int(le.Uint16(r[12:])), int(r[14]), int(r[15])
	rest := r[leaf.RecordHead:]
	take := func(n int) []byte {
		if n > len(rest) {
			return nil
		}
		t := rest[:n]
		rest = rest[n:]
		return t
	}
	for i := range n4 + n6 {
		size := 4
		if i >= n4 {
			size = 16
		}
		a, ok := netip.AddrFromSlice(take(size))
		if !ok {
			return h, false
		}
		h.Addrs = append(h.Addrs, a)
	}
	for i := range names {
		l := take(1)
		if l == nil || l[0] == 0 {
			return h, false
		}
		n := take(int(l[0]))
		if n == nil {
			return h, false
		}
		if i == 0 {
			h.Name = string(n)
		} else {
			h.Aliases = append(h.Aliases, string(n))
		}
	}
	return h, names > 0
}

// ErrUnavailable means that a snapshot is missing or not to be believed; programs then go on without it.
var ErrUnavailable = errors.New("there is no usable snapshot")

// LookupName finds a name as libnss_mesh does: any case, a final dot allowed. ok is false where there is none.
func LookupName(path, name string) (h Host, ok bool, err error) {
	name = strings.TrimSuffix(name, ".")
	if name == "" || len(name) > 253 {
		return h, false, nil
	}
	return lookup(path, []byte(name), leaf.Name)
}

// LookupAddr finds the host that an address leads back to.
func LookupAddr(path string, a netip.Addr) (h Host, ok bool, err error) {
	key := a.Unmap().AsSlice()
	if key == nil {
		return h, false, nil
	}
	return lookup(path, key, uintptr(len(key)))
}

func lookup(path string, key []byte, kind uintptr) (h Host, ok bool, err error) {
	var r leaf.Result
	rec, status := leaf.Lookup(path, key, kind, &r)
	switch status {
	case leaf.Absent:
		return h, false, nil
	case leaf.Unavailable:
		return h, false, fmt.Errorf("%s: %w", path, ErrUnavailable)
	}
	h, ok = decodeRecord(bytes.Clone(rec))
	return h, ok, nil
}
