// SPDX-License-Identifier: MIT

//go:build noetcd

package daemon

import (
	"context"
	"crypto/tls"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/resolver/store"
	"mesh.internal/mesh/vpn/identity"
)

// openStore gives no store: a small router, built with the tag noetcd, knows the nodes by gossip and follows no hosts.
func openStore(*config.Config, *identity.Identity, []string) (store.Store, func() error, error) {
	return nil, func() error { return nil }, nil
}

func askMember(_ context.Context, _ string, _ *tls.Config, v *api.Voter) {
	v.State, v.Error = "away", "this meshd was built without etcd"
}

func memberNames(context.Context, string, *tls.Config) []string { return nil }

func checkStore(*config.Config) error { return nil }

func under(store.Store, string) store.Store { return nil }
