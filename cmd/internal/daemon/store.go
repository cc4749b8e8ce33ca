// SPDX-License-Identifier: MIT

//go:build !noetcd

package daemon

import (
	"context"
	"crypto/tls"

	"mesh.internal/mesh/cmd/internal/api"
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

// askMember asks a member of the store how it is.
func askMember(ctx context.Context, endpoint string, t *tls.Config, v *api.Voter) {
	v.State = "away"
	a, err := etcd.Dial(endpoint, t)
	if err != nil {
		v.Error = err.Error()
		return
	}
	defer a.Close()
	h, err := a.Health(ctx)
	if err != nil {
		v.Error = err.Error()
		return
	}
	v.Version, v.Size, v.Used, v.Quota, v.Index, v.Problems = h.Version, h.Size, h.Used, h.Quota, h.Index, h.Problems
	v.Answered = ms(h.Answered)
	switch {
	case h.Learner:
		v.State = "learning"
	case h.Leader == 0:
		v.State = "alone"
		v.Error = "it sees no majority of the members"
	case h.Leader == h.ID:
		v.State = "leader"
	default:
		v.State = "follower"
	}
}

// memberNames are the members' names as the one at endpoint knows them.
func memberNames(ctx context.Context, endpoint string, t *tls.Config) (out []string) {
	a, err := etcd.Dial(endpoint, t)
	if err != nil {
		return nil
	}
	defer a.Close()
	all, err := a.Members(ctx)
	if err != nil {
		return nil
	}
	for _, m := range all {
		if m.Name != "" {
			out = append(out, m.Name)
		}
	}
	return out
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
