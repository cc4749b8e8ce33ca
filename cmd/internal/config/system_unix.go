// SPDX-License-Identifier: MIT

//go:build !windows

package config

import "os"

// keepPrivate closes the state directory to all but its owner.
func keepPrivate(dir string) error { return os.Chmod(dir, 0o700) }
