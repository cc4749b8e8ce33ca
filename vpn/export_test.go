// SPDX-License-Identifier: MIT

package vpn

import (
	"crypto/ecdh"
	"encoding/binary"
	"reflect"
	"time"
	"unsafe"

	"golang.zx2c4.com/wireguard/device"
)

// HasTunnel reports whether the engine has a peer with this key.
func (n *Node) HasTunnel(key *ecdh.PublicKey) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.engine.dev.LookupPeer(device.NoisePublicKey(key.Bytes())) != nil
}

// SawLater makes the engine take a peer's handshakes only from a time on, as if one had come then: that is what it is left with
// of a peer whose clock was ahead.
func (n *Node) SawLater(key *ecdh.PublicKey, at time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	peer := n.engine.dev.LookupPeer(device.NoisePublicKey(key.Bytes()))
	last := reflect.ValueOf(peer).Elem().FieldByName("handshake").FieldByName("lastTimestamp")
	to := (*[12]byte)(unsafe.Pointer(last.UnsafeAddr())) // TAI64N: seconds since 1970 and 2^62, nanoseconds
	binary.BigEndian.PutUint64(to[:], 0x400000000000000a+uint64(at.Unix()))
}
