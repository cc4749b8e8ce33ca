// SPDX-License-Identifier: MIT

// Package join brings a new node onto a mesh: the invitation that a member gives away, and the conversation in which a
// stranger turns it into a certificate.
//
// A Token is one line of text. It pins the mesh's root and the inviter's key and carries a secret of 128 bits, so the
// stranger speaks to nobody else and the inviter lets in nobody else. The conversation runs over TLS 1.3 on TCP, at the
// port number that the tunnels use on UDP; frames are two bytes of length (big endian) and that many bytes of CBOR:
//
//	stranger                                   inviter
//	   │ TLS: inviter shows its chain with the root; stranger checks both pins before it sends anything
//	   │ hello {secret, certificate request} ────▶ the book: known? not expired? not used by another key?
//	   │ ◀──── welcome {chain, root, mesh, records} or {error}
//	   │ finish {signed node record} ────────────▶ the record is learnt, so that tunnels to the new node work
//	   │ ◀──── done {} or {error}
//
// An inviter that cannot be reached, as behind NAT, is reached through a member that can: the token names up to three.
// The stranger opens TLS to such a member, which must show a certificate of the pinned root, and asks for the inviter by
// the hash of its key, which only who has an invitation knows. The member connects to the inviter over the mesh and
// copies bytes, blindly: in them runs the conversation above, TLS and pins and all. ALPN (RFC 7301) tells the two apart:
// "mesh-join/1", or none, and "mesh-join-via/1". See Via for what it grants to strangers.
//
// A member that may invite without the mesh's key (Grants) asks a node that has it for the token, over TLS between members
// ("mesh-invite/1", see Desk).
//
// An invitation works once: it belongs to the first key that redeems it, which may ask again if an answer was lost.
// A man in the middle sees the inviter's address and the size of the messages. The inviter's certificate is shown to
// whoever connects to its port, as by every TLS server; the secret never leaves TLS.
//
// Goroutines end before the call that has started them returns.
package join

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// Scheme begins every token.
const Scheme = "mesh://"

// maxToken bounds the text of a token.
const maxToken = 2048

// Token is an invitation as the invited person holds it.
type Token struct {
	Root      [32]byte  // SHA-256 of the root's public key: the mesh
	Inviter   [32]byte  // SHA-256 of the inviter's public key
	Secret    [16]byte  // proves the invitation
	Name      string    // the name that the new node gets
	Expires   time.Time // whole seconds
	Endpoints []string  // TCP "host:port" of the inviter
	Via       []string  // the same of other members, at most MaxVia
}

// MaxVia bounds the members that a token names, so that it stays short.
const MaxVia = 3

type tokenWire struct {
	_         struct{} `cbor:",toarray"`
	Version   uint
	Root      []byte
	Inviter   []byte
	Secret    []byte
	Name      string
	Expires   int64
	Endpoints []string // since version 2: the inviter's, an empty one, the members'
}

var (
	encMode, _ = cbor.CoreDetEncOptions().EncMode()
	decMode, _ = cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden,
		MaxArrayElements: 4096, MaxMapPairs: 64, MaxNestedLevels: 4, TagsMd: cbor.TagsForbidden}.DecMode()
)

// String is the token's one line.
func (t Token) String() string {
	w := tokenWire{Version: 1, Root: t.Root[:], Inviter: t.Inviter[:], Secret: t.Secret[:], Name: t.Name,
		Expires: t.Expires.Unix(), Endpoints: t.Endpoints}
	if len(t.Via) > 0 { // else older programs can read it
		w.Version, w.Endpoints = 2, slices.Concat(t.Endpoints, []string{""}, t.Via)
	}
	b, err := encMode.Marshal(w)
	if err != nil {
		panic(err) // only bytes, text and numbers are in it
	}
	sum := sha256.Sum256(b)
	return Scheme + base64.RawURLEncoding.EncodeToString(append(b, sum[:4]...))
}

var errToken = errors.New("this is not a whole invitation: copy the line that `mesh invite` printed again, from " + Scheme + " to its end")

// ParseToken reads what String made; blanks and line ends around it are ignored. It does not look at the clock.
func ParseToken(s string) (Token, error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(s), Scheme)
	if !ok || len(s) > maxToken {
		return Token{}, errToken
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if err != nil || strings.ContainsAny(rest, "\r\n") || len(b) < 5 {
		return Token{}, errToken
	}
	b, check := b[:len(b)-4], b[len(b)-4:]
	if sum := sha256.Sum256(b); string(sum[:4]) != string(check) {
		return Token{}, errToken
	}
	var w tokenWire
	if err := decMode.Unmarshal(b, &w); err != nil {
		return Token{}, errToken
	}
	t := Token{Name: w.Name, Expires: time.Unix(w.Expires, 0), Endpoints: w.Endpoints}
	switch i := slices.Index(w.Endpoints, ""); {
	case w.Version != 1 && w.Version != 2:
		return Token{}, fmt.Errorf("the invitation has version %d and this program knows versions 1 and 2: install the inviter's version of mesh", w.Version)
	case w.Version == 2 && i < 0:
		return Token{}, errToken
	case w.Version == 2:
		t.Endpoints, t.Via = w.Endpoints[:i:i], w.Endpoints[i+1:]
		if len(t.Via) == 0 || len(t.Via) > MaxVia {
			return Token{}, errToken
		}
	}
	all := slices.Concat(t.Endpoints, t.Via)
	if len(w.Root) != len(t.Root) || len(w.Inviter) != len(t.Inviter) || len(w.Secret) != len(t.Secret) || len(all) == 0 || len(all) > 16 {
		return Token{}, errToken
	}
	for _, e := range all {
		if _, _, err := net.SplitHostPort(e); err != nil {
			return Token{}, errToken
		}
	}
	copy(t.Root[:], w.Root)
	copy(t.Inviter[:], w.Inviter)
	copy(t.Secret[:], w.Secret)
	return t, nil
}

// NewSecret makes a token's secret.
func NewSecret() (s [16]byte) {
	rand.Read(s[:])
	return s
}

// keyHash is SHA-256 of a certificate's public key.
func keyHash(c *x509.Certificate) [32]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// frames of the conversation
type (
	hello struct {
		Secret []byte `cbor:"1,keyasint"`
		CSR    []byte `cbor:"2,keyasint"` // PKCS #10: shows that the stranger holds the key (RFC 2986)
	}
	welcome struct {
		Error   string   `cbor:"1,keyasint,omitempty"`
		Chain   [][]byte `cbor:"2,keyasint,omitempty"` // the new node's certificate first
		Root    []byte   `cbor:"3,keyasint,omitempty"`
		Mesh    Mesh     `cbor:"4,keyasint"`
		Records [][]byte `cbor:"5,keyasint,omitempty"`
		Evicted [][]byte `cbor:"6,keyasint,omitempty"` // tombstones
	}
	finish struct {
		Record []byte `cbor:"1,keyasint"`
	}
	done struct {
		Error string `cbor:"1,keyasint,omitempty"`
	}
)

// Mesh is what every node of a mesh knows of it.
type Mesh struct {
	Name    string   `cbor:"1,keyasint"`           // of the mesh
	Domain  string   `cbor:"2,keyasint"`           // zone of its names, as mesh.internal
	Prefix  string   `cbor:"3,keyasint"`           // IPv4, as 10.11.0.0/16
	Store   []string `cbor:"4,keyasint"`           // etcd endpoints, as https://10.11.0.1:2379
	Inviter string   `cbor:"5,keyasint"`           // node name of the inviter: the first neighbour
	Port    uint16   `cbor:"6,keyasint"`           // the mesh's usual UDP and TCP port
	Roster  []byte   `cbor:"7,keyasint,omitempty"` // who keeps the store, if the mesh itself does; Store is then of who does not know rosters

	StorePrefix string `cbor:"8,keyasint,omitempty"` // of its keys in the store; empty: the usual one
}

func request(key *ecdsa.PrivateKey) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
}
