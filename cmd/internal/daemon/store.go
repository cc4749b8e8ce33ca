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
	st, err := etcd.Open(etcd.Config{Endpoints: eps, Prefix: c.StorePrefix(), TLS: id.TLS(), User: c.Store.Access.User, Files: files(c)})
	if err != nil {
		return nil, nil, err
	}
	return st, st.Close, nil
}

func files(c *config.Config) etcd.Files {
	a := c.Store.Access
	return etcd.Files{CA: a.CA, Cert: a.Cert, Key: a.Key, Password: a.PasswordFile}
}

// checkStore reads what the store is spoken to with. A running meshd goes on without: tunnels do not need the store.
func checkStore(c *config.Config) error { return files(c).Check() }

// under is the same store with another prefix.
func under(st store.Store, prefix string) store.Store {
	if e, ok := st.(*etcd.Store); ok {
		return e.Under(prefix)
	}
	return nil
}
