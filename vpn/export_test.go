// SPDX-License-Identifier: MIT

package vpn

import (
	"crypto/ecdh"

	"golang.zx2c4.com/wireguard/device"
)

// HasTunnel reports whether the engine has a peer with this key.
func (n *Node) HasTunnel(key *ecdh.PublicKey) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.engine.dev.LookupPeer(device.NoisePublicKey(key.Bytes())) != nil
}
