// SPDX-License-Identifier: MIT

// Package identity says who is who on a mesh: the mesh's certificate authority, a node's keys and certificate, and the
// signed node record that tells the others how to reach it.
//
// A mesh is an X.509 root (ECDSA P-256). A node certificate binds a node's name (first DNS SAN), its addresses (IP
// SANs) and its key. A Record is certificate chain + WireGuard public key + endpoints + sequence number, signed with
// the certificate's key: anyone may carry it, nobody can forge it, the newest wins.
//
// Certificates do not expire in practice and do not depend on the clock of the machine that checks them: a laptop comes
// back from a drawer, a router boots in 1970. A certificate's serial number holds the time it was issued, so that of
// two certificates for one name the later one is the node (see Record.Newer).
//
// The package holds no state, starts no goroutine and opens no socket; its functions are safe for concurrent use.
package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// CA is a mesh's root certificate, with its key on the nodes that may invite.
type CA struct {
	Cert *x509.Certificate
	Key  *ecdsa.PrivateKey // nil on nodes that may not invite
}

// The validity of every certificate: all of time (RFC 5280 section 4.1.2.5 names the end).
var (
	notBefore = time.Unix(0, 0).UTC()
	notAfter  = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
)

// NewCA makes the root of a new mesh.
func NewCA(mesh string) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the mesh's key: %w", err)
	}
	t := &x509.Certificate{
		SerialNumber:          serial(time.Now()),
		Subject:               pkix.Name{CommonName: mesh + " mesh root"},
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("making the mesh's root certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &CA{Cert: cert, Key: key}, nil
}

// Fingerprint identifies the mesh: SHA-256 of the root's public key. An invitation pins it.
func (ca *CA) Fingerprint() [32]byte { return sha256.Sum256(ca.Cert.RawSubjectPublicKeyInfo) }

// Prefix6 is the mesh's IPv6 prefix: a ULA /48 whose 40 random bits come from the root key (RFC 4193 section 3.2.1).
func (ca *CA) Prefix6() netip.Prefix {
	f := ca.Fingerprint()
	var a [16]byte
	a[0] = 0xfd
	copy(a[1:6], f[:5])
	return netip.PrefixFrom(netip.AddrFrom16(a), 48)
}

// Addr6 is the address of the node with this key in the mesh's IPv6 prefix.
func (ca *CA) Addr6(pub crypto.PublicKey) (netip.Addr, error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("deriving an IPv6 address: %w", err)
	}
	f := sha256.Sum256(spki)
	a := ca.Prefix6().Addr().As16()
	copy(a[8:], f[:8])
	return netip.AddrFrom16(a), nil
}

// Issue makes the certificate of the node name, with zone below which it is known, for a key that its holder has shown
// to have. addrs are all addresses the node may use, subnets the networks behind it that it may be the router of; what it
// uses of them ends up as its allowed IPs everywhere.
func (ca *CA) Issue(name, zone string, addrs []netip.Addr, pub crypto.PublicKey, subnets ...netip.Prefix) (*x509.Certificate, error) {
	if ca.Key == nil {
		return nil, errors.New("this node may not invite: it does not hold the mesh's key")
	}
	if err := CheckName(name); err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial(time.Now()),
		Subject:      pkix.Name{CommonName: name},
		DNSNames:     []string{name, name + "." + zone},
		NotBefore:    notBefore,
		NotAfter:     notAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, a := range addrs {
		t.IPAddresses = append(t.IPAddresses, net.IP(a.AsSlice()))
	}
	for _, p := range subnets {
		if err := CheckSubnet(p); err != nil {
			return nil, err
		}
		t.URIs = append(t.URIs, &url.URL{Scheme: subnetScheme, Opaque: p.String()})
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca.Cert, pub, ca.Key)
	if err != nil {
		return nil, fmt.Errorf("issuing the certificate of %s: %w", name, err)
	}
	return x509.ParseCertificate(der)
}

// serial is the time of issue in milliseconds followed by 64 random bits.
func serial(at time.Time) *big.Int {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(at.UnixMilli()))
	rand.Read(b[8:])
	return new(big.Int).SetBytes(b[:])
}

// Issued is when the node's certificate was made.
func (n Node) Issued() time.Time {
	return time.UnixMilli(new(big.Int).Rsh(n.Serial, 64).Int64())
}

// Verify checks that chain (leaf first) leads to the mesh's root, and returns what the leaf says of its node.
func (ca *CA) Verify(chain []*x509.Certificate) (Node, error) {
	if len(chain) == 0 {
		return Node{}, errors.New("no certificate")
	}
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(ca.Cert)
	for _, c := range chain[1:] {
		inter.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: inter,
		CurrentTime: notBefore.Add(time.Hour), // the clock does not matter, see the package's doc
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return Node{}, fmt.Errorf("certificate is not of this mesh: %w", err)
	}
	return nodeOf(chain[0])
}

// Node is what a certificate says of a node.
type Node struct {
	Name    string
	Addrs   []netip.Addr   // IPv4 and IPv6, the node's own
	Subnets []netip.Prefix // networks behind it that it may be the router of
	Serial  *big.Int       // larger is newer
	Key     *ecdsa.PublicKey
}

// KeyHash is the SHA-256 of the node's public key as certificates contain it (SubjectPublicKeyInfo, RFC 5280 section 4.1).
func (n Node) KeyHash() [32]byte {
	der, err := x509.MarshalPKIXPublicKey(n.Key)
	if err != nil {
		panic(err) // a P-256 key, as Verify demands
	}
	return sha256.Sum256(der)
}

// subnetScheme is that of the URI SANs that name the subnets of a certificate: mesh-subnet:10.11.22.0/24.
const subnetScheme = "mesh-subnet"

// maxSubnets bounds the subnets of a certificate and of a record.
const maxSubnets = 16

// CheckSubnet reports whether a node can be the router of p.
func CheckSubnet(p netip.Prefix) error {
	switch {
	case !p.IsValid() || p != p.Masked():
		return fmt.Errorf("%s is not a network like 10.11.22.0/24 or fd00:1234::/48", p)
	case p.Bits() < 8 || p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast():
		return fmt.Errorf("%s cannot be a subnet: it is no network behind a node", p)
	}
	return nil
}

// Allows reports whether the certificate lets the node be the router of p.
func (n Node) Allows(p netip.Prefix) bool {
	for _, s := range n.Subnets {
		if s.Bits() <= p.Bits() && s.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

func nodeOf(c *x509.Certificate) (Node, error) {
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return Node{}, errors.New("certificate's key is not ECDSA P-256")
	}
	n := Node{Name: c.Subject.CommonName, Serial: c.SerialNumber, Key: key}
	if err := CheckName(n.Name); err != nil {
		return Node{}, err
	}
	if len(c.DNSNames) == 0 || c.DNSNames[0] != n.Name {
		return Node{}, fmt.Errorf("certificate of %s has no such DNS name", n.Name)
	}
	if len(c.IPAddresses) == 0 || len(c.IPAddresses) > 16 {
		return Node{}, fmt.Errorf("certificate of %s has %d addresses, want 1 to 16", n.Name, len(c.IPAddresses))
	}
	for _, ip := range c.IPAddresses {
		a, ok := netip.AddrFromSlice(ip)
		if !ok {
			return Node{}, fmt.Errorf("certificate of %s has a malformed address", n.Name)
		}
		n.Addrs = append(n.Addrs, a.Unmap())
	}
	for _, u := range c.URIs {
		if u.Scheme != subnetScheme {
			continue
		}
		p, err := netip.ParsePrefix(u.Opaque)
		if err != nil || CheckSubnet(p) != nil || len(n.Subnets) == maxSubnets {
			return Node{}, fmt.Errorf("certificate of %s has a malformed subnet", n.Name)
		}
		n.Subnets = append(n.Subnets, p)
	}
	return n, nil
}

// reserved names mean something else in a mesh's zone or everywhere (RFC 6761).
var reserved = map[string]bool{"dns": true, "service": true, "node": true, "query": true, "addr": true, "arpa": true,
	"localhost": true, "wpad": true, "isatap": true, "local": true, "localdomain": true, "invalid": true, "test": true,
	"example": true, "onion": true, "broadcasthost": true,
	"root": true, // who may do everything in etcd, by the name in a certificate
}

// CheckName reports whether name may be a node's: one lower-case DNS label (RFC 1123 section 2.1), not a reserved one.
func CheckName(name string) error {
	bad := func(why string) error { return fmt.Errorf("node name %q %s", name, why) }
	switch {
	case name == "":
		return errors.New("node name is empty")
	case len(name) > 63:
		return bad("is longer than 63 characters")
	case name[0] == '-' || name[len(name)-1] == '-':
		return bad("begins or ends with a hyphen")
	case strings.ContainsFunc(name, notLDH):
		return bad("may hold only a-z, 0-9 and hyphens")
	case strings.Trim(name, "0123456789") == "":
		return bad("is a number, which programs take for an address")
	case reserved[name]:
		return bad("is reserved")
	}
	return nil
}

func notLDH(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-')
}

// Identity is what a node is: its keys, its certificate and its mesh.
type Identity struct {
	CA    *CA
	Chain []*x509.Certificate // leaf first
	Key   *ecdsa.PrivateKey   // signs records and names, serves TLS
	WG    *ecdh.PrivateKey    // X25519, the WireGuard key
	Node  Node                // what the leaf says

	// Evicted, if set before TLS is called, refuses members that were evicted. It must be safe for concurrent use.
	Evicted func(Node) bool
}

// NewKeys makes the two keys of a node.
func NewKeys() (*ecdsa.PrivateKey, *ecdh.PrivateKey, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making the node's key: %w", err)
	}
	wg, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making the WireGuard key: %w", err)
	}
	return k, wg, nil
}

// New puts an identity together and checks that its parts belong to each other.
func New(ca *CA, chain []*x509.Certificate, key *ecdsa.PrivateKey, wg *ecdh.PrivateKey) (*Identity, error) {
	n, err := ca.Verify(chain)
	if err != nil {
		return nil, err
	}
	if !n.Key.Equal(&key.PublicKey) {
		return nil, fmt.Errorf("the certificate of %s is for another key", n.Name)
	}
	return &Identity{CA: ca, Chain: chain, Key: key, WG: wg, Node: n}, nil
}

// Sign signs msg with the node's key (ECDSA over SHA-256, ASN.1). Callers separate domains by a prefix of msg.
func (id *Identity) Sign(msg []byte) ([]byte, error) {
	d := sha256.Sum256(msg)
	return ecdsa.SignASN1(rand.Reader, id.Key, d[:])
}

// VerifySignature checks what Sign made.
func (n Node) VerifySignature(msg, sig []byte) error {
	d := sha256.Sum256(msg)
	if !ecdsa.VerifyASN1(n.Key, d[:], sig) {
		return fmt.Errorf("signature is not of %s", n.Name)
	}
	return nil
}

// TLS is the configuration, for both sides, of connections between members: TLS 1.3, both certificates of this mesh, of
// nodes that were not evicted when the connection began. Servers that admit strangers (joining) loosen ClientAuth
// themselves.
func (id *Identity) TLS() *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(id.CA.Cert)
	cert := tls.Certificate{PrivateKey: id.Key, Leaf: id.Chain[0]}
	for _, c := range id.Chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	cfg := &tls.Config{
		Certificates: []tls.Certificate{cert},
		RootCAs:      roots,
		ClientCAs:    roots,
		ClientAuth:   tls.RequireAndVerifyClientCert,
		MinVersion:   tls.VersionTLS13,
	}
	if evicted := id.Evicted; evicted != nil {
		cfg.VerifyConnection = func(cs tls.ConnectionState) error { // unlike VerifyPeerCertificate also of resumed sessions
			if len(cs.PeerCertificates) == 0 {
				return nil
			}
			if n, err := nodeOf(cs.PeerCertificates[0]); err == nil && evicted(n) {
				return fmt.Errorf("%s was evicted from the mesh", n.Name)
			}
			return nil
		}
	}
	return cfg
}

// Fingerprint is how a key appears in logs: the first 8 hexadecimal digits of its SHA-256.
func Fingerprint(pub []byte) string {
	h := sha256.Sum256(pub)
	return hex.EncodeToString(h[:4])
}

// EncodeCerts writes certificates as PEM.
func EncodeCerts(certs ...*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return b.Bytes()
}

// ParseCerts reads PEM certificates.
func ParseCerts(b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var p *pem.Block
		if p, b = pem.Decode(b); p == nil {
			break
		}
		if p.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block is %q, want CERTIFICATE", p.Type)
		}
		c, err := x509.ParseCertificate(p.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("no certificate in PEM form found")
	}
	return out, nil
}

// EncodeKey writes a private key (ECDSA or X25519) as PKCS #8 PEM.
func EncodeKey(k crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// ParseKey reads what EncodeKey wrote; K is *ecdsa.PrivateKey or *ecdh.PrivateKey.
func ParseKey[K crypto.PrivateKey](b []byte) (K, error) {
	var zero K
	p, _ := pem.Decode(b)
	if p == nil || p.Type != "PRIVATE KEY" {
		return zero, errors.New("no private key in PEM form found")
	}
	k, err := x509.ParsePKCS8PrivateKey(p.Bytes)
	if err != nil {
		return zero, err
	}
	key, ok := k.(K)
	if !ok {
		return zero, fmt.Errorf("private key is a %T, want a %T", k, zero)
	}
	return key, nil
}
