// SPDX-License-Identifier: MIT

package vpn

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hasVNetHeader reports whether the TUN device gives super-packets (IFF_VNET_HDR).
func hasVNetHeader(fd uintptr) bool {
	ifr, err := unix.NewIfreq("")
	return err == nil && unix.IoctlIfreq(int(fd), unix.TUNGETIFF, ifr) == nil && ifr.Uint16()&unix.IFF_VNET_HDR != 0
}

// readFD is for syscall.RawConn.Read.
func (r *tunReader) readFD(fd uintptr) bool {
	for {
		// The descriptor does not block, so the scheduler need not know of the call.
		n, _, errno := syscall.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&r.in[0])), uintptr(len(r.in)))
		switch errno {
		case 0:
			r.n, r.err = int(n), nil
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			r.n, r.err = 0, nil
			return !r.wait
		case unix.EBADFD: // the interface is gone
			r.err = os.ErrClosed
			return true
		default:
			r.err = os.NewSyscallError("read", errno)
			return true
		}
	}
}
