// SPDX-License-Identifier: MIT

package tcp_test

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"testing"

	"mesh.internal/mesh/vpn/identity"
)

// tlsConfig is a server's that takes anybody.
func tlsConfig(t *testing.T) *tls.Config {
	t.Helper()
	ca, err := identity.NewCA("mesh")
	if err != nil {
		t.Fatal(err)
	}
	k, wg, err := identity.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	c, err := ca.Issue("spencer", "mesh.internal", []netip.Addr{netip.MustParseAddr("10.11.0.1")}, &k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.New(ca, []*x509.Certificate{c}, k, wg)
	if err != nil {
		t.Fatal(err)
	}
	cfg := id.TLS()
	cfg.ClientAuth = tls.NoClientCert
	return cfg
}
