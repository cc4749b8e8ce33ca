// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/pflag"

	"mesh.internal/mesh/cmd/internal/config"
)

// storeFlags are how an etcd that is not the mesh's own lets this node in.
type storeFlags config.Access

func (s *storeFlags) register(f *pflag.FlagSet) {
	f.StringVar(&s.CA, "store-ca", "", "`file` of the CA of an etcd elsewhere (default: the mesh's root)")
	f.StringVar(&s.Cert, "store-cert", "", "`file` of this node's certificate there")
	f.StringVar(&s.Key, "store-key", "", "`file` of its key")
	f.StringVar(&s.User, "store-user", "", "`name` of this node's user there")
	f.StringVar(&s.PasswordFile, "store-password-file", "", "`file` with that user's password, mode 0600")
}

// whole makes paths that do not depend on where the command was given.
func (s storeFlags) whole() (config.Access, error) {
	for _, p := range []*string{&s.CA, &s.Cert, &s.Key, &s.PasswordFile} {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return config.Access{}, fmt.Errorf("--store-…: %w", err)
		}
		*p = abs
	}
	return config.Access(s), nil
}
