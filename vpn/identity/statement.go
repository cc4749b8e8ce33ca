// SPDX-License-Identifier: MIT

package identity

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
)

// Statements of the root key: tombstones and rosters. A domain of its own keeps the signature of one kind from passing for
// another's; certificates, which the key signs too, begin with DER's 0x30.

// state signs a statement of some kind.
func (ca *CA) state(kind, domain string, body any) ([]byte, error) {
	if ca.Key == nil {
		return nil, fmt.Errorf("this node may not make a %s: it does not hold the mesh's key", kind)
	}
	raw, err := encMode.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encoding a %s: %w", kind, err)
	}
	sum := sha256.Sum256(append([]byte(domain), raw...))
	sig, err := ecdsa.SignASN1(rand.Reader, ca.Key, sum[:])
	if err != nil {
		return nil, fmt.Errorf("signing a %s: %w", kind, err)
	}
	b, err := encMode.Marshal(signed{Body: raw, Sig: sig})
	if err != nil {
		return nil, fmt.Errorf("encoding a %s: %w", kind, err)
	}
	return b, nil
}

// stated verifies a statement of some kind, of at most so many bytes, and decodes what it says. b may come from anybody.
func (ca *CA) stated(kind, domain string, b []byte, most int, body any) error {
	if len(b) > most {
		return fmt.Errorf("%s has %d bytes, at most %d are allowed", kind, len(b), most)
	}
	var s signed
	if err := decMode.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("decoding a %s: %w", kind, err)
	}
	root, ok := ca.Cert.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return fmt.Errorf("the mesh's root key is a %T, want ECDSA", ca.Cert.PublicKey)
	}
	sum := sha256.Sum256(append([]byte(domain), s.Body...))
	if !ecdsa.VerifyASN1(root, sum[:], s.Sig) {
		return errors.New(kind + " is not signed by the mesh's root key")
	}
	if err := decMode.Unmarshal(s.Body, body); err != nil {
		return fmt.Errorf("decoding a %s: %w", kind, err)
	}
	return nil
}
