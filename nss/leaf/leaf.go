// SPDX-License-Identifier: MIT

// Package leaf looks a name or an address up in the snapshot file. It is the only reader of the file's index: the
// daemon, the command line and the NSS module run this same code.
//
// In the module it runs without a Go runtime, on the threads of whatever program asked. So Find and all that it calls
// keep these rules, and a gate over the finished module enforces them (nss/gate): every function is nosplit; nothing
// allocates, panics, or stores a pointer; nothing leaves the package but raw system calls; there is no state between
// two calls, no descriptor, no lock. Bytes of the file are never trusted: every line of the index and every record
// carries a checksum that also covers where it stands, every offset is checked, the number of reads is bounded.
//
// The format is in docs/snapshot.md and its writer in package nss.
package leaf

import "unsafe"

// The format's constants.
const (
	Magic      = 0x656d616e6873656d // "meshname", little endian
	Version    = 2
	HeaderSize = 128
	LineSize   = 64 // of a bucket's head: 7 slots of {hash u32, offset/8 u32} and a checksum u64
	LineSlots  = 7
	MaxBucket  = 4096
	MaxProbe   = 8    // buckets that a look-up reads at most
	MaxRecord  = 4096 // bytes
	RecordHead = 24   // checksum u64, size u32, names u16, IPv4 u8, IPv6 u8, kind u8, more u8, 6 zero bytes
)

// Kinds of look-up. The key of a host's or a group's name is its bytes without a final dot, an address's its 4 or 16
// bytes in network order, and Next's is a u64: where the record begins, 0 for the first host's.
const (
	Name  = 0
	Next  = 1
	Group = 2
	Addr4 = 4
	Addr6 = 16
)

// Kinds of record.
const (
	RecordHost  = 0
	RecordGroup = 1
)

// What Find returns.
const (
	Found       = 1
	Absent      = 0
	Unavailable = -1 // no file, or not one to be believed
)

// Result is where Find works and answers. The caller owns it; it need not be cleared.
type Result struct {
	Record uint64 // Found: the record is Buf[Record:Record+size]; all that it says of itself has been checked
	Next   uint64 // Found: where in the file the record behind it begins; the last host's and the last group's has none
	Seed   uint64 // of the file: another file has another
	base   uint64 // Buf[:have] is the file from here on
	have   uint64
	line   [LineSize]byte
	Buf    [MaxRecord]byte
}

type ptr = unsafe.Pointer

//go:nosplit
func u8(p ptr, o uintptr) uintptr { return uintptr(*(*uint8)(unsafe.Add(p, o))) }

//go:nosplit
func lower(c uintptr) uintptr {
	if c-'A' <= 'Z'-'A' {
		c += 'a' - 'A'
	}
	return c
}

//go:nosplit
func mix(h, w uint64) uint64 {
	h = (h ^ w) * 0x9e3779b97f4a7c15
	return h ^ h>>32
}

// sum is the checksum of n bytes at p, a multiple of 8, that stand at offset off in a file with this seed.
//
//go:nosplit
func sum(p ptr, n uintptr, seed, off uint64) uint64 {
	h := mix(seed, off)
	for i := uintptr(0); i < n; i += 8 {
		h = mix(h, u64(p, i))
	}
	return mix(h, uint64(n))
}

// hash is a key's place in the index: the high half chooses the bucket, the low half marks the slot.
//
//go:nosplit
func hash(key ptr, n, kind uintptr, seed uint64) uint64 {
	h := mix(seed, uint64(kind))
	for i := uintptr(0); i < n; i++ {
		c := u8(key, i)
		if kind == Name || kind == Group {
			c = lower(c)
		}
		h = (h ^ uint64(c)) * 0x100000001b3
	}
	return mix(mix(h, uint64(n)), seed)
}

// Find looks key up in the file at path (both bytes; path ends in a zero byte).
//
//go:nosplit
func Find(path, key ptr, n, kind uintptr, r *Result) int32 {
	fd, ok := open(path)
	if !ok {
		return Unavailable
	}
	rc := find(fd, key, n, kind, r)
	shut(fd)
	return rc
}

//go:nosplit
func find(fd file, key ptr, n, kind uintptr, r *Result) int32 {
	b := ptr(&r.Buf)
	load(fd, 0, MaxRecord, r) // of a small mesh this is the whole file
	if r.have < HeaderSize || u64(b, 0) != Magic || u32(b, 8) != Version || u32(b, 12) != HeaderSize {
		return Unavailable
	}
	seed, size := u64(b, 40), u64(b, 16)
	if sum(b, HeaderSize-8, seed, 0) != u64(b, HeaderSize-8) {
		return Unavailable
	}
	r.Seed = seed
	hosts, groups, end := u64(b, 80), u64(b, 88), u64(b, 96)
	if hosts < HeaderSize || groups < hosts || end < groups || size < end || size > maxSize {
		return Unavailable
	}
	if kind == Next {
		off := u64(key, 0)
		if off == 0 {
			off = hosts
		}
		if off == groups || off == end {
			return Absent
		}
		if off < hosts {
			return Unavailable
		}
		return record(fd, off, end, seed, r)
	}
	lines, index, bucket := uint64(u32(b, 48)), u64(b, 64), uint64(u32(b, 108))
	if kind != Name && kind != Group {
		lines, index, bucket = uint64(u32(b, 52)), u64(b, 72), LineSize
	}
	if lines == 0 || bucket < LineSize || bucket > MaxBucket || bucket&7 != 0 || index < HeaderSize || index&7 != 0 || index > size || (size-index)/bucket < lines {
		return Unavailable
	}
	h := hash(key, n, kind, seed)
	at := (h >> 32) * lines >> 32
	for probe := 0; probe < MaxProbe; probe++ {
		off := index + at*bucket
		l := window(off, LineSize, r)
		if l == nil {
			load(fd, off, bucket, r)
			if r.have < LineSize {
				return Unavailable
			}
			l = b
		}
		if sum(l, LineSize-8, seed, off) != u64(l, LineSize-8) {
			return Unavailable
		}
		for s := uintptr(0); s < LineSlots; s++ {
			o := u32(l, s*8+4)
			if o == 0 {
				return Absent
			}
			if u32(l, s*8) != uint32(h) {
				continue
			}
			if l != ptr(&r.line) { // the record may overwrite it
				copyLine(ptr(&r.line), l)
				l = ptr(&r.line)
			}
			if record(fd, uint64(o)*8, size, seed, r) != Found {
				return Unavailable
			}
			if p := unsafe.Add(b, uintptr(r.Record)); matches(p, key, n, kind) {
				return Found
			}
		}
		if at++; at == lines {
			at = 0
		}
	}
	return Unavailable // the writer never makes a longer chain
}

const maxSize = 1 << 35 // what a slot's offset can reach

//go:nosplit
func copyLine(dst, src ptr) {
	for i := uintptr(0); i < LineSize; i += 8 {
		*(*uint64)(unsafe.Add(dst, i)) = u64(src, i)
	}
}

// load makes r.Buf the n bytes of the file from off on, or as many as there are.
//
//go:nosplit
func load(fd file, off, n uint64, r *Result) {
	r.base = off
	r.have = uint64(pread(fd, ptr(&r.Buf), uintptr(n), off))
}

// window is where r.Buf has n bytes of the file from off on, nil if it has not.
//
//go:nosplit
func window(off, n uint64, r *Result) ptr {
	if off < r.base || off-r.base > r.have || r.have-(off-r.base) < n {
		return nil
	}
	return unsafe.Add(ptr(&r.Buf), uintptr(off-r.base))
}

// record brings the record at off, which ends before end, into r.Buf unless it is there, and checks all of it.
//
//go:nosplit
func record(fd file, off, end, seed uint64, r *Result) int32 {
	const first = 512 // bytes: enough for nearly every record
	if off < HeaderSize || off&7 != 0 || off >= end || end-off < RecordHead {
		return Unavailable
	}
	b := window(off, RecordHead, r)
	if b == nil || window(off, uint64(u32(b, 8)), r) == nil {
		b = ptr(&r.Buf)
		load(fd, off, first, r)
		if r.have < RecordHead {
			return Unavailable
		}
		if whole := uint64(u32(b, 8)); whole > r.have && whole <= MaxRecord {
			load(fd, off, whole, r)
			if r.have < RecordHead {
				return Unavailable
			}
		}
	}
	size := uintptr(u32(b, 8))
	if size < RecordHead || size > MaxRecord || size&7 != 0 || uint64(size) > end-off || window(off, uint64(size), r) == nil {
		return Unavailable
	}
	if sum(unsafe.Add(b, 8), size-8, seed, off) != u64(b, 0) {
		return Unavailable
	}
	at := RecordHead + u8(b, 14)*4 + u8(b, 15)*16
	names := u16(b, 12)
	if names == 0 {
		return Unavailable
	}
	for ; names > 0; names-- {
		if at >= size || u8(b, at) == 0 || at+1+u8(b, at) > size {
			return Unavailable
		}
		at += 1 + u8(b, at)
	}
	r.Record, r.Next = off-r.base, off+uint64(size)
	return Found
}

// matches reports whether the record at p is what key is for.
//
//go:nosplit
func matches(p, key ptr, n, kind uintptr) bool {
	switch {
	case kind == Group:
		return u8(p, 16) == RecordGroup && hasName(p, key, n, 1)
	case u8(p, 16) != RecordHost:
		return false
	case kind == Name:
		return hasName(p, key, n, u16(p, 12))
	}
	return hasAddr(p, key, kind)
}

// hasName reports whether one of the first names of the record is key.
//
//go:nosplit
func hasName(p, key ptr, n, names uintptr) bool {
	at := RecordHead + u8(p, 14)*4 + u8(p, 15)*16
	for ; names > 0; names-- {
		l := u8(p, at)
		at++
		if l == n {
			i := uintptr(0)
			for i < n && lower(u8(key, i)) == u8(p, at+i) {
				i++
			}
			if i == n {
				return true
			}
		}
		at += l
	}
	return false
}

//go:nosplit
func hasAddr(p, key ptr, size uintptr) bool {
	at, count := uintptr(RecordHead), u8(p, 14)
	if size == Addr6 {
		at, count = at+count*4, u8(p, 15)
	}
	for ; count > 0; count-- {
		i := uintptr(0)
		for i < size && u8(key, i) == u8(p, at+i) {
			i++
		}
		if i == size {
			return true
		}
		at += size
	}
	return false
}
