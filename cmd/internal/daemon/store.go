// SPDX-License-Identifier: MIT

//go:build !noetcd

package daemon

import (
	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/resolver/store"
	"mesh.internal/mesh/resolver/store/etcd"
	"mesh.internal/mesh/vpn/identity"
)

// openStore returns the store at eps, which is not asked yet, and what closes it.
func openStore(c *config.Config, id *identity.Identity, eps []string) (store.Store, func() error, error) {
	st, err := etcd.Open(etcd.Config{Endpoints: eps, Prefix: store.DefaultPrefix(c.Mesh), TLS: id.TLS()})
	if err != nil {
		return nil, nil, err
	}
	return st, st.Close, nil
}
