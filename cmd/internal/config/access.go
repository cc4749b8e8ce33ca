// SPDX-License-Identifier: MIT

package config

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
)

// Access is how an etcd that is not the mesh's own is spoken to: the keys store_… of mesh.toml. Empty fields stand for what
// the mesh has itself.
type Access struct {
	CA           string `toml:"store_ca,omitempty" comment:"Of an etcd that is not the mesh's own: the file of its CA, this node's certificate and key there, or a user and the file of its password."`
	Cert         string `toml:"store_cert,omitempty"`
	Key          string `toml:"store_key,omitempty"`
	User         string `toml:"store_user,omitempty"`
	PasswordFile string `toml:"store_password_file,omitempty"`
	Prefix       string `toml:"store_prefix,omitempty" comment:"What the keys of the mesh begin with in the store: the same on every node."`
}

// checkAccess returns the key that is wrong for this store, and why. The files themselves are not looked at.
func (s Store) checkAccess(domain string) (string, error) {
	a := s.Access
	for _, f := range []struct{ key, path string }{{"store_ca", a.CA}, {"store_cert", a.Cert}, {"store_key", a.Key}, {"store_password_file", a.PasswordFile}} {
		if f.path != "" && !filepath.IsAbs(f.path) {
			return f.key, fmt.Errorf("%q is not a whole path, from the root on", f.path)
		}
	}
	scheme, open := "", ""
	for _, e := range s.Endpoints {
		u, err := url.Parse(e)
		if err != nil {
			return "store", err
		}
		if scheme != "" && u.Scheme != scheme {
			return "store", errors.New("the endpoints must all be https://, or all http://")
		}
		scheme = u.Scheme
		if h := "." + strings.TrimSuffix(strings.ToLower(u.Hostname()), "."); strings.HasSuffix(h, "."+domain) {
			return "store", fmt.Errorf("%s is a name of this mesh, which may have to be looked up in that very store: write its address", u.Hostname())
		}
		if ip, err := netip.ParseAddr(u.Hostname()); u.Scheme == "http" && !(err == nil && ip.IsLoopback()) && u.Hostname() != "localhost" {
			open = e
		}
	}
	switch {
	case a == Access{}:
		return "", nil
	case len(s.Endpoints) == 0:
		return a.first(), errors.New("it is for a store elsewhere, and store lists no endpoints")
	case (a.Cert == "") != (a.Key == ""):
		return a.first("store_cert", "store_key"), errors.New("a certificate and its key go together: set store_cert and store_key")
	case (a.User == "") != (a.PasswordFile == ""):
		return a.first("store_user", "store_password_file"), errors.New("a user and a password go together: set store_user and store_password_file")
	case strings.ContainsAny(a.User, ": \t\n"):
		return "store_user", fmt.Errorf("%q is not the name of a user of etcd", a.User)
	case scheme == "http" && a.CA+a.Cert != "":
		return a.first("store_ca", "store_cert"), errors.New("certificates are for https:// endpoints")
	case a.User != "" && open != "":
		return "store_user", fmt.Errorf("the password would cross the network for all to read: let the store have https:// instead of %s", open)
	case a.Prefix != "" && (len(a.Prefix) < 3 || len(a.Prefix) > 200 || a.Prefix[0] != '/' || a.Prefix[len(a.Prefix)-1] != '/' || strings.Contains(a.Prefix, "//") ||
		strings.ContainsFunc(a.Prefix, func(r rune) bool { return r <= ' ' || r > '~' })):
		return "store_prefix", fmt.Errorf("%q does not begin and end with a slash, like /mesh/v1/mesh/", a.Prefix)
	}
	return "", nil
}

// first is the first of these keys that is set; of all, without any.
func (a Access) first(keys ...string) string {
	for _, f := range []struct{ key, value string }{{"store_ca", a.CA}, {"store_cert", a.Cert}, {"store_key", a.Key}, {"store_user", a.User},
		{"store_password_file", a.PasswordFile}, {"store_prefix", a.Prefix}} {
		if f.value == "" {
			continue
		}
		if len(keys) == 0 {
			return f.key
		}
		for _, k := range keys {
			if k == f.key {
				return k
			}
		}
	}
	return "store"
}
