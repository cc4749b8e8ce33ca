// SPDX-License-Identifier: MIT

package leaf

// raw is the system call nr; a result above -4096 is -errno. It is in assembly because syscall.RawSyscall6 takes more
// stack than leaf functions have left on this architecture.
//
//go:noescape
func raw(nr, a, b, c, d uintptr) uintptr
