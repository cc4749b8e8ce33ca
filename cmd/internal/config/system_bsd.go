// SPDX-License-Identifier: MIT

//go:build !linux && !windows

package config

import "runtime"

// defaultInterface is a name that the system takes: darwin has none but these.
var defaultInterface = func() string {
	if runtime.GOOS == "darwin" {
		return "utun77"
	}
	return "mesh0"
}()

func defaultPaths() Paths {
	return Paths{Config: "/usr/local/etc/mesh/mesh.toml", State: "/var/db/mesh", Run: "/var/run/mesh"}
}
