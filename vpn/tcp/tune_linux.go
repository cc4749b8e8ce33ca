// SPDX-License-Identifier: MIT

package tcp

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// notSent bounds what a socket holds and has not sent, in bytes.
const notSent = 64 << 10

func tune(_, _ string, c syscall.RawConn) error {
	// A kernel without it serves as well, with more delay under load.
	return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSent) })
}
