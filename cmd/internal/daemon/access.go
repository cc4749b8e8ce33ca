// SPDX-License-Identifier: MIT

package daemon

import (
	"fmt"
	"strings"

	"mesh.internal/mesh/cmd/internal/config"
)

// storeAccess says what a new node needs that an invitation does not give it, or nothing: what an etcd of others wants of
// its users is not ours to hand on.
func storeAccess(c *config.Config, name string) string {
	a := c.Store.Access
	var flags []string
	if a.CA != "" {
		flags = append(flags, "--store-ca FILE")
	}
	if a.Cert != "" {
		flags = append(flags, "--store-cert FILE --store-key FILE")
	}
	if a.User != "" {
		flags = append(flags, "--store-user USER --store-password-file FILE")
	}
	if len(flags) == 0 {
		return ""
	}
	return fmt.Sprintf("names are kept in an etcd that wants to know its users: let %s in there (docs/store.md), and have it join with %s", name, strings.Join(flags, " "))
}
