// SPDX-License-Identifier: MIT

package vpn

import "net/netip"

// AskCheck has a member send a frame to any address, if it does.
func (n *Node) AskCheck(member string, to netip.AddrPort) {
	b, _ := to.MarshalBinary()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.send(member, message{Check: &checkRequest{To: b, Number: 7}})
}

// AskEchoes sends many echoes at once.
func (n *Node) AskEchoes(member string, count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for range count {
		n.send(member, message{Echo: 7})
	}
}
