// SPDX-License-Identifier: MIT

//go:build noetcd

package daemon

import (
	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/resolver/store"
	"mesh.internal/mesh/vpn/identity"
)

// openStore gives no store: a small router, built with the tag noetcd, knows the nodes by gossip and follows no hosts.
func openStore(*config.Config, *identity.Identity, []string) (store.Store, func() error, error) {
	return nil, func() error { return nil }, nil
}

func checkStore(*config.Config) error { return nil }

func under(store.Store, string) store.Store { return nil }
