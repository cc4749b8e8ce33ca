// SPDX-License-Identifier: MIT

package store

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// MaxValue bounds a value in bytes.
const MaxValue = 16 << 10

// Value is what the store keeps under a key: one line of JSON, and one of the owner's signature in base64 (RFC 4648
// section 5). The signature covers the key, so a value cannot be moved to another.
type Value struct {
	Owner   string            `json:"owner"`             // node name; whose signature it is
	Seq     uint64            `json:"seq"`               // larger is newer; milliseconds since 1970, never going back
	Name    string            `json:"name,omitempty"`    // of a host, relative to the zone, or of a group
	Addrs   []netip.Addr      `json:"addrs,omitempty"`   // of a host or a node
	Aliases []string          `json:"aliases,omitempty"` // of a host
	Members []string          `json:"members,omitempty"` // of a group: hosts relative to the zone, and other groups as "@NAME"
	Meta    map[string]string `json:"meta,omitempty"`    // of a host: what people and programs want to know of it
	To      string            `json:"to,omitempty"`      // of a host, a kept name, and the claims of both: the node that its owner gives it to
	Record  []byte            `json:"record,omitempty"`  // of a node: its node record, which carries the certificate
	For     string            `json:"for,omitempty"`     // of an address claim: the invited node
	Expires *time.Time        `json:"expires,omitempty"` // of a claim for an invitation: afterwards anybody may take it over
	Service *Service          `json:"service,omitempty"` // of a service
	Health  map[string]Health `json:"health,omitempty"`  // of a node's services, by their names
}

// Service is what a service's value says of it beside its name and metadata.
type Service struct {
	Type     string   `json:"type"`
	Proto    string   `json:"proto"`
	Port     uint16   `json:"port"`
	Host     string   `json:"host,omitempty"` // empty: the owner
	Tags     []string `json:"tags,omitempty"`
	Priority uint16   `json:"priority,omitempty"`
	Weight   uint16   `json:"weight,omitempty"`
	TTL      int      `json:"ttl,omitempty"` // seconds
}

// Health is how a service is.
type Health struct {
	State  string    `json:"state"`
	Output string    `json:"output,omitempty"`
	Since  time.Time `json:"since"`
}

// Signer signs as one node.
type Signer interface {
	Name() string
	Sign(msg []byte) ([]byte, error)
}

// Verifier knows the members' keys. Verify's error is ErrUnknownOwner as long as owner is not known, and ErrEvicted where
// owner is no member any more.
type Verifier interface {
	Verify(owner string, msg, sig []byte) error
}

// ErrUnknownOwner means that a signature cannot be checked yet: its owner's certificate has not been seen.
var ErrUnknownOwner = errors.New("the owner is not known yet")

// ErrEvicted means that a value is nobody's: its owner was evicted.
var ErrEvicted = errors.New("the owner was evicted")

// message is what is signed.
func message(key string, line []byte) []byte {
	return fmt.Appendf(nil, "mesh store value v1\n%s\n%s", key, line)
}

// Seal signs v for key and encodes it. It sets v.Owner.
func Seal(key string, v Value, s Signer) ([]byte, error) {
	v.Owner = s.Name()
	line, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding %s: %w", key, err)
	}
	sig, err := s.Sign(message(key, line))
	if err != nil {
		return nil, fmt.Errorf("signing %s: %w", key, err)
	}
	b := append(line, '\n')
	b = append(base64.RawURLEncoding.AppendEncode(b, sig), '\n')
	if len(b) > MaxValue {
		return nil, fmt.Errorf("%s would have %d bytes in the store, at most %d are allowed", key, len(b), MaxValue)
	}
	return b, nil
}

// Open decodes the value under key and verifies it. b may come from anybody.
func Open(key string, b []byte, ver Verifier) (Value, error) {
	v, line, sig, err := parse(b)
	if err != nil {
		return Value{}, fmt.Errorf("value of %s: %w", key, err)
	}
	if err := ver.Verify(v.Owner, message(key, line), sig); err != nil {
		return v, fmt.Errorf("value of %s: %w", key, err)
	}
	return v, nil
}

// Peek decodes a value without verifying it.
func Peek(b []byte) (Value, error) {
	v, _, _, err := parse(b)
	return v, err
}

func parse(b []byte) (v Value, line, sig []byte, err error) {
	if len(b) > MaxValue {
		return v, nil, nil, fmt.Errorf("%d bytes, at most %d are allowed", len(b), MaxValue)
	}
	line, rest, ok := bytes.Cut(b, []byte{'\n'})
	if !ok {
		return v, nil, nil, errors.New("no signature")
	}
	rest, ok = bytes.CutSuffix(rest, []byte{'\n'})
	if !ok || bytes.ContainsAny(rest, "\r\n") {
		return v, nil, nil, errors.New("malformed signature")
	}
	if sig, err = base64.RawURLEncoding.Strict().AppendDecode(nil, rest); err != nil {
		return v, nil, nil, errors.New("malformed signature")
	}
	if err := json.Unmarshal(line, &v); err != nil {
		return v, nil, nil, fmt.Errorf("malformed JSON: %w", err)
	}
	for _, a := range v.Addrs {
		if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
			return v, nil, nil, fmt.Errorf("malformed address %q", a)
		}
	}
	return v, line, sig, nil
}
