// SPDX-License-Identifier: MIT

package identity

import (
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"
	"unicode"
)

// Bounds of tombstones in bytes.
const (
	MaxTombstone = 600 // encoded
	MaxReason    = 200
)

// Tombstone says that a node was evicted: every certificate of its name with this serial number or a smaller one is
// void, for good. The mesh's root key signs it and nobody else's, so whoever may invite may evict. Anyone may carry it.
type Tombstone struct {
	Name   string
	Serial *big.Int  // of the certificate that was known when the node was evicted
	At     time.Time // by the clock of the node that evicted; in milliseconds
	By     string    // that node's name
	Reason string    // printable, may be empty
	raw    []byte
}

// eviction is a tombstone's signed part, of the same form as a record's.
type eviction struct {
	Name   string `cbor:"1,keyasint"`
	Serial []byte `cbor:"2,keyasint"` // big endian
	At     int64  `cbor:"3,keyasint"` // Unix time in milliseconds
	By     string `cbor:"4,keyasint"`
	Reason string `cbor:"5,keyasint,omitempty"`
}

const evictionDomain = "mesh eviction v1\n"

// Evict makes the tombstone of a node.
func (ca *CA) Evict(n Node, by, reason string, at time.Time) (*Tombstone, error) {
	b, err := ca.state("tombstone", evictionDomain, eviction{Name: n.Name, Serial: n.Serial.Bytes(), At: at.UnixMilli(), By: by, Reason: reason})
	if err != nil {
		return nil, err
	}
	return ca.ParseTombstone(b)
}

// ParseTombstone decodes a tombstone and verifies its signature. b may come from anybody.
func (ca *CA) ParseTombstone(b []byte) (*Tombstone, error) {
	var e eviction
	if err := ca.stated("tombstone", evictionDomain, b, MaxTombstone, &e); err != nil {
		return nil, err
	}
	if err := errors.Join(CheckName(e.Name), CheckName(e.By)); err != nil {
		return nil, fmt.Errorf("tombstone: %w", err)
	}
	if len(e.Serial) == 0 || len(e.Serial) > 20 { // RFC 5280 section 4.1.2.2
		return nil, fmt.Errorf("tombstone of %s has a serial number of %d bytes, want 1 to 20", e.Name, len(e.Serial))
	}
	if len(e.Reason) > MaxReason || strings.ContainsFunc(e.Reason, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return nil, fmt.Errorf("the reason must be one line of printable text with at most %d bytes", MaxReason)
	}
	return &Tombstone{Name: e.Name, Serial: new(big.Int).SetBytes(e.Serial), At: time.UnixMilli(e.At), By: e.By, Reason: e.Reason,
		raw: append([]byte(nil), b...)}, nil
}

// Bytes is the tombstone's encoding. The caller must not change it.
func (t *Tombstone) Bytes() []byte { return t.raw }

// Voids reports whether t makes what a certificate says of n void. A nil tombstone voids nothing.
func (t *Tombstone) Voids(n Node) bool {
	return t != nil && t.Name == n.Name && n.Serial.Cmp(t.Serial) <= 0
}

// String says it in words.
func (t *Tombstone) String() string {
	s := fmt.Sprintf("%s was evicted by %s on %s", t.Name, t.By, t.At.UTC().Format("2006-01-02 15:04 UTC"))
	if t.Reason != "" {
		s += " (" + t.Reason + ")"
	}
	return s
}
