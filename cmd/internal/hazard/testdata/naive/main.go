// SPDX-License-Identifier: MIT

// Command naive is an NSS module in Go as one writes it at first: the runtime starts in every process, the snapshot stays
// mapped behind a lock, and a changed file is mapped anew. It is built by the hazard suite only, which shows with it that
// each hazard bites. It looks every record over, since a test's snapshot has three hosts.
package main

/*
#cgo CFLAGS: -std=c11 -O2 -Wall -Wextra -fvisibility=hidden
#include <stdint.h>
*/
import "C"

import (
	"bytes"
	"encoding/binary"
	"os"
	"sync"
	"syscall"
	"unsafe"
)

var (
	mu     sync.RWMutex
	mapped []byte
	was    syscall.Stat_t
)

// snapshot returns the mapped file with the lock held for reading, nil if there is none.
func snapshot(path string) []byte {
	var now syscall.Stat_t
	mu.RLock()
	if mapped != nil && (syscall.Stat(path, &now) != nil || now.Ino == was.Ino && now.Mtim == was.Mtim) {
		return mapped
	}
	mu.RUnlock()
	mu.Lock()
	f, err := os.Open(path)
	if err == nil {
		if syscall.Fstat(int(f.Fd()), &now) == nil {
			if m, err := syscall.Mmap(int(f.Fd()), 0, int(now.Size), syscall.PROT_READ, syscall.MAP_SHARED); err == nil {
				if mapped != nil {
					syscall.Munmap(mapped)
				}
				mapped, was = m, now
			}
		}
		f.Close()
	}
	mu.Unlock()
	mu.RLock()
	return mapped
}

//export naiveFind
func naiveFind(path *C.char, key unsafe.Pointer, n, kind C.uint64_t, out unsafe.Pointer) C.int {
	m := snapshot(C.GoString(path))
	defer mu.RUnlock()
	if m == nil {
		return -1
	}
	k := bytes.ToLower(C.GoBytes(key, C.int(n)))
	le := binary.LittleEndian
	off, end := le.Uint64(m[80:]), le.Uint64(m[88:])
	if kind == 2 {
		off, end = end, le.Uint64(m[96:])
	}
	for off < end {
		size := uint64(le.Uint32(m[off+8:]))
		r := m[off : off+size]
		n4, n6 := int(r[14]), int(r[15])
		found := false
		switch addrs := r[24:]; kind {
		case 4:
			for i := range n4 {
				found = found || bytes.Equal(addrs[4*i:][:4], C.GoBytes(key, 4))
			}
		case 16:
			for i := range n6 {
				found = found || bytes.Equal(addrs[4*n4+16*i:][:16], C.GoBytes(key, 16))
			}
		case 2:
			found = bytes.Equal(addrs[1:1+addrs[0]], k)
		case 0:
			names := addrs[4*n4+16*n6:]
			for range le.Uint16(r[12:]) {
				found = found || bytes.Equal(names[1:1+names[0]], k)
				names = names[1+names[0]:]
			}
		}
		if found {
			copy(unsafe.Slice((*byte)(out), 4096), r)
			return 1
		}
		off += size
	}
	return 0
}

func main() {}
