// SPDX-License-Identifier: MIT

package daemon

import (
	"net"

	"golang.org/x/sys/unix"
)

// isRoot reports whether the other end of a connection to the API's socket is root's (unix(7), SO_PEERCRED).
func isRoot(c net.Conn) (root bool) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return false
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return false
	}
	raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		root = err == nil && cred.Uid == 0
	})
	return root
}
