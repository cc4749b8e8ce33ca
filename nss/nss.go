// SPDX-License-Identifier: MIT

// Package nss is the snapshot file: the mesh's names as libnss_mesh reads them in every process of a machine.
//
// A snapshot is written once and never changed; a new one replaces it by rename. The format is in docs/snapshot.md.
// Looking up is package leaf's, the same code that the module runs; this package writes the file, reads it as a whole,
// and reads /etc/hosts syntax. It keeps no state and starts no goroutine.
package nss

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
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

// Encode makes a snapshot. Of several hosts with one name the first has it; an address leads back to the first host
// that has it. It fails where a host or a group does not fit the format. It needs about 400 bytes for each name.
func Encode(s Set) ([]byte, error) {
	e := encoder{set: s, names: make(map[string]int32, 2*len(s.Hosts)), addrs: make(map[netip.Addr]int32, 2*len(s.Hosts))}
	if err := e.gather(); err != nil {
		return nil, err
	}
	// Too long a chain is a matter of luck, of more buckets less: a small mesh may need another seed, not more room.
	for try := range 64 {
		var seed [8]byte
		rand.Read(seed[:]) // so that nobody can choose names that collide
		e.seed = le.Uint64(seed[:])
		if b, ok := e.encode(1 + float64(try)/8); ok {
			return b, nil
		}
	}
	return nil, errors.New("the names do not spread over any index: this cannot happen by chance")
}

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

// The shape of an index.
const (
	slotsUsed = 3   // of a bucket's seven, on average
	bucket    = 384 // bytes, in a file too large for one read: a line and room for some four copies
	copyRoom  = (bucket - leaf.LineSize) * 3 / 4
	maxCopy   = 224 // bytes of a record worth a copy beside its slots
)

// encoder makes one snapshot.
type encoder struct {
	set   Set
	names map[string]int32 // host by name
	addrs map[netip.Addr]int32

	hostBytes, groupBytes, copyBytes int
	seed                             uint64
}

// gather finds out which host each name and each address leads to, and how much room the records take.
func (e *encoder) gather() error {
	for i, h := range e.set.Hosts {
		for j := range 1 + len(h.Aliases) {
			n := h.name(j)
			if err := checkName(n); err != nil {
				return err
			}
			if _, ok := e.names[n]; !ok {
				e.names[n] = int32(i)
			}
		}
		for _, a := range h.Addrs {
			if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
				return fmt.Errorf("host %s: address %q cannot be in a snapshot", h.Name, a)
			}
			if _, ok := e.addrs[a]; !ok {
				e.addrs[a] = int32(i)
			}
		}
	}
	var r []byte
	for i, h := range e.set.Hosts {
		r = e.appendHost(r[:0], i)
		if n4, n6 := int(r[14]), int(r[15]); len(r) > leaf.MaxRecord || len(h.Addrs) > 2*MaxAddrs || n4 > MaxAddrs || n6 > MaxAddrs {
			return fmt.Errorf("host %s has too many addresses (%d; at most %d of a family) or names (%d) for a record of %d bytes",
				h.Name, len(h.Addrs), MaxAddrs, le.Uint16(r[12:]), leaf.MaxRecord)
		}
		e.hostBytes += len(r)
		if len(r) <= maxCopy {
			e.copyBytes += len(r) * int(le.Uint16(r[12:]))
		}
	}
	seen := map[string]bool{}
	for _, g := range e.set.Groups {
		for _, n := range append([]string{g.Name}, g.Members...) {
			if err := checkName(n); err != nil {
				return fmt.Errorf("group %s: %w", g.Name, err)
			}
		}
		if seen[g.Name] {
			return fmt.Errorf("group %s is there twice", g.Name)
		}
		seen[g.Name] = true
		e.groupBytes += len(appendGroup(nil, g))
	}
	return nil
}

// name is the j-th of a host's names.
func (h *Host) name(j int) string {
	if j == 0 {
		return h.Name
	}
	return h.Aliases[j-1]
}

// leads reports whether the j-th name of host i is one that a record lists: only names that lead there, and each once,
// so that what a program is shown is what it would find. The canonical name is always listed.
func (e *encoder) leads(i, j int) bool {
	h := &e.set.Hosts[i]
	n := h.name(j)
	return j == 0 || e.names[n] == int32(i) && n != h.Name && !slices.Contains(h.Aliases[:j-1], n)
}

// appendHost appends the record of host i without its checksum.
func (e *encoder) appendHost(b []byte, i int) []byte {
	h := &e.set.Hosts[i]
	start := len(b)
	b = append(b, make([]byte, leaf.RecordHead)...)
	var n4, n6, names int
	for _, a := range h.Addrs {
		if a.Is4() {
			v4 := a.As4()
			b = append(b, v4[:]...)
			n4++
		}
	}
	for _, a := range h.Addrs {
		if a.Is6() {
			v6 := a.As16()
			b = append(b, v6[:]...)
			n6++
		}
	}
	for j := range 1 + len(h.Aliases) {
		if e.leads(i, j) {
			n := h.name(j)
			b = append(append(b, byte(len(n))), n...)
			names++
		}
	}
	return endRecord(b, start, names, n4, n6, leaf.RecordHost)
}

// appendGroup appends a group's record, or as many as it takes, without their checksums.
func appendGroup(b []byte, g Group) []byte {
	rest := g.Members
	for first := true; first || len(rest) > 0; first = false {
		start := len(b)
		b = append(b, make([]byte, leaf.RecordHead)...)
		b = append(append(b, byte(len(g.Name))), g.Name...)
		names := 1
		for len(rest) > 0 && len(b)-start+1+len(rest[0]) <= leaf.MaxRecord {
			b = append(append(b, byte(len(rest[0]))), rest[0]...)
			rest = rest[1:]
			names++
		}
		b = endRecord(b, start, names, 0, 0, leaf.RecordGroup)
		if len(rest) > 0 {
			b[start+17] = 1
		}
	}
	return b
}

// endRecord pads the record that begins at start and fills its head, except the checksum.
func endRecord(b []byte, start, names, n4, n6 int, kind byte) []byte {
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	r := b[start:]
	le.PutUint32(r[8:], uint32(len(r)))
	le.PutUint16(r[12:], uint16(names))
	r[14], r[15], r[16] = byte(n4), byte(n6), kind
	return b
}

// encode makes the file. It reports false where a chain of an index is too long; spread says how much roomier than
// usual the indexes are.
func (e *encoder) encode(spread float64) ([]byte, bool) {
	keys := len(e.names) + len(e.set.Groups)
	buckets := func(n int) int { return max(1, int(spread*float64(n)/slotsUsed)+1) }
	nameBuckets, addrBuckets, stride := buckets(keys), buckets(len(e.addrs)), leaf.LineSize
	if leaf.HeaderSize+(nameBuckets+addrBuckets)*leaf.LineSize+e.hostBytes+e.groupBytes > leaf.MaxRecord {
		stride = bucket
		nameBuckets = max(nameBuckets, int(spread*float64(e.copyBytes)/copyRoom))
	}
	namesAt := leaf.HeaderSize
	addrsAt := namesAt + nameBuckets*stride
	hostsAt := addrsAt + addrBuckets*leaf.LineSize
	groupsAt := hostsAt + e.hostBytes
	b := make([]byte, hostsAt, groupsAt+e.groupBytes)

	at := make([]uint32, len(e.set.Hosts)) // offset/8 of each host's record
	for i := range e.set.Hosts {
		at[i] = uint32(len(b) / 8)
		b = e.appendHost(b, i)
	}
	names, addrs := b[namesAt:addrsAt], b[addrsAt:hostsAt]
	ok := true
	for i := range e.set.Hosts {
		h := &e.set.Hosts[i]
		for j := range 1 + len(h.Aliases) {
			if n := h.name(j); e.names[n] == int32(i) && e.leads(i, j) {
				ok = ok && insert(names, stride, leaf.Hash([]byte(n), leaf.Name, e.seed), at[i])
			}
		}
	}
	for _, g := range e.set.Groups {
		ok = ok && insert(names, stride, leaf.Hash([]byte(g.Name), leaf.Group, e.seed), uint32(len(b)/8))
		b = appendGroup(b, g)
	}
	for a, i := range e.addrs {
		key := a.AsSlice()
		ok = ok && insert(addrs, leaf.LineSize, leaf.Hash(key, uintptr(len(key)), e.seed), at[i])
	}
	if !ok || crowded(names, stride) || crowded(addrs, leaf.LineSize) {
		return nil, false
	}
	for off := hostsAt; off < len(b); off += int(le.Uint32(b[off+8:])) {
		e.seal(b, off)
	}
	for off := namesAt; off < addrsAt; off += stride {
		e.addCopies(b, off, stride, groupsAt)
		e.sealLine(b, off)
	}
	for off := addrsAt; off < hostsAt; off += leaf.LineSize {
		e.sealLine(b, off)
	}
	h := b[:leaf.HeaderSize]
	le.PutUint64(h[0:], leaf.Magic)
	le.PutUint32(h[8:], leaf.Version)
	le.PutUint32(h[12:], leaf.HeaderSize)
	le.PutUint64(h[16:], uint64(len(b)))
	le.PutUint64(h[24:], uint64(e.set.Created.UnixNano()))
	le.PutUint64(h[32:], uint64(e.set.Revision))
	le.PutUint64(h[40:], e.seed)
	le.PutUint32(h[48:], uint32(nameBuckets))
	le.PutUint32(h[52:], uint32(addrBuckets))
	le.PutUint32(h[56:], uint32(len(e.set.Hosts)))
	le.PutUint32(h[60:], uint32(keys))
	le.PutUint64(h[64:], uint64(namesAt))
	le.PutUint64(h[72:], uint64(addrsAt))
	le.PutUint64(h[80:], uint64(hostsAt))
	le.PutUint64(h[88:], uint64(groupsAt))
	le.PutUint64(h[96:], uint64(len(b)))
	le.PutUint32(h[104:], uint32(len(e.set.Groups)))
	le.PutUint32(h[108:], uint32(stride))
	le.PutUint64(h[leaf.HeaderSize-8:], leaf.Sum(h[:leaf.HeaderSize-8], e.seed, 0))
	return b, true
}

// seal writes the checksum of the record at off.
func (e *encoder) seal(b []byte, off int) {
	r := b[off:][:le.Uint32(b[off+8:])]
	le.PutUint64(r, leaf.Sum(r[8:], e.seed, uint64(off)))
}

// sealLine writes the checksum of the line at off.
func (e *encoder) sealLine(b []byte, off int) {
	l := b[off:][:leaf.LineSize]
	le.PutUint64(l[leaf.LineSize-8:], leaf.Sum(l[:leaf.LineSize-8], e.seed, uint64(off)))
}

// addCopies puts copies of the hosts' records that the bucket at off leads to behind its line, as far as there is room.
func (e *encoder) addCopies(b []byte, off, stride, groupsAt int) {
	free, end := off+leaf.LineSize, off+stride
	var from, to [leaf.LineSlots]uint32 // a host may be in a bucket by several names
	n := 0
	for s := range leaf.LineSlots {
		slot := b[off+s*8+4:]
		at := le.Uint32(slot)
		if at == 0 || int(at)*8 >= groupsAt {
			continue
		}
		if i := slices.Index(from[:n], at); i >= 0 {
			le.PutUint32(slot, to[i])
			continue
		}
		r := b[int(at)*8:][:le.Uint32(b[int(at)*8+8:])]
		if len(r) > maxCopy || len(r) > end-free {
			continue
		}
		copy(b[free:], r)
		e.seal(b, free)
		from[n], to[n] = at, uint32(free/8)
		le.PutUint32(slot, to[n])
		n++
		free += len(r)
	}
}

// insert puts a slot into the first bucket with room from the hash's own on, and reports whether there is one.
func insert(index []byte, stride int, hash uint64, at uint32) bool {
	n := len(index) / stride
	first := int((hash >> 32) * uint64(n) >> 32)
	for p := range min(leaf.MaxProbe, n) {
		l := index[(first+p)%n*stride:]
		for s := range leaf.LineSlots {
			if le.Uint32(l[s*8+4:]) == 0 {
				le.PutUint32(l[s*8:], uint32(hash))
				le.PutUint32(l[s*8+4:], at)
				return true
			}
		}
	}
	return false
}

// crowded reports whether a look-up of a name that is not there might find no empty slot in the buckets it may read.
func crowded(index []byte, stride int) bool {
	n := len(index) / stride
	full := 0
	for i := range n + leaf.MaxProbe - 1 {
		if le.Uint32(index[i%n*stride+leaf.LineSize-12:]) == 0 {
			full = 0
		} else if full++; full == leaf.MaxProbe {
			return true
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
