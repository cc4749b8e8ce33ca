// SPDX-License-Identifier: MIT

package identity

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/x509"
	"net/netip"
	"strings"
	"testing"
)

func newIdentity(t testing.TB, ca *CA, name string, v4 string) *Identity {
	t.Helper()
	k, wg, err := NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	a6, err := ca.Addr6(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	c, err := ca.Issue(name, "mesh.internal", []netip.Addr{netip.MustParseAddr(v4), a6}, &k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	id, err := New(ca, []*x509.Certificate{c}, k, wg)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestRecordRoundTrip(t *testing.T) {
	ca, err := NewCA("mesh")
	if err != nil {
		t.Fatal(err)
	}
	id := newIdentity(t, ca, "bkero", "10.11.0.2")
	var eps []netip.AddrPort
	for i := range maxEndpoints {
		eps = append(eps, netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), uint16(7655+i)))
	}
	r, err := id.Record(7, Said{Endpoints: eps, Hosts: []string{"home.example.org:7655"}, Join: 7655})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("a record with %d IPv6 endpoints has %d bytes", maxEndpoints, len(r.Bytes()))
	got, err := (&CA{Cert: ca.Cert}).ParseRecord(r.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if got.Node.Name != "bkero" || got.Seq != 7 || got.Join != 7655 || len(got.Endpoints) != len(eps) || got.Endpoints[3] != eps[3] ||
		!bytes.Equal(got.WG.Bytes(), id.WG.PublicKey().Bytes()) || got.Node.Addrs[0] != netip.MustParseAddr("10.11.0.2") ||
		!ca.Prefix6().Contains(got.Node.Addrs[1]) {
		t.Fatalf("record came back as %+v", got)
	}
}

// TestRecordForged changes every byte of a record in turn: none may be accepted with another content.
func TestRecordForged(t *testing.T) {
	ca, _ := NewCA("mesh")
	other, _ := NewCA("mesh")
	id := newIdentity(t, ca, "bkero", "10.11.0.2")
	r, err := id.Record(7, Said{Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:7655")}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range r.Bytes() {
		b := bytes.Clone(r.Bytes())
		b[i] ^= 1
		if _, err := ca.ParseRecord(b); err == nil {
			t.Errorf("byte %d changed and the record was accepted", i)
		}
	}
	if _, err := other.ParseRecord(r.Bytes()); err == nil || !strings.Contains(err.Error(), "not of this mesh") {
		t.Errorf("another mesh's record: %v", err)
	}
}

func TestNewer(t *testing.T) {
	ca, _ := NewCA("mesh")
	old := newIdentity(t, ca, "bkero", "10.11.0.2")
	replaced := newIdentity(t, ca, "bkero", "10.11.0.2")
	r1, _ := old.Record(100, Said{})
	r2, _ := old.Record(101, Said{})
	r3, _ := replaced.Record(1, Said{})
	if !r2.Newer(r1) || r1.Newer(r2) || r1.Newer(r1) {
		t.Error("the higher sequence does not win")
	}
	if replaced.Node.Serial.Cmp(old.Node.Serial) > 0 && (!r3.Newer(r2) || r2.Newer(r3)) {
		t.Error("the certificate issued last does not win")
	}
}

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{"bkero": true, "a": true, "x-1": true, "web2": true, "": false, "-a": false, "a-": false,
		"Bkero": false, "a.b": false, "a_b": false, "localhost": false, "10": false, "service": false, "wpad": false,
		strings.Repeat("a", 63): true, strings.Repeat("a", 64): false, "é": false, "a\x00": false} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("CheckName(%q) = %v", name, err)
		}
	}
}

func TestKeysAndCertsAsPEM(t *testing.T) {
	ca, _ := NewCA("mesh")
	id := newIdentity(t, ca, "bkero", "10.11.0.2")
	kb, _ := EncodeKey(id.Key)
	wb, _ := EncodeKey(id.WG)
	k, err := ParseKey[*ecdsa.PrivateKey](kb)
	if err != nil || !k.Equal(id.Key) {
		t.Fatal(err)
	}
	wg, err := ParseKey[*ecdh.PrivateKey](wb)
	if err != nil || !wg.Equal(id.WG) {
		t.Fatal(err)
	}
	if _, err := ParseKey[*ecdh.PrivateKey](kb); err == nil {
		t.Error("an ECDSA key was taken for an X25519 key")
	}
	certs, err := ParseCerts(EncodeCerts(id.Chain...))
	if err != nil || len(certs) != 1 || !certs[0].Equal(id.Chain[0]) {
		t.Fatal(err)
	}
}

func FuzzParseRecord(f *testing.F) {
	ca, _ := NewCA("mesh")
	id := newIdentity(f, ca, "bkero", "10.11.0.2")
	r, _ := id.Record(7, Said{Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:7655")}, Hosts: []string{"x:1"}})
	f.Add(r.Bytes())
	f.Add([]byte{0x82, 0x40, 0x40})
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := ca.ParseRecord(b); err == nil && got.Node.Name != "bkero" {
			t.Fatalf("a record of %q was accepted", got.Node.Name)
		}
	})
}

// FuzzParseSubnet checks that what is read as a subnet is one, and is read from what it writes.
func FuzzParseSubnet(f *testing.F) {
	for _, s := range []string{"10.11.22.0/24", "10.11.22.0/24#5", "fd00:1234::/48#65535", "10.11.22.1/24", "10.0.0.0/8#65536", "fe80::%eth0/64", "::ffff:10.0.0.0/104", "#", "0.0.0.0/0#-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		sub, err := ParseSubnet(s)
		if err != nil {
			return
		}
		if err := CheckSubnet(sub.Prefix); err != nil {
			t.Errorf("%q is read: %v", s, err)
		}
		if again, err := ParseSubnet(sub.String()); err != nil || again != sub {
			t.Errorf("%q is read as %s, and that as %s: %v", s, sub, again, err)
		}
	})
}
