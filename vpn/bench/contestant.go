// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"golang.zx2c4.com/wireguard/device"

	"mesh.internal/mesh/vpn/identity"
)

// kind is a kind of tunnel.
type kind string

const (
	kindMesh   kind = "mesh"
	kindPlain  kind = "wireguard-go"
	kindTinc   kind = "tinc"
	kindNebula kind = "nebula"
)

const (
	ourMTU   = 1380 // what mesh.toml has if nobody chooses
	plainMTU = device.DefaultMTU
)

// contestant is a kind of tunnel with an MTU, in a setting.
type contestant struct {
	setting setting
	kind    kind
	mtu     int
}

// String is what -run matches.
func (c contestant) String() string {
	if c.mtu != ourMTU {
		return fmt.Sprintf("%s/%s-%d", c.setting, c.kind, c.mtu)
	}
	return fmt.Sprintf("%s/%s", c.setting, c.kind)
}

// title is the contestant as tables have it.
func (c contestant) title() string {
	s := fmt.Sprintf("%s, MTU %d", c.kind, c.mtu)
	switch {
	case c.setting == relayed && c.kind == kindPlain:
		s += ", hub" // it opens packets and seals them again
	case c.setting == relayed:
		s += ", relayed"
	}
	return s
}

// The ones that matter most.
var (
	ours      = contestant{direct, kindMesh, ourMTU}
	yardstick = contestant{direct, kindPlain, ourMTU} // the same MTU, so that nothing but the engines differs
)

// briefly is our node, its rival, and the rival with the MTU that it has by itself.
func briefly() []contestant { return []contestant{ours, yardstick, {direct, kindPlain, plainMTU}} }

// fully is everybody everywhere, first what is measured in rounds.
func fully() []contestant {
	return []contestant{ours, yardstick, {direct, kindPlain, plainMTU}, {direct, kindTinc, ourMTU}, {direct, kindNebula, ourMTU},
		{relayed, kindMesh, ourMTU}, {relayed, kindPlain, ourMTU}, {relayed, kindTinc, ourMTU}, {relayed, kindNebula, ourMTU},
		{cut, kindMesh, ourMTU}, {cut, kindTinc, ourMTU}, {cut, kindNebula, ourMTU}}
}

// end is what a tunnel process is told.
type end struct {
	Kind      kind
	Interface string
	MTU       int
	Addr      netip.Prefix // of the interface
	Port      int
	Profile   string // file; ours and wireguard-go
	Peers     []peer

	Key   []byte // ours and wireguard-go: X25519
	CA    []byte // ours: PEM, as the next two
	Chain []byte
	Sign  []byte

	Command []string // the others: the program
}

// peer is another node as an end knows it.
type peer struct {
	Name   string
	Remote netip.AddrPort // where it is without tunnel; zero: out of reach
	Key    []byte         // X25519
	Addrs  []netip.Prefix // of its interface and of what is behind it
	Record []byte         // ours: of those in reach
}

const (
	tunnelPort = 7655
	tunnelName = "bench0"
)

func nodeName(i int) string { return fmt.Sprintf("n%d", i) }
func nodeAddr(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 11, 0, byte(i + 1)}), 24)
}

// between is the node that stands between others, where there are three.
const between = 1

// ends makes what the processes of a tunnel are told, and their files in a folder.
func (c contestant) ends(n *network, dir string) (ends []*end, err error) {
	ca, err := identity.NewCA("bench")
	if err != nil {
		return nil, err
	}
	ids := make([]*identity.Identity, len(n.hosts))
	records := make([][]byte, len(n.hosts))
	for i, h := range n.hosts {
		if ids[i], err = newIdentity(ca, nodeName(i), nodeAddr(i).Addr()); err != nil {
			return nil, err
		}
		var said identity.Said
		for _, a := range h.addrs {
			said.Endpoints = append(said.Endpoints, netip.AddrPortFrom(a.Addr(), tunnelPort))
		}
		rec, err := ids[i].Record(1, said)
		if err != nil {
			return nil, err
		}
		records[i] = rec.Bytes()
	}
	for i, id := range ids {
		e := &end{Kind: c.kind, Interface: tunnelName, MTU: c.mtu, Addr: nodeAddr(i), Port: tunnelPort, Key: id.WG.Bytes(),
			CA: identity.EncodeCerts(ca.Cert), Chain: identity.EncodeCerts(id.Chain...)}
		if e.Sign, err = identity.EncodeKey(id.Key); err != nil {
			return nil, err
		}
		for j, other := range ids {
			if j == i {
				continue
			}
			p := peer{Name: nodeName(j), Key: other.WG.PublicKey().Bytes(), Addrs: []netip.Prefix{netip.PrefixFrom(nodeAddr(j).Addr(), 32)}}
			if a := n.reach(i, j); a.IsValid() {
				p.Remote, p.Record = netip.AddrPortFrom(a, tunnelPort), records[j]
			}
			if c.setting == relayed && j == between {
				p.Addrs = []netip.Prefix{nodeAddr(j).Masked()}
			}
			e.Peers = append(e.Peers, p)
		}
		ends = append(ends, e)
	}
	for i, e := range ends {
		d := filepath.Join(dir, nodeName(i))
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, err
		}
		switch c.kind {
		case kindTinc:
			err = e.tinc(i, d, c.setting)
		case kindNebula:
			err = e.nebula(i, d, dir)
		}
		if err != nil {
			return nil, fmt.Errorf("preparing %s: %w", c.kind, err)
		}
	}
	if c.kind == kindTinc {
		return ends, introduceTinc(dir, len(ends), n.reach)
	}
	return ends, nil
}
