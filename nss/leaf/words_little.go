// SPDX-License-Identifier: MIT

//go:build !mips && !mips64 && !ppc64 && !s390x

package leaf

import "unsafe"

//go:nosplit
func u16(p ptr, o uintptr) uintptr { return uintptr(*(*uint16)(unsafe.Add(p, o))) }

//go:nosplit
func u32(p ptr, o uintptr) uint32 { return *(*uint32)(unsafe.Add(p, o)) }

//go:nosplit
func u64(p ptr, o uintptr) uint64 { return *(*uint64)(unsafe.Add(p, o)) }
