// SPDX-License-Identifier: MIT

package leaf

import "unsafe"

// This file is for ordinary Go programs; none of it is in the module's reach.

// Lookup is Find for Go: the record that key leads to, which r holds.
func Lookup(path string, key []byte, kind uintptr, r *Result) (rec []byte, status int32) {
	p := append([]byte(path), 0)
	if len(key) == 0 {
		return nil, Absent
	}
	status = Find(unsafe.Pointer(&p[0]), unsafe.Pointer(&key[0]), uintptr(len(key)), kind, r)
	if status != Found {
		return nil, status
	}
	rec = r.Buf[r.Record:]
	return rec[:u32(unsafe.Pointer(&rec[0]), 8)], Found
}

// Sum is the checksum of b, whose length is a multiple of 8, at offset off of a file with this seed.
func Sum(b []byte, seed, off uint64) uint64 {
	return sum(unsafe.Pointer(unsafe.SliceData(b)), uintptr(len(b)), seed, off)
}

// Hash is a key's place in the index.
func Hash(key []byte, kind uintptr, seed uint64) uint64 {
	return hash(unsafe.Pointer(unsafe.SliceData(key)), uintptr(len(key)), kind, seed)
}
