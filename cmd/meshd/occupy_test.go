// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"io"
	"net"
	"net/netip"
)

// occupy takes a port.
func occupy(network string, at netip.AddrPort) (io.Closer, error) {
	if network[:3] == "udp" {
		return net.ListenUDP(network, net.UDPAddrFromAddrPort(at))
	}
	return net.ListenTCP(network, net.TCPAddrFromAddrPort(at))
}
