// SPDX-License-Identifier: MIT

package leaf

import (
	"runtime"
	"syscall"
)

// file is an open snapshot. On Linux it is a descriptor, and what follows is raw system calls: this is what the module
// runs.
type file = uintptr

//go:nosplit
func open(path ptr) (file, bool) {
	const atCWD = ^uintptr(99) // -100, AT_FDCWD
	const flags = syscall.O_RDONLY | syscall.O_CLOEXEC | syscall.O_NOFOLLOW | syscall.O_NONBLOCK | syscall.O_NOCTTY
	fd, _, e := syscall.RawSyscall6(syscall.SYS_OPENAT, atCWD, uintptr(path), flags, 0, 0, 0)
	return fd, e == 0
}

//go:nosplit
func shut(fd file) { syscall.RawSyscall6(syscall.SYS_CLOSE, fd, 0, 0, 0, 0, 0) }

// pread reads n bytes from off on into p and returns how many there were. Processors of 32 bits pass off in two words,
// of which the first must be an even one on some (syscall(2), "Architecture-specific requirements").
//
//go:nosplit
func pread(fd file, p ptr, n uintptr, off uint64) uintptr {
	a, b, c := uintptr(off), uintptr(0), uintptr(0)
	switch runtime.GOARCH {
	case "386":
		b = uintptr(off >> 32)
	case "arm", "mipsle":
		a, b, c = 0, uintptr(off), uintptr(off>>32)
	case "mips":
		a, b, c = 0, uintptr(off>>32), uintptr(off)
	}
	r, _, e := syscall.RawSyscall6(syscall.SYS_PREAD64, fd, uintptr(p), n, a, b, c)
	if e != 0 {
		return 0
	}
	return r
}
