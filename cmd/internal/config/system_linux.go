// SPDX-License-Identifier: MIT

package config

const defaultInterface = "mesh0"

func defaultPaths() Paths {
	return Paths{Config: "/etc/mesh/mesh.toml", State: "/var/lib/mesh", Run: "/run/mesh"}
}
