// SPDX-License-Identifier: MIT

//go:build unix

package lan

import (
	"errors"

	"golang.org/x/sys/unix"
)

// share lets several daemons of one user have the port, not SO_REUSEADDR, with which any user could take the answers; and
// it lets the socket send broadcasts.
func share(fd uintptr) error {
	return errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1))
}
