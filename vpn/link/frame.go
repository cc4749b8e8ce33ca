// SPDX-License-Identifier: MIT

package link

import (
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"

	"golang.org/x/crypto/chacha20poly1305"
)

// A probe shares the UDP port with WireGuard, whose messages begin with 1 to 4 and three zero bytes:
//
//	0   kind: 0x81 ping, 0x82 pong; of a check 0x83 ask, 0x84 ask elsewhere, 0x85 told
//	1   three zero bytes
//	4   ID of the sender, 6 bytes, and two zero bytes
//	12  nonce, 24 random bytes
//	36  sealed with XChaCha20-Poly1305 (additional data: bytes 0 to 12):
//	      transaction, 8 random bytes, the pinger's choice
//	      flags, 1 byte, see below
//	      1 zero byte
//	      port and, at the end, address at which a pong's sender saw the ping come from; zero if it came by others
//	      run, 4 random bytes, chosen when the sender was started: it has no session from before
//	      grant, 8 bytes: what the receiver puts into relayed packets for the sender; zero: it does not relay
//	      address, 16 bytes
//	92  end (16 bytes of the seal included); a ping may be longer, by zero bytes before the seal, to measure the path's MTU
//
// Keys come from the X25519 secret of both nodes' WireGuard keys by HKDF-SHA256, another for each direction. A stranger
// gets no answer; a replayed ping gets one pong, no longer than the ping itself.
const (
	kindPing         = 0x81
	kindPong         = 0x82
	kindAsk          = 0x83 // see check.go
	kindAskElsewhere = 0x84
	kindTold         = 0x85

	headSize  = 12
	bodySize  = 40
	frameSize = headSize + chacha20poly1305.NonceSizeX + bodySize + chacha20poly1305.Overhead
	maxFrame  = 2048

	flagMoved = 1 // the pinger's addresses have changed
	flagWant  = 2 // the sender has no session and wants one
	flagKeep  = 4 // the receiver is a neighbour of the sender's choice

	probeLabel = "mesh probe v2"
)

// ID names a node in frames and on routes: the first bytes of the SHA-256 of its WireGuard key.
type ID [6]byte

// IDOf returns the ID of the node with this WireGuard key.
func IDOf(key *ecdh.PublicKey) (id ID) {
	h := sha256.Sum256(key.Bytes())
	copy(id[:], h[:])
	return id
}

// probe is a frame's sealed body, and how long the frame is (0: as short as can be).
type probe struct {
	kind  byte
	txid  uint64
	moved bool
	want  bool
	keep  bool
	run   uint32
	grant uint64
	seen  netip.AddrPort
	size  int
}

// half is one direction of a pair.
type half struct {
	id   ID // of the sender
	aead cipher.AEAD
}

// newHalves makes both directions of a pair, from self and to self.
func newHalves(self *ecdh.PrivateKey, peer *ecdh.PublicKey) (send, recv half, err error) {
	secret, err := self.ECDH(peer)
	if err != nil {
		return send, recv, err
	}
	one := func(from, to *ecdh.PublicKey) (h half, err error) {
		k, err := hkdf.Key(sha256.New, secret, nil, probeLabel+string(from.Bytes())+string(to.Bytes()), chacha20poly1305.KeySize)
		if err != nil {
			return h, err
		}
		h.id = IDOf(from)
		h.aead, err = chacha20poly1305.NewX(k)
		return h, err
	}
	if send, err = one(self.PublicKey(), peer); err != nil {
		return send, recv, err
	}
	recv, err = one(peer, self.PublicKey())
	return send, recv, err
}

// seal makes a frame. There is room behind it for a trailer.
func (h half) seal(p probe) []byte {
	size := min(max(p.size, frameSize), maxFrame)
	b := make([]byte, headSize+chacha20poly1305.NonceSizeX, size+maxTrailer)
	b[0] = p.kind
	copy(b[4:], h.id[:])
	nonce := b[headSize:]
	rand.Read(nonce)
	body := make([]byte, bodySize+size-frameSize)
	binary.LittleEndian.PutUint64(body, p.txid)
	for _, f := range []struct {
		on   bool
		flag byte
	}{{p.moved, flagMoved}, {p.want, flagWant}, {p.keep, flagKeep}} {
		if f.on {
			body[8] |= f.flag
		}
	}
	binary.LittleEndian.PutUint32(body[12:], p.run)
	binary.LittleEndian.PutUint64(body[16:], p.grant)
	if p.seen.IsValid() {
		a := p.seen.Addr().As16()
		copy(body[24:], a[:])
		binary.LittleEndian.PutUint16(body[10:], p.seen.Port())
	}
	return h.aead.Seal(b, nonce, body, b[:headSize])
}

// isProbe reports whether a datagram, without trailer, is one of ours rather than WireGuard's.
func isProbe(b []byte) bool {
	return len(b) >= frameSize && len(b) <= maxFrame && b[0] >= kindPing && b[0] <= kindTold && b[1] == 0 && b[2] == 0 && b[3] == 0
}

func frameID(b []byte) ID { return ID(b[4:10]) }

// open checks a frame.
func (h half) open(b []byte) (p probe, ok bool) {
	if !isProbe(b) || b[10] != 0 || b[11] != 0 {
		return p, false
	}
	nonce := b[headSize : headSize+chacha20poly1305.NonceSizeX]
	body, err := h.aead.Open(make([]byte, 0, len(b)), nonce, b[headSize+len(nonce):], b[:headSize])
	if err != nil {
		return p, false
	}
	p = probe{kind: b[0], txid: binary.LittleEndian.Uint64(body), moved: body[8]&flagMoved != 0, want: body[8]&flagWant != 0, keep: body[8]&flagKeep != 0,
		run: binary.LittleEndian.Uint32(body[12:]), grant: binary.LittleEndian.Uint64(body[16:])}
	if port := binary.LittleEndian.Uint16(body[10:]); port != 0 {
		p.seen = netip.AddrPortFrom(netip.AddrFrom16([16]byte(body[24:40])).Unmap(), port)
	}
	if len(b) > frameSize {
		p.size = len(b)
	}
	return p, true
}
