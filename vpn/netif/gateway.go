// SPDX-License-Identifier: MIT

package netif

import "net/netip"

// Gateway is a router that the machine sends what is not for its own links to.
type Gateway struct {
	Addr  netip.Addr // the router's, with a zone if it is link-local
	Local netip.Addr // the machine's, on the same link; of several IPv6 addresses a global one that stays
}
