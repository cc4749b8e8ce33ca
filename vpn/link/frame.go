// SPDX-License-Identifier: MIT

package link

import (
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"

	"golang.org/x/crypto/chacha20poly1305"
)

// A probe shares the UDP port with WireGuard, whose messages begin with 1 to 4 and three zero bytes:
//
//	0   kind: 0x81 ping, 0x82 pong
//	1   three zero bytes
//	4   tag of the pair and direction, 8 bytes
//	12  nonce, 24 random bytes
//	36  sealed with XChaCha20-Poly1305 (additional data: bytes 0 to 12):
//	      transaction, 8 random bytes, the pinger's choice
//	      flags, 1 byte: 1 = the pinger's addresses have changed; 2 = the sender has no session and wants one
//	      3 zero bytes
//	      run, 4 random bytes, chosen when the sender was started: it has no session from before
//	68  end (16 bytes of the seal included)
//
// Keys and tags come from the X25519 secret of both nodes' WireGuard keys by HKDF-SHA256, another for each direction. A
// stranger, who can make no tag, gets no answer; a replayed ping gets one pong, as long as the ping itself.
const (
	kindPing = 0x81
	kindPong = 0x82

	tagSize    = 8
	headSize   = 4 + tagSize
	bodySize   = 16
	frameSize  = headSize + chacha20poly1305.NonceSizeX + bodySize + chacha20poly1305.Overhead
	flagMoved  = 1
	flagWant   = 2
	probeLabel = "mesh probe v1"
)

type tag [tagSize]byte

// probe is a frame's sealed body.
type probe struct {
	kind  byte
	txid  uint64
	moved bool
	want  bool
	run   uint32
}

// half is one direction of a pair.
type half struct {
	tag  tag
	aead cipher.AEAD
}

func newHalf(self *ecdh.PrivateKey, peer *ecdh.PublicKey, from, to *ecdh.PublicKey) (h half, err error) {
	secret, err := self.ECDH(peer)
	if err != nil {
		return h, err
	}
	info := probeLabel + string(from.Bytes()) + string(to.Bytes())
	k, err := hkdf.Key(sha256.New, secret, nil, info, chacha20poly1305.KeySize+tagSize)
	if err != nil {
		return h, err
	}
	copy(h.tag[:], k[chacha20poly1305.KeySize:])
	h.aead, err = chacha20poly1305.NewX(k[:chacha20poly1305.KeySize])
	return h, err
}

// seal makes a frame.
func (h half) seal(p probe) []byte {
	b := make([]byte, headSize+chacha20poly1305.NonceSizeX, frameSize)
	b[0] = p.kind
	copy(b[4:], h.tag[:])
	nonce := b[headSize:]
	rand.Read(nonce)
	var body [bodySize]byte
	binary.LittleEndian.PutUint64(body[:], p.txid)
	if p.moved {
		body[8] |= flagMoved
	}
	if p.want {
		body[8] |= flagWant
	}
	binary.LittleEndian.PutUint32(body[12:], p.run)
	return h.aead.Seal(b, nonce, body[:], b[:headSize])
}

// isProbe reports whether a datagram is one of ours rather than WireGuard's.
func isProbe(b []byte) bool {
	return len(b) == frameSize && (b[0] == kindPing || b[0] == kindPong) && b[1] == 0 && b[2] == 0 && b[3] == 0
}

func frameTag(b []byte) tag { return tag(b[4:headSize]) }

// open checks a frame.
func (h half) open(b []byte) (p probe, ok bool) {
	if !isProbe(b) {
		return p, false
	}
	var body [bodySize]byte
	nonce := b[headSize : headSize+chacha20poly1305.NonceSizeX]
	if _, err := h.aead.Open(body[:0], nonce, b[headSize+len(nonce):], b[:headSize]); err != nil {
		return p, false
	}
	return probe{kind: b[0], txid: binary.LittleEndian.Uint64(body[:]), moved: body[8]&flagMoved != 0, want: body[8]&flagWant != 0,
		run: binary.LittleEndian.Uint32(body[12:])}, true
}
