// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/x509"
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
	pid := os.Getpid()
	var stop func() error
	switch {
	case len(e.Command) > 0:
		pid, stop, err = e.program()
	case e.Kind == kindMesh:
		stop, err = e.mesh()
	default:
		stop, err = e.plain()
	}
	if err != nil {
		return err
	}
	fmt.Fprintln(out, pid)
	io.Copy(io.Discard, io.MultiReader(dec.Buffered(), in))
	return stop()
}

// mesh starts a node of ours.
func (e *end) mesh() (stop func() error, err error) {
	key, err := ecdh.X25519().NewPrivateKey(e.Key)
	if err != nil {
		return nil, err
	}
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
	cfg := vpn.Config{Identity: id, Prefixes: []netip.Prefix{e.Addr.Masked(), ca.Prefix6()}, Port: e.Port, Interface: e.Interface, MTU: e.MTU,
		StateDir: dir, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	for _, p := range e.Peers {
		if len(p.Record) > 0 {
			cfg.Connect = append(cfg.Connect, p.Name)
		}
	}
	n, err := vpn.New(cfg)
	if err != nil {
		return nil, err
	}
	for _, p := range e.Peers {
		if len(p.Record) > 0 {
			if err := n.Learn(p.Record); err != nil {
				return nil, err
			}
		}
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
func (e *end) plain() (stop func() error, err error) {
	tun, err := netif.Create(e.Interface, e.MTU, []netip.Prefix{e.Addr})
	if err != nil {
		return nil, err
	}
	dev := device.NewDevice(tun, conn.NewStdNetBind(), device.NewLogger(device.LogLevelError, "wireguard-go: "))
	conf := fmt.Sprintf("private_key=%x\nlisten_port=%d\n", e.Key, e.Port)
	for _, p := range e.Peers {
		if p.Remote.IsValid() {
			conf += fmt.Sprintf("public_key=%x\nendpoint=%s\n", p.Key, p.Remote)
			for _, a := range p.Addrs {
				conf += fmt.Sprintf("allowed_ip=%s\n", a)
			}
		}
	}
	if err = dev.IpcSet(conf); err == nil {
		err = dev.Up()
	}
	if err != nil {
		dev.Close()
		return nil, fmt.Errorf("starting wireguard-go: %w", err)
	}
	return func() error { dev.Close(); return nil }, nil
}
