// SPDX-License-Identifier: MIT

// Package leaf looks a name or an address up in the snapshot file. It is the only reader of the file's index: the
// daemon, the command line and the NSS module run this same code.
//
// In the module it runs without a Go runtime, on the threads of whatever program asked. So Find and all that it calls
// keep these rules, and a gate over the finished module enforces them (nss/gate): every function is nosplit; nothing
// allocates, panics, or stores a pointer; nothing leaves the package but raw system calls; there is no state between
// two calls, no descriptor, no lock. Bytes of the file are never trusted: every line of the index and every record
// carries a checksum that also covers where it stands, every offset is checked, the number of reads is bounded (6).
//
// The format is in docs/snapshot.md and its writer in package nss.
package leaf

import (
	"syscall"
	"unsafe"
)

// The format's constants.
const (
	Magic      = 0x656d616e6873656d // "meshname", little endian
	Version    = 1
	HeaderSize = 128
	LineSize   = 64 // of the index: 7 slots of {hash u32, offset/8 u32} and a checksum u64
	LineSlots  = 7
	MaxProbe   = 4    // lines that a look-up reads at most
	MaxRecord  = 4096 // bytes of a host's record
	RecordHead = 24   // checksum u64, size u32, names u16, IPv4 u8, IPv6 u8, reserved u64
)

// Kinds of look-up. A name's key is its bytes without a final dot, an address's its 4 or 16 bytes in network order, and
// Next's is a u64: the position in the file, 0 at the start, moved on by Find.
const (
	Name  = 0
	Next  = 1
	Addr4 = 4
	Addr6 = 16
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
	line   [LineSize]byte
	Buf    [MaxRecord]byte
}

type ptr = unsafe.Pointer

//go:nosplit
func u8(p ptr, o uintptr) uintptr { return uintptr(*(*uint8)(unsafe.Add(p, o))) }

//go:nosplit
func u16(p ptr, o uintptr) uintptr { return uintptr(*(*uint16)(unsafe.Add(p, o))) }

//go:nosplit
func u32(p ptr, o uintptr) uint32 { return *(*uint32)(unsafe.Add(p, o)) }

//go:nosplit
func u64(p ptr, o uintptr) uint64 { return *(*uint64)(unsafe.Add(p, o)) }

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

// hash is a key's place in the index: the high half chooses the line, the low half marks the slot.
//
//go:nosplit
func hash(key ptr, n, kind uintptr, seed uint64) uint64 {
	h := mix(seed, uint64(kind))
	for i := uintptr(0); i < n; i++ {
		c := u8(key, i)
		if kind == Name {
			c = lower(c)
		}
		h = (h ^ uint64(c)) * 0x100000001b3
	}
	return mix(mix(h, uint64(n)), seed)
}

const maxErrno = ^uintptr(4095) // a greater result of raw is an error

//go:nosplit
func pread(fd uintptr, p ptr, n uintptr, off uint64) uintptr {
	r := raw(syscall.SYS_PREAD64, fd, uintptr(p), n, uintptr(off))
	if r > maxErrno {
		return 0
	}
	return r
}

// Find looks key up in the file at path (both bytes; path ends in a zero byte).
//
//go:nosplit
func Find(path, key ptr, n, kind uintptr, r *Result) int32 {
	const atCWD = ^uintptr(99) // -100, AT_FDCWD
	const flags = syscall.O_RDONLY | syscall.O_CLOEXEC | syscall.O_NOFOLLOW | syscall.O_NONBLOCK | syscall.O_NOCTTY
	fd := raw(syscall.SYS_OPENAT, atCWD, uintptr(path), flags, 0)
	if fd > maxErrno {
		return Unavailable
	}
	rc := find(fd, key, n, kind, r)
	raw(syscall.SYS_CLOSE, fd, 0, 0, 0)
	return rc
}

//go:nosplit
func find(fd uintptr, key ptr, n, kind uintptr, r *Result) int32 {
	b := ptr(&r.Buf)
	got := pread(fd, b, MaxRecord, 0) // of a small mesh this is the whole file
	if got < HeaderSize || u64(b, 0) != Magic || u32(b, 8) != Version || u32(b, 12) != HeaderSize {
		return Unavailable
	}
	seed, size := u64(b, 40), u64(b, 16)
	if sum(b, HeaderSize-8, seed, 0) != u64(b, HeaderSize-8) {
		return Unavailable
	}
	rec, end := u64(b, 80), u64(b, 88)
	if rec < HeaderSize || rec&7 != 0 || end < rec || end > size {
		return Unavailable
	}
	if kind == Next {
		off := u64(key, 0)
		if off == 0 {
			off = rec
		}
		if off == end {
			return Absent
		}
		if rc := record(fd, off, rec, end, seed, got, r); rc != Found {
			return rc
		}
		*(*uint64)(key) = off + uint64(u32(unsafe.Add(b, uintptr(r.Record)), 8))
		return Found
	}
	lines, index := u32(b, 48), u64(b, 64)
	if kind != Name {
		lines, index = u32(b, 52), u64(b, 72)
	}
	if lines == 0 || lines&(lines-1) != 0 || index < HeaderSize || index&7 != 0 || index > rec || (rec-index)/LineSize < uint64(lines) {
		return Unavailable
	}
	h := hash(key, n, kind, seed)
	at := uint32(h>>32) & (lines - 1)
	for probe := 0; probe < MaxProbe; probe++ {
		off := index + uint64(at)*LineSize
		l := ptr(&r.line)
		if off+LineSize <= uint64(got) {
			l = unsafe.Add(b, uintptr(off))
		} else if pread(fd, l, LineSize, off) != LineSize {
			return Unavailable
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
			if l != ptr(&r.line) { // the record may overwrite what the first read brought, this line too
				copyLine(ptr(&r.line), l)
				l = ptr(&r.line)
			}
			if record(fd, uint64(o)*8, rec, end, seed, got, r) != Found {
				return Unavailable
			}
			p := unsafe.Add(b, uintptr(r.Record))
			if r.Record == 0 {
				got = 0 // and has
			}
			if kind == Name && hasName(p, key, n) || kind != Name && hasAddr(p, key, kind) {
				return Found
			}
		}
		at = (at + 1) & (lines - 1)
	}
	return Unavailable // the writer never makes a longer chain
}

//go:nosplit
func copyLine(dst, src ptr) {
	for i := uintptr(0); i < LineSize; i += 8 {
		*(*uint64)(unsafe.Add(dst, i)) = u64(src, i)
	}
}

// record brings the record at off into r.Buf, in place if the first read has it whole, and checks all of it.
//
//go:nosplit
func record(fd uintptr, off, rec, end, seed uint64, got uintptr, r *Result) int32 {
	if off < rec || off&7 != 0 || off >= end || end-off < RecordHead {
		return Unavailable
	}
	b := ptr(&r.Buf)
	if off+RecordHead <= uint64(got) && off+uint64(u32(b, uintptr(off)+8)) <= uint64(got) {
		r.Record = off
		b = unsafe.Add(b, uintptr(off))
		got -= uintptr(off)
	} else {
		r.Record = 0
		if got = pread(fd, b, MaxRecord, off); got < RecordHead {
			return Unavailable
		}
	}
	size := uintptr(u32(b, 8))
	if size < RecordHead || size > MaxRecord || size&7 != 0 || size > got || uint64(size) > end-off {
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
	return Found
}

//go:nosplit
func hasName(p, key ptr, n uintptr) bool {
	at := RecordHead + u8(p, 14)*4 + u8(p, 15)*16
	for names := u16(p, 12); names > 0; names-- {
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
