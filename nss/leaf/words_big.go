// SPDX-License-Identifier: MIT

//go:build mips || mips64 || ppc64 || s390x

package leaf

import (
	"math/bits"
	"unsafe"
)

// The file is little endian, and these processors are not.

func u16(p ptr, o uintptr) uintptr {
	return uintptr(bits.ReverseBytes16(*(*uint16)(unsafe.Add(p, o))))
}

func u32(p ptr, o uintptr) uint32 { return bits.ReverseBytes32(*(*uint32)(unsafe.Add(p, o))) }

func u64(p ptr, o uintptr) uint64 { return bits.ReverseBytes64(*(*uint64)(unsafe.Add(p, o))) }
