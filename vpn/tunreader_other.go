// SPDX-License-Identifier: MIT

//go:build !linux

package vpn

import "os"

// hasVNetHeader reports whether the TUN device gives super-packets, which is Linux's alone.
func hasVNetHeader(uintptr) bool { return false }

func (r *tunReader) readFD(uintptr) bool {
	r.err = os.ErrClosed
	return true
}
