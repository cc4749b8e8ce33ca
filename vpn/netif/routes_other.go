// SPDX-License-Identifier: MIT

//go:build !linux

package netif

import (
	"errors"
	"net/netip"
)

// SetRoutes makes the routes through an interface. It cannot on this system yet.
func SetRoutes(name string, was, want []netip.Prefix) error {
	if len(want) == 0 {
		return nil
	}
	return errors.New("routes to subnets behind nodes are not set on this system: add them by hand, through " + name)
}
