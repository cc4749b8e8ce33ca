// SPDX-License-Identifier: MIT

//go:build !arm64

package leaf

import "syscall"

// raw is the system call nr; a result above -4096 is -errno.
//
//go:nosplit
func raw(nr, a, b, c, d uintptr) uintptr {
	r, _, e := syscall.RawSyscall6(nr, a, b, c, d, 0, 0)
	if e != 0 {
		return -uintptr(e)
	}
	return r
}
