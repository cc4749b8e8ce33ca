// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"context"
	"crypto/x509"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/resolver"
	"mesh.internal/mesh/resolver/store"
	"mesh.internal/mesh/vpn/identity"
)

//go:embed testdata/ask.c
var askSource string

const (
	meshName = "mesh"
	zone     = "mesh.internal"
)

var prefix = netip.MustParsePrefix("10.0.0.0/8")

// people are the nodes: a changes, b is asked, c has published the other names. The first three run members too.
var people = []string{"a", "b", "c"}

// build makes who asks, and the module, which looks for the snapshot where b writes it.
func build(ctx context.Context, dir string) error {
	here, err := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", "mesh.internal/mesh/libnss_mesh").Output()
	if err != nil {
		return fmt.Errorf("finding the module's source: run this inside the repository: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ask.c"), []byte(askSource), 0o644); err != nil {
		return err
	}
	for _, c := range [][]string{
		{filepath.Join(strings.TrimSpace(string(here)), "build.sh"), filepath.Join(dir, "lib/libnss_mesh.so.2"), snapshot(dir)},
		{"gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-o", filepath.Join(dir, "ask"), filepath.Join(dir, "ask.c")},
	} {
		if out, err := exec.CommandContext(ctx, c[0], c[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("building: %s: %w\n%s", strings.Join(c, " "), err, out)
		}
	}
	return nil
}

// snapshot is the file that b writes and the module reads, in whichever run, in what stands for /run and is, as that is, a tmpfs.
func snapshot(dir string) string { return filepath.Join(dir, "run/hosts.db") }

// place is who somebody is and where the others are.
type place struct {
	Name      string
	Dir       string // of the run; each has a folder below
	Snapshot  string // empty: none is written
	Endpoints []string
	Members   int
	Names     int // that there are to begin with
}

func (p place) paths(name string) config.Paths {
	return config.Paths{State: filepath.Join(p.Dir, name)}
}

// address is where the i-th member listens.
func address(i int) string { return fmt.Sprintf("127.0.0.%d", 1+i) }

// issue makes a mesh of its own for a run.
func issue(p place) error {
	ca, err := identity.NewCA(meshName)
	if err != nil {
		return err
	}
	// All addresses are everybody's: members look whether a certificate is for where a connection comes from, and on
	// loopback the kernel chooses that.
	var addrs []netip.Addr
	for i := range people {
		addrs = append(addrs, netip.MustParseAddr(address(i)))
	}
	for _, name := range people {
		key, wg, err := p.paths(name).Keys()
		if err != nil {
			return err
		}
		cert, err := ca.Issue(name, zone, addrs, &key.PublicKey)
		if err != nil {
			return err
		}
		id, err := identity.New(&identity.CA{Cert: ca.Cert}, []*x509.Certificate{cert}, key, wg)
		if err == nil {
			err = p.paths(name).SaveIdentity(id)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// keys verifies what anybody of the run has signed, as meshd does.
type keys map[string]identity.Node

func (k keys) Verify(owner string, msg, sig []byte) error {
	n, ok := k[owner]
	if !ok {
		return store.ErrUnknownOwner
	}
	return n.VerifySignature(msg, sig)
}

// nodes reads who is on the mesh.
func (p place) nodes() (keys, []resolver.Node, error) {
	k := keys{}
	var out []resolver.Node
	for i, name := range people {
		n, err := p.paths(name).LoadNode()
		if err != nil {
			return nil, nil, err
		}
		k[name] = n
		out = append(out, resolver.Node{Name: name, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + i)})}, Key: n.Serial.String()})
	}
	return k, out, nil
}

// signer signs as one of them.
type signer struct{ *identity.Identity }

func (s signer) Name() string { return s.Node.Name }

// hostAt is the i-th of the hosts that there are.
func hostAt(i int) (name string, addr netip.Addr) {
	i += 1 << 16
	return fmt.Sprintf("h%06d", i), netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

// errEnded is of a process that is not there any more.
var errEnded = errors.New("it has ended, see above")
