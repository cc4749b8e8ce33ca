// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"runtime/pprof"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"mesh.internal/mesh/vpn"
	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/netif"
)

// Kinds of tunnels.
const (
	kindMesh  = "mesh"
	kindPlain = "wireguard-go"
)

const (
	ourMTU   = 1380 // what mesh.toml has if nobody chooses
	plainMTU = device.DefaultMTU
)

// contestant is a kind of tunnel with an MTU.
type contestant struct {
	kind string
	mtu  int
}

func (c contestant) String() string { return fmt.Sprintf("%s, MTU %d", c.kind, c.mtu) }

// contestants are our node, its rival with the same MTU, so that nothing but the engines differs, and the rival with its
// own.
func contestants() []contestant {
	return []contestant{{kindMesh, ourMTU}, {kindPlain, ourMTU}, {kindPlain, plainMTU}}
}

// end is what a tunnel process is told: all that is needed of either kind.
type end struct {
	Kind      string
	Interface string
	MTU       int
	Addr      netip.Prefix // of the interface
	Port      int
	Remote    netip.AddrPort // of the other end, on the cable
	Key       []byte         // X25519
	Profile   string         // file

	PeerKey  []byte     // wireguard-go: X25519
	PeerAddr netip.Addr // wireguard-go

	Peer   string // mesh: name
	Record []byte // mesh: the peer's
	CA     []byte // mesh: PEM, as the next two
	Chain  []byte
	Sign   []byte
}

// ends makes what the two processes of a tunnel are told.
func (c contestant) ends() (ends [2]*end, err error) {
	ca, err := identity.NewCA("bench")
	if err != nil {
		return ends, err
	}
	const port = 7655
	var ids [2]*identity.Identity
	for i := range ids {
		if ids[i], err = newIdentity(ca, fmt.Sprintf("n%d", i), netip.AddrFrom4([4]byte{10, 11, 0, byte(i + 1)})); err != nil {
			return ends, err
		}
	}
	for i, id := range ids {
		peer := ids[1-i]
		e := &end{Kind: c.kind, Interface: "bench0", MTU: c.mtu, Addr: netip.PrefixFrom(id.Node.Addrs[0], 24), Port: port, Key: id.WG.Bytes(),
			Remote:  netip.AddrPortFrom(cableAddr(1-i), port),
			PeerKey: peer.WG.PublicKey().Bytes(), PeerAddr: peer.Node.Addrs[0],
			Peer: peer.Node.Name, CA: identity.EncodeCerts(ca.Cert), Chain: identity.EncodeCerts(id.Chain...)}
		if e.Sign, err = identity.EncodeKey(id.Key); err != nil {
			return ends, err
		}
		rec, err := peer.Record(1, identity.Said{Endpoints: []netip.AddrPort{e.Remote}})
		if err != nil {
			return ends, err
		}
		e.Record = rec.Bytes()
		ends[i] = e
	}
	return ends, nil
}

func newIdentity(ca *identity.CA, name string, addr netip.Addr) (*identity.Identity, error) {
	key, wg, err := identity.NewKeys()
	if err != nil {
		return nil, err
	}
	addr6, err := ca.Addr6(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	cert, err := ca.Issue(name, "mesh.internal", []netip.Addr{addr, addr6}, &key.PublicKey)
	if err != nil {
		return nil, err
	}
	return identity.New(ca, []*x509.Certificate{cert}, key, wg)
}

// playTunnel is a tunnel process: one end, until its standard input ends.
func playTunnel(in io.Reader, out io.Writer) (err error) {
	dec := json.NewDecoder(in)
	var e end
	if err := dec.Decode(&e); err != nil {
		return fmt.Errorf("reading what to be: %w", err)
	}
	if e.Profile != "" {
		f, err := os.Create(e.Profile)
		if err != nil {
			return fmt.Errorf("making the profile: %w", err)
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	key, err := ecdh.X25519().NewPrivateKey(e.Key)
	if err != nil {
		return err
	}
	var stop func() error
	if e.Kind == kindMesh {
		stop, err = e.mesh(key, log)
	} else {
		stop, err = e.plain(key)
	}
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "true")
	io.Copy(io.Discard, io.MultiReader(dec.Buffered(), in))
	return stop()
}

// mesh starts a node of ours.
func (e *end) mesh(key *ecdh.PrivateKey, log *slog.Logger) (stop func() error, err error) {
	roots, err := identity.ParseCerts(e.CA)
	if err != nil {
		return nil, err
	}
	chain, err := identity.ParseCerts(e.Chain)
	if err != nil {
		return nil, err
	}
	sign, err := identity.ParseKey[*ecdsa.PrivateKey](e.Sign)
	if err != nil {
		return nil, err
	}
	ca := &identity.CA{Cert: roots[0]}
	id, err := identity.New(ca, chain, sign, key)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "mesh-bench-*")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	n, err := vpn.New(vpn.Config{Identity: id, Prefixes: []netip.Prefix{e.Addr.Masked(), ca.Prefix6()}, Port: e.Port,
		Connect: []string{e.Peer}, Interface: e.Interface, MTU: e.MTU, StateDir: dir, Log: log})
	if err != nil {
		return nil, err
	}
	if err := n.Learn(e.Record); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	select {
	case <-n.Ready():
	case err := <-ended:
		cancel()
		return nil, errors.Join(err, errors.New("the node ended at once"))
	}
	return func() error { cancel(); return errors.Join(<-ended, os.RemoveAll(dir)) }, nil
}

// plain starts wireguard-go as its own program does.
func (e *end) plain(key *ecdh.PrivateKey) (stop func() error, err error) {
	tun, err := netif.Create(e.Interface, e.MTU, []netip.Prefix{e.Addr})
	if err != nil {
		return nil, err
	}
	dev := device.NewDevice(tun, conn.NewStdNetBind(), device.NewLogger(device.LogLevelError, "wireguard-go: "))
	err = dev.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=%d\npublic_key=%s\nendpoint=%s\nallowed_ip=%s\n", hex.EncodeToString(key.Bytes()),
		e.Port, hex.EncodeToString(e.PeerKey), e.Remote, netip.PrefixFrom(e.PeerAddr, e.PeerAddr.BitLen())))
	if err == nil {
		err = dev.Up()
	}
	if err != nil {
		dev.Close()
		return nil, fmt.Errorf("starting wireguard-go: %w", err)
	}
	return func() error { dev.Close(); return nil }, nil
}
