// SPDX-License-Identifier: MIT

//go:build !linux

package tcp

import "syscall"

// tune leaves a socket as it is: what waits in it is the system's business here.
func tune(_, _ string, _ syscall.RawConn) error { return nil }
