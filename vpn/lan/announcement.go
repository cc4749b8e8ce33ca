// SPDX-License-Identifier: MIT

package lan

import (
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"mesh.internal/mesh/vpn/identity"
)

// A datagram is a nonce of 24 bytes and, sealed by XChaCha20-Poly1305 with its 16 bytes,
//
//	1 version   1 answer or not   2 port   8 Unix time in ms   2 length of the record   1 length of the signature
//	record      signature, ECDSA by the record's node over domain, nonce and everything before     zeros
//
// Numbers are big endian. It always has Size bytes.
const (
	// Size is the length of a datagram in bytes: the largest record and what belongs to it, below every Ethernet's MTU.
	Size = chacha20poly1305.NonceSizeX + bodySize + chacha20poly1305.Overhead

	headSize     = 15
	maxSignature = 72
	bodySize     = headSize + identity.MaxRecord + maxSignature
	version      = 1
	domain       = "mesh LAN announcement v1\n"
)

// Two clocks that are right differ by less than maxSkew. One that shows a time before trusted has not been set, and nothing
// is concluded from it.
const maxSkew = 24 * time.Hour

var trusted = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// announcement is what a datagram says.
type announcement struct {
	answer bool
	port   uint16
	sent   time.Time
	record *identity.Record // set by verify

	raw, signed, signature []byte
}

// key returns what members seal with.
func key(ca *identity.CA) (cipher.AEAD, error) {
	k, err := hkdf.Key(sha256.New, ca.Cert.Raw, nil, domain, chacha20poly1305.KeySize)
	if err != nil {
		return nil, fmt.Errorf("deriving the key of LAN announcements: %w", err)
	}
	return chacha20poly1305.NewX(k)
}

// seal makes a datagram.
func (f *Finder) seal(answer bool) ([]byte, error) {
	record := f.cfg.Record()
	if len(record) == 0 || len(record) > identity.MaxRecord {
		return nil, fmt.Errorf("this node's record has %d bytes", len(record))
	}
	nonce := make([]byte, chacha20poly1305.NonceSizeX, Size)
	rand.Read(nonce)
	b := make([]byte, 2, bodySize)
	b[0] = version
	if answer {
		b[1] = 1
	}
	b = binary.BigEndian.AppendUint16(b, f.cfg.Port)
	b = binary.BigEndian.AppendUint64(b, uint64(time.Now().UnixMilli()))
	b = binary.BigEndian.AppendUint16(b, uint16(len(record)))
	b = append(b, 0)
	b = append(b, record...)
	signature, err := f.cfg.Identity.Sign(signedPart(nonce, b))
	if err != nil {
		return nil, err
	}
	b[headSize-1] = byte(len(signature))
	b = append(b, signature...)
	return f.aead.Seal(nonce, nonce, b[:bodySize], nil), nil // what is behind is zero
}

// signedPart is what a signature covers, its own length left out.
func signedPart(nonce, b []byte) []byte {
	s := append(append([]byte(domain), nonce...), b...)
	s[len(domain)+len(nonce)+headSize-1] = 0
	return s
}

// parse reads a datagram, which may come from anybody: what it returns is somebody's who has been a member.
func parse(aead cipher.AEAD, b []byte) (a announcement, err error) {
	if len(b) != Size {
		return a, fmt.Errorf("a LAN announcement has %d bytes, want %d", len(b), Size)
	}
	nonce := b[:aead.NonceSize()]
	body, err := aead.Open(nil, nonce, b[len(nonce):], nil)
	if err != nil {
		return a, errors.New("a LAN announcement is not of this mesh")
	}
	return a, a.decode(nonce, body)
}

func (a *announcement) decode(nonce, body []byte) error {
	if len(body) != bodySize || body[0] != version || body[1] > 1 {
		return errors.New("a LAN announcement is of another version")
	}
	record, signature := int(binary.BigEndian.Uint16(body[12:])), int(body[14])
	end := headSize + record
	if record > identity.MaxRecord || signature > maxSignature || len(bytes.Trim(body[end+signature:], "\x00")) > 0 {
		return errors.New("a LAN announcement is malformed")
	}
	a.answer, a.port = body[1] == 1, binary.BigEndian.Uint16(body[2:])
	if a.port == 0 {
		return errors.New("a LAN announcement has no port")
	}
	a.sent = time.UnixMilli(int64(binary.BigEndian.Uint64(body[4:])))
	a.raw, a.signed, a.signature = body[headSize:end], signedPart(nonce, body[:end]), body[end:end+signature]
	return nil
}

// verify checks who has sent it. It costs three verifications of ECDSA signatures.
func (a *announcement) verify(ca *identity.CA) (err error) {
	if a.record, err = ca.ParseRecord(a.raw); err != nil {
		return err
	}
	return a.record.Node.VerifySignature(a.signed, a.signature)
}

// fresh reports whether it may have been sent now, as far as clocks tell.
func (a *announcement) fresh(now time.Time) bool {
	return a.sent.Before(trusted) || now.Before(trusted) || a.sent.Sub(now).Abs() <= maxSkew
}
