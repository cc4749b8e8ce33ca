// SPDX-License-Identifier: MIT

package identity

import (
	"crypto/ecdh"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// MaxRecord bounds an encoded record in bytes, so that it fits one datagram inside a tunnel.
const MaxRecord = 1200

// Bounds of the parts of a record.
const (
	maxEndpoints = 16
	MaxLinks     = 8
)

// Record is what a node says of itself to the others.
type Record struct {
	Node Node            // from the verified certificate, which is not kept: a parsed one has 3 kB
	Seq  uint64          // larger is newer; nodes use the time in milliseconds, never going back
	WG   *ecdh.PublicKey // X25519
	Said
	raw []byte
}

// Said is the part of a record that changes.
type Said struct {
	Endpoints []netip.AddrPort // UDP, where the node may be reached: public, then local
	Hosts     []string         // the same as "host:port" with a name in the public DNS, not of the mesh
	Links     []Link           // to some of the nodes that it reaches directly
	NoRelay   bool             // it does not carry packets between other nodes
	Subnets   []Subnet         // networks behind it, of those that its certificate allows
	Join      uint16           // TCP port on its mesh addresses where it lets invited strangers in; 0: it does not
	Fit       Fit              // to keep a part of the store
}

// Fit is what a node says of how good a home its machine would be for a part of the store.
type Fit struct {
	Can     bool          // meshd-etcd is installed
	Battery bool          // it is a laptop, or runs on a battery otherwise
	Fsync   time.Duration // that a small write takes until it is on the disk: 0.1 ms to 6.5 s; 0: not measured
	Boot    time.Time     // of the machine, to the hour; zero: not known
}

// Rounded is f as a record says it: two that a record cannot tell apart are equal.
func (f Fit) Rounded() Fit { return f.encode().decode() }

// Subnet is a network behind a node. Where several nodes have one, the least weight of those that can be reached wins.
type Subnet struct {
	Prefix netip.Prefix
	Weight uint16
}

// DefaultWeight is a subnet's where none is given (tinc.conf(5)).
const DefaultWeight = 10

// ParseSubnet reads a subnet as tinc writes it: 10.11.22.0/24 or 10.11.22.0/24#5.
func ParseSubnet(s string) (Subnet, error) {
	net, weight, found := strings.Cut(s, "#")
	p, err := netip.ParsePrefix(net)
	if err != nil {
		return Subnet{}, fmt.Errorf("%q is not a subnet like 10.11.22.0/24 or 10.11.22.0/24#5", s)
	}
	sub := Subnet{p, DefaultWeight}
	if found {
		w, err := strconv.ParseUint(weight, 10, 16)
		if err != nil {
			return Subnet{}, fmt.Errorf("the weight in %q is not a number from 0 to 65535", s)
		}
		sub.Weight = uint16(w)
	}
	return sub, CheckSubnet(p)
}

func (s Subnet) String() string { return fmt.Sprintf("%s#%d", s.Prefix, s.Weight) }

// Link is a direct way to another node.
type Link struct {
	To   [6]byte       // the beginning of the SHA-256 of that node's WireGuard key
	Cost time.Duration // round trip, more if the link loses packets: milliseconds, 1 to 65535
}

// body is a record's signed part: CBOR (RFC 8949) with small integer keys. Unknown keys are ignored, so that fields can
// be added; a field that changes the meaning of others needs a new signing domain.
type body struct {
	Chain     [][]byte `cbor:"1,keyasint"`
	Seq       uint64   `cbor:"2,keyasint"`
	WG        []byte   `cbor:"3,keyasint"`
	Endpoints [][]byte `cbor:"4,keyasint,omitempty"` // 6 or 18 bytes: address, then port, big endian
	Hosts     []string `cbor:"5,keyasint,omitempty"`
	Links     []byte   `cbor:"6,keyasint,omitempty"` // 8 bytes each: To, then milliseconds, big endian
	NoRelay   bool     `cbor:"7,keyasint,omitempty"`
	Subnets   [][]byte `cbor:"8,keyasint,omitempty"` // 7 or 19 bytes: address, length, then weight, big endian
	Join      uint16   `cbor:"9,keyasint,omitempty"`
	Fit       *fit     `cbor:"10,keyasint,omitempty"`
}

// fit is Fit's encoding.
type fit struct {
	_            struct{} `cbor:",toarray"`
	Can, Battery bool
	Fsync        uint16 // in 0.1 ms
	Boot         uint32 // in hours since 1970
}

const fsyncUnit = 100 * time.Microsecond

func (f Fit) encode() *fit {
	if f == (Fit{}) {
		return nil
	}
	e := fit{Can: f.Can, Battery: f.Battery}
	if f.Fsync > 0 {
		e.Fsync = uint16(min(max(f.Fsync/fsyncUnit, 1), math.MaxUint16))
	}
	if !f.Boot.IsZero() {
		e.Boot = uint32(max(f.Boot.Unix()/3600, 0))
	}
	return &e
}

func (e *fit) decode() (f Fit) {
	if e == nil {
		return f
	}
	f.Can, f.Battery, f.Fsync = e.Can, e.Battery, time.Duration(e.Fsync)*fsyncUnit
	if e.Boot > 0 {
		f.Boot = time.Unix(int64(e.Boot)*3600, 0).UTC()
	}
	return f
}

type signed struct {
	_    struct{} `cbor:",toarray"`
	Body []byte
	Sig  []byte
}

const recordDomain = "mesh node record v1\n"

var (
	encMode, _ = cbor.CoreDetEncOptions().EncMode()
	decMode, _ = cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden,
		MaxArrayElements: 64, MaxMapPairs: 64, MaxNestedLevels: 4, TagsMd: cbor.TagsForbidden}.DecMode()
)

// Record makes and signs this node's record.
func (id *Identity) Record(seq uint64, said Said) (*Record, error) {
	b := body{Seq: seq, WG: id.WG.PublicKey().Bytes(), Hosts: said.Hosts, NoRelay: said.NoRelay, Join: said.Join, Fit: said.Fit.encode()}
	for _, c := range id.Chain {
		b.Chain = append(b.Chain, c.Raw)
	}
	for _, e := range said.Endpoints {
		p, err := netip.AddrPortFrom(e.Addr().Unmap().WithZone(""), e.Port()).MarshalBinary()
		if err != nil {
			return nil, err
		}
		b.Endpoints = append(b.Endpoints, p)
	}
	for _, l := range said.Links {
		b.Links = append(b.Links, l.To[:]...)
		b.Links = binary.BigEndian.AppendUint16(b.Links, uint16(min(max(l.Cost.Milliseconds(), 1), math.MaxUint16)))
	}
	for _, s := range said.Subnets {
		p, err := s.Prefix.MarshalBinary()
		if err != nil {
			return nil, err
		}
		b.Subnets = append(b.Subnets, binary.BigEndian.AppendUint16(p, s.Weight))
	}
	raw, err := encMode.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("encoding the node record: %w", err)
	}
	sig, err := id.Sign(append([]byte(recordDomain), raw...))
	if err != nil {
		return nil, fmt.Errorf("signing the node record: %w", err)
	}
	env, err := encMode.Marshal(signed{Body: raw, Sig: sig})
	if err != nil {
		return nil, fmt.Errorf("encoding the node record: %w", err)
	}
	return id.CA.ParseRecord(env)
}

// ParseRecord decodes a record and verifies its certificate and its signature. b may come from anybody.
func (ca *CA) ParseRecord(b []byte) (*Record, error) {
	if len(b) > MaxRecord {
		return nil, fmt.Errorf("node record has %d bytes, at most %d are allowed", len(b), MaxRecord)
	}
	var s signed
	if err := decMode.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("decoding a node record: %w", err)
	}
	var d body
	if err := decMode.Unmarshal(s.Body, &d); err != nil {
		return nil, fmt.Errorf("decoding a node record: %w", err)
	}
	if len(d.Chain) == 0 || len(d.Chain) > 4 || len(d.Endpoints) > maxEndpoints || len(d.Hosts) > maxEndpoints || len(d.Subnets) > maxSubnets || len(d.Links) > MaxLinks*linkSize || len(d.Links)%linkSize != 0 {
		return nil, errors.New("node record has too many or too few parts")
	}
	r := &Record{Seq: d.Seq, Said: Said{Hosts: d.Hosts, NoRelay: d.NoRelay, Join: d.Join, Fit: d.Fit.decode()}, raw: append([]byte(nil), b...)}
	var chain []*x509.Certificate
	for _, der := range d.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("node record's certificate: %w", err)
		}
		chain = append(chain, c)
	}
	var err error
	if r.Node, err = ca.Verify(chain); err != nil {
		return nil, err
	}
	if err := r.Node.VerifySignature(append([]byte(recordDomain), s.Body...), s.Sig); err != nil {
		return nil, fmt.Errorf("node record: %w", err)
	}
	if r.WG, err = ecdh.X25519().NewPublicKey(d.WG); err != nil {
		return nil, fmt.Errorf("node record of %s: WireGuard key: %w", r.Node.Name, err)
	}
	for _, e := range d.Endpoints {
		var ap netip.AddrPort
		if err := ap.UnmarshalBinary(e); err != nil || !ap.IsValid() || ap.Port() == 0 || ap.Addr().Zone() != "" {
			return nil, fmt.Errorf("node record of %s has a malformed endpoint", r.Node.Name)
		}
		r.Endpoints = append(r.Endpoints, ap)
	}
	for l := d.Links; len(l) > 0; l = l[linkSize:] {
		r.Links = append(r.Links, Link{To: [6]byte(l), Cost: time.Duration(binary.BigEndian.Uint16(l[6:])) * time.Millisecond})
	}
	for _, b := range d.Subnets {
		var s Subnet
		if len(b) < 2 || s.Prefix.UnmarshalBinary(b[:len(b)-2]) != nil || CheckSubnet(s.Prefix) != nil {
			return nil, fmt.Errorf("node record of %s has a malformed subnet", r.Node.Name)
		}
		if s.Weight = binary.BigEndian.Uint16(b[len(b)-2:]); r.Node.Allows(s.Prefix) { // others are not its own to give
			r.Subnets = append(r.Subnets, s)
		}
	}
	return r, nil
}

// linkSize is a link's encoding in bytes.
const linkSize = 8

// Bytes is the record's encoding. The caller must not change it.
func (r *Record) Bytes() []byte { return r.raw }

// Newer reports whether r replaces o, a record of the same node name: by the certificate issued last, then by sequence.
func (r *Record) Newer(o *Record) bool {
	if c := r.Node.Serial.Cmp(o.Node.Serial); c != 0 {
		return c > 0
	}
	return r.Seq > o.Seq
}
