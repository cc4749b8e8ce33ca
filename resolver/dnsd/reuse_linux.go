// SPDX-License-Identifier: MIT

package dnsd

import (
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// sockets is how many UDP sockets an address has: the kernel spreads clients among them.
func sockets() int { return min(runtime.GOMAXPROCS(0), 4) }

// reuse lets several sockets of this program have one address.
func reuse(_, _ string, c syscall.RawConn) error {
	var err error
	if err1 := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }); err1 != nil {
		return err1
	}
	return err
}
