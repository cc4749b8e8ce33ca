// SPDX-License-Identifier: MIT

//go:build unix

package portmap

import "golang.org/x/sys/unix"

// share lets other programs have the port too.
func share(fd uintptr) error {
	return unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
}
