// SPDX-License-Identifier: MIT

package nss

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"slices"

	"mesh.internal/mesh/nss/leaf"
)

// Encode makes a snapshot. Of several hosts with one name the first has it; an address leads back to the first host
// that has it. It fails where a host or a group does not fit the format. It needs about 400 bytes for each name.
func Encode(s Set) ([]byte, error) { return encode(s, nil) }

// encode is Encode, in buf if that is large enough.
func encode(s Set, buf []byte) ([]byte, error) {
	e := encoder{set: s, buf: buf}
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

// The shape of an index.
const (
	slotsUsed = 3   // of a bucket's seven, on average
	bucket    = 384 // bytes, in a file too large for one read: a line and room for some four copies
	copyRoom  = (bucket - leaf.LineSize) * 3 / 4
	maxCopy   = 224 // bytes of a record worth a copy beside its slots
)

// encoder makes one snapshot.
type encoder struct {
	set  Set
	recs [][]byte // of hosts, with all their names
	buf  []byte   // to be used again

	keys, addrs                      int // upper bounds, for several hosts may want one
	hostBytes, groupBytes, copyBytes int
	seed                             uint64
}

// Prepare does once what Encode does with a host each time: whoever makes one snapshot after the other does most of the work
// of a host that has not changed only once. Name, Aliases and Addrs must not be changed from then on. It fails where a host does not fit the format.
func (h *Host) Prepare() (err error) {
	h.rec, err = h.record(nil)
	return err
}

// gather finds out how much room the records take.
func (e *encoder) gather() error {
	e.recs = make([][]byte, len(e.set.Hosts))
	for i := range e.set.Hosts {
		h := &e.set.Hosts[i]
		r := h.rec
		if r == nil {
			var err error
			if r, err = h.record(nil); err != nil {
				return err
			}
		}
		e.recs[i] = r
		names := int(le.Uint16(r[12:]))
		e.keys += names
		e.addrs += len(h.Addrs)
		e.hostBytes += len(r)
		if len(r) <= maxCopy {
			e.copyBytes += len(r) * names
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
	e.keys += len(e.set.Groups)
	return nil
}

// record is a host's record without its checksum. dropped are aliases, by their places, that lead to another host.
func (h *Host) record(dropped []int) ([]byte, error) {
	b := make([]byte, leaf.RecordHead, 128)
	var n4, n6 int
	for _, a := range h.Addrs {
		if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
			return nil, fmt.Errorf("host %s: address %q cannot be in a snapshot", h.Name, a)
		}
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
	names := 0
	for j := range 1 + len(h.Aliases) {
		n := h.name(j)
		if err := checkName(n); err != nil {
			return nil, err
		}
		if j > 0 && (n == h.Name || slices.Contains(h.Aliases[:j-1], n) || slices.Contains(dropped, j)) {
			continue
		}
		b = append(append(b, byte(len(n))), n...)
		names++
	}
	b = endRecord(b, 0, names, n4, n6, leaf.RecordHost)
	if len(b) > leaf.MaxRecord || n4 > MaxAddrs || n6 > MaxAddrs {
		return nil, fmt.Errorf("host %s has too many addresses (%d; at most %d of a family) or names (%d) for a record of %d bytes",
			h.Name, len(h.Addrs), MaxAddrs, names, leaf.MaxRecord)
	}
	return b, nil
}

// name is the j-th of a host's names.
func (h *Host) name(j int) string {
	if j == 0 {
		return h.Name
	}
	return h.Aliases[j-1]
}

// namesOf yields the names in a host's record.
func namesOf(r []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		at := leaf.RecordHead + 4*int(r[14]) + 16*int(r[15])
		for range le.Uint16(r[12:]) {
			n := int(r[at])
			if !yield(r[at+1 : at+1+n]) {
				return
			}
			at += 1 + n
		}
	}
}

// fill puts the keys of all hosts and groups into the indexes, each once: of several hosts with one name the first has it. The
// slots lead to 1 + the place of the host, or of the group behind all hosts. other are the aliases, by host, that another
// one has; keys is how many names there are. It reports false where a chain is too long.
func (e *encoder) fill(names, addrs []byte, stride int) (other map[int][]string, keys int, ok bool) {
	for i, r := range e.recs {
		first := true
		for n := range namesOf(r) {
			switch insert(names, stride, leaf.Hash(n, leaf.Name, e.seed), uint32(1+i), func(j int) bool {
				for m := range namesOf(e.recs[j]) {
					if bytes.Equal(m, n) {
						return true
					}
				}
				return false
			}) {
			case isFull:
				return nil, 0, false
			case isIn:
				keys++
			case wasIn:
				if !first { // the canonical name is listed at any rate
					if other == nil {
						other = map[int][]string{}
					}
					other[i] = append(other[i], string(n))
				}
			}
			first = false
		}
		h := &e.set.Hosts[i]
		for _, a := range h.Addrs {
			if slices.Contains(h.Shared, a) {
				continue
			}
			var key [16]byte
			k := key[:a.BitLen()/8]
			if a.Is4() {
				v4 := a.As4()
				copy(k, v4[:])
			} else {
				key = a.As16()
			}
			if insert(addrs, leaf.LineSize, leaf.Hash(k, uintptr(len(k)), e.seed), uint32(1+i), func(j int) bool {
				o := &e.set.Hosts[j]
				return slices.Contains(o.Addrs, a) && !slices.Contains(o.Shared, a)
			}) == isFull {
				return nil, 0, false
			}
		}
	}
	for i, g := range e.set.Groups {
		if insert(names, stride, leaf.Hash([]byte(g.Name), leaf.Group, e.seed), uint32(1+len(e.recs)+i), func(int) bool { return false }) == isFull {
			return nil, 0, false
		}
		keys++
	}
	return other, keys, !crowded(names, stride) && !crowded(addrs, leaf.LineSize)
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
	buckets := func(n int) int { return max(1, int(spread*float64(n)/slotsUsed)+1) }
	nameBuckets, addrBuckets, stride := buckets(e.keys), buckets(e.addrs), leaf.LineSize
	if leaf.HeaderSize+(nameBuckets+addrBuckets)*leaf.LineSize+e.hostBytes+e.groupBytes > leaf.MaxRecord {
		stride = bucket
		nameBuckets = max(nameBuckets, int(spread*float64(e.copyBytes)/copyRoom))
	}
	namesAt := leaf.HeaderSize
	addrsAt := namesAt + nameBuckets*stride
	hostsAt := addrsAt + addrBuckets*leaf.LineSize
	size := hostsAt + e.hostBytes + e.groupBytes
	if cap(e.buf) < size {
		e.buf = make([]byte, 0, size+size/8)
	}
	b := e.buf[:hostsAt]
	clear(b)
	other, keys, ok := e.fill(b[namesAt:addrsAt], b[addrsAt:hostsAt], stride)
	if !ok {
		return nil, false
	}

	at := make([]uint32, 1, 1+len(e.recs)+len(e.set.Groups)) // offset/8 of each record, by what slots have
	for i, r := range e.recs {
		at = append(at, uint32(len(b)/8))
		if other[i] != nil {
			h := &e.set.Hosts[i]
			var dropped []int
			for j, n := range h.Aliases {
				if slices.Contains(other[i], n) {
					dropped = append(dropped, 1+j)
				}
			}
			r, _ = h.record(dropped) // a part of what was a record already
		}
		b = append(b, r...)
	}
	groupsAt := len(b)
	for _, g := range e.set.Groups {
		at = append(at, uint32(len(b)/8))
		b = appendGroup(b, g)
	}
	lead := func(off, end, stride int) {
		for ; off < end; off += stride {
			for s := range leaf.LineSlots {
				slot := b[off+s*8+4:]
				le.PutUint32(slot, at[le.Uint32(slot)])
			}
		}
	}
	lead(namesAt, addrsAt, stride)
	lead(addrsAt, hostsAt, leaf.LineSize)
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

// What insert has done.
const (
	isFull = iota // nothing: there is no room
	isIn
	wasIn
)

// insert puts a slot that leads to the 1+n-th record into the first bucket with room from the hash's own on, unless there is
// one with the same key already: has reports whether the n-th record has it.
func insert(index []byte, stride int, hash uint64, to uint32, has func(n int) bool) int {
	n := len(index) / stride
	first := int((hash >> 32) * uint64(n) >> 32)
	for p := range min(leaf.MaxProbe, n) {
		l := index[(first+p)%n*stride:][:leaf.LineSize]
		for s := range leaf.LineSlots {
			switch there := le.Uint32(l[s*8+4:]); {
			case there == 0:
				le.PutUint32(l[s*8:], uint32(hash))
				le.PutUint32(l[s*8+4:], to)
				return isIn
			case le.Uint32(l[s*8:]) == uint32(hash) && has(int(there)-1):
				return wasIn
			}
		}
	}
	return isFull
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
