// SPDX-License-Identifier: MIT

//go:build !unix

package lan

// share does nothing: on Windows a socket has the port for itself, and package net lets it send broadcasts.
func share(uintptr) error { return nil }
