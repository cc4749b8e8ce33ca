// SPDX-License-Identifier: MIT

//go:build !linux

package leaf

import (
	"os"
	"unsafe"
)

// file is an open snapshot. Systems other than Linux have no module: here the command mesh looks names up in a file.
type file = *os.File

func open(path ptr) (file, bool) {
	n := uintptr(0)
	for u8(path, n) != 0 {
		n++
	}
	f, err := os.Open(unsafe.String((*byte)(path), n))
	return f, err == nil
}

func shut(f file) { f.Close() }

// pread reads n bytes from off on into p and returns how many there were.
func pread(f file, p ptr, n uintptr, off uint64) uintptr {
	got, _ := f.ReadAt(unsafe.Slice((*byte)(p), n), int64(off))
	return uintptr(got)
}
