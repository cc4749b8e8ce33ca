// SPDX-License-Identifier: MIT

// Package nss is the snapshot file: the mesh's names as libnss_mesh reads them in every process of a machine.
//
// A snapshot is written once and never changed; a new one replaces it by rename. The format is in docs/snapshot.md.
// Looking up is package leaf's, the same code that the module runs; this package writes the file, reads it as a whole,
// and reads /etc/hosts syntax. It keeps no state and starts no goroutine.
package nss

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
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
	Shared  []netip.Addr // those of Addrs that lead back to another host; of others that several have, to the first. A snapshot does not say

	rec []byte // see Prepare
}

// Group is one group of hosts, a netgroup.
type Group struct {
	Name    string   // in lower case
	Members []string // host names, each in every form that a program may ask for
}

// Set is the content of a snapshot.
type Set struct {
	Hosts    []Host
	Groups   []Group
	Created  time.Time // to the nanosecond
	Revision int64     // of what the names were taken from
}

var le = binary.LittleEndian

func checkName(n string) error {
	if n == "" || len(n) > 253 {
		return fmt.Errorf("name %q is empty or longer than 253 bytes", n)
	}
	for l := range strings.SplitSeq(n, ".") {
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

// WriteFile replaces the snapshot at path: a new file beside it, readable by all, synced, renamed. Readers see the old
// or the new one, never a part.
func WriteFile(path string, s Set) error { return new(Writer).WriteFile(path, s) }

// Writer writes one snapshot after the other, with memory that it keeps. A zero one is ready; it is for one goroutine.
type Writer struct{ buf []byte }

// WriteFile is as the function of that name.
func (w *Writer) WriteFile(path string, s Set) error {
	b, err := encode(s, w.buf)
	if err != nil {
		return fmt.Errorf("making a snapshot: %w", err)
	}
	w.buf = b
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
	seed, hosts, groups, end := le.Uint64(b[40:]), le.Uint64(b[80:]), le.Uint64(b[88:]), le.Uint64(b[96:])
	if leaf.Sum(b[:leaf.HeaderSize-8], seed, 0) != le.Uint64(b[leaf.HeaderSize-8:]) {
		return Set{}, errors.New("the header is damaged")
	}
	if le.Uint64(b[16:]) != uint64(len(b)) || end > uint64(len(b)) || groups > end || hosts > groups || hosts%8 != 0 {
		return Set{}, fmt.Errorf("the file has %d bytes, not the %d that it was written with", len(b), le.Uint64(b[16:]))
	}
	s := Set{Created: time.Unix(0, int64(le.Uint64(b[24:]))), Revision: int64(le.Uint64(b[32:]))}
	more := false
	for off := hosts; off < end; {
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
		switch kind := r[16]; {
		case !ok, off < groups && kind != leaf.RecordHost, off >= groups && kind != leaf.RecordGroup:
			return Set{}, bad
		case kind == leaf.RecordHost:
			s.Hosts = append(s.Hosts, h)
		case more && s.Groups[len(s.Groups)-1].Name != h.Name:
			return Set{}, bad
		case more:
			g := &s.Groups[len(s.Groups)-1]
			g.Members = append(g.Members, h.Aliases...)
		default:
			s.Groups = append(s.Groups, Group{h.Name, h.Aliases})
		}
		more = r[17] != 0
		off += size
	}
	if uint32(len(s.Hosts)) != le.Uint32(b[56:]) || uint32(len(s.Groups)) != le.Uint32(b[104:]) || more {
		return Set{}, fmt.Errorf("the file has %d hosts and %d groups, not the %d and %d that it was written with",
			len(s.Hosts), len(s.Groups), le.Uint32(b[56:]), le.Uint32(b[104:]))
	}
	return s, nil
}

// decodeRecord reads a record; a group's members are the aliases.
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
	return lookup(path, []byte(name), leaf.Name, new(leaf.Result))
}

// LookupAddr finds the host that an address leads back to.
func LookupAddr(path string, a netip.Addr) (h Host, ok bool, err error) {
	key := a.Unmap().AsSlice()
	if key == nil {
		return h, false, nil
	}
	return lookup(path, key, uintptr(len(key)), new(leaf.Result))
}

// LookupGroup finds a group as libnss_mesh does.
func LookupGroup(path, name string) (g Group, ok bool, err error) {
	if name == "" || len(name) > 253 {
		return g, false, nil
	}
	var r leaf.Result
	for range 3 { // the file may be replaced between two records
		h, ok, err := lookup(path, []byte(name), leaf.Group, &r)
		g, seed := Group{h.Name, h.Aliases}, r.Seed
		for ok && err == nil && r.Seed == seed && r.Buf[r.Record+17] != 0 {
			h, ok, err = lookup(path, le.AppendUint64(nil, r.Next), leaf.Next, &r)
			g.Members = append(g.Members, h.Aliases...)
		}
		if r.Seed == seed || err != nil || !ok {
			return g, ok, err
		}
	}
	return g, false, fmt.Errorf("%s: %w", path, ErrUnavailable)
}

func lookup(path string, key []byte, kind uintptr, r *leaf.Result) (h Host, ok bool, err error) {
	rec, status := leaf.Lookup(path, key, kind, r)
	switch status {
	case leaf.Absent:
		return h, false, nil
	case leaf.Unavailable:
		return h, false, fmt.Errorf("%s: %w", path, ErrUnavailable)
	}
	h, ok = decodeRecord(rec)
	return h, ok, nil
}
