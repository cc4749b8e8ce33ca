// SPDX-License-Identifier: MIT

package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"
)

func TestTombstone(t *testing.T) {
	ca, _ := NewCA("mesh")
	old := newIdentity(t, ca, "bkero", "10.11.0.2")
	at := time.UnixMilli(1700000000000)
	tomb, err := ca.Evict(old.Node, "spencer", "laptop stolen, Żary", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("a tombstone has %d bytes", len(tomb.Bytes()))
	got, err := (&CA{Cert: ca.Cert}).ParseTombstone(tomb.Bytes())
	if err != nil || got.Name != "bkero" || got.Serial.Cmp(old.Node.Serial) != 0 || !got.At.Equal(at) || got.By != "spencer" || got.Reason != "laptop stolen, Żary" {
		t.Fatalf("it came back as %+v, %v", got, err)
	}
	long, err := ca.Evict(Node{Name: strings.Repeat("a", 63), Serial: new(big.Int).Lsh(big.NewInt(255), 152)}, strings.Repeat("b", 63), strings.Repeat("r", MaxReason), at)
	if err != nil || len(long.Bytes()) > MaxTombstone {
		t.Errorf("the longest has %d bytes, %v", len(long.Bytes()), err)
	}
	node := func(name string, above int64) Node {
		return Node{Name: name, Serial: new(big.Int).Add(old.Node.Serial, big.NewInt(above))}
	}
	for _, c := range []struct {
		node Node
		void bool
	}{{old.Node, true}, {node("bkero", -1), true}, {node("bkero", 1), false}, {node("nibz", 0), false}} {
		if got.Voids(c.node) != c.void || (*Tombstone)(nil).Voids(c.node) {
			t.Errorf("%s %s: void is not %v", c.node.Name, c.node.Serial, c.void)
		}
	}
}

// TestTombstoneForged makes tombstones without the mesh's key, or of what is none.
func TestTombstoneForged(t *testing.T) {
	ca, _ := NewCA("mesh")
	other, _ := NewCA("mesh")
	member, victim := newIdentity(t, ca, "evil", "10.11.0.2"), newIdentity(t, ca, "bkero", "10.11.0.3")
	good, _ := ca.Evict(victim.Node, "spencer", "", time.Now())
	for i := range good.Bytes() {
		b := bytes.Clone(good.Bytes())
		b[i] ^= 1
		if _, err := ca.ParseTombstone(b); err == nil {
			t.Errorf("byte %d changed and the tombstone was accepted", i)
		}
	}
	if _, err := (&CA{Cert: ca.Cert}).Evict(victim.Node, "evil", "", time.Now()); err == nil || !strings.Contains(err.Error(), "does not hold") {
		t.Errorf("without a key: %v", err)
	}
	seal := func(key *ecdsa.PrivateKey, domain string, e eviction) []byte {
		body, _ := encMode.Marshal(e)
		sum := sha256.Sum256(append([]byte(domain), body...))
		sig, _ := ecdsa.SignASN1(rand.Reader, key, sum[:])
		b, _ := encMode.Marshal(signed{Body: body, Sig: sig})
		return b
	}
	e := eviction{Name: "bkero", Serial: victim.Node.Serial.Bytes(), By: "spencer"}
	if _, err := ca.ParseTombstone(seal(ca.Key, evictionDomain, e)); err != nil {
		t.Fatal(err) // or the rest would show nothing
	}
	with := func(f func(*eviction)) eviction { x := e; f(&x); return x }
	for what, b := range map[string][]byte{
		"signed by a mere member":      seal(member.Key, evictionDomain, e),
		"signed by its own node":       seal(victim.Key, evictionDomain, e),
		"signed by another mesh":       seal(other.Key, evictionDomain, e),
		"signed as a record":           seal(ca.Key, recordDomain, e),
		"of no name":                   seal(ca.Key, evictionDomain, with(func(e *eviction) { e.Name = "" })),
		"by no name":                   seal(ca.Key, evictionDomain, with(func(e *eviction) { e.By = "\x1b[2J" })),
		"without a serial number":      seal(ca.Key, evictionDomain, with(func(e *eviction) { e.Serial = nil })),
		"with a huge serial number":    seal(ca.Key, evictionDomain, with(func(e *eviction) { e.Serial = make([]byte, 21) })),
		"with a long reason":           seal(ca.Key, evictionDomain, with(func(e *eviction) { e.Reason = strings.Repeat("x", MaxReason+1) })),
		"with a reason for a terminal": seal(ca.Key, evictionDomain, with(func(e *eviction) { e.Reason = "\x1b]0;x\a" })),
		"with a reason of two lines":   seal(ca.Key, evictionDomain, with(func(e *eviction) { e.Reason = "a\nb" })),
	} {
		if _, err := ca.ParseTombstone(b); err == nil {
			t.Errorf("a tombstone %s was accepted", what)
		}
	}
	if r, _ := member.Record(1, Said{}); r != nil {
		if _, err := ca.ParseTombstone(r.Bytes()); err == nil {
			t.Error("a record was accepted as a tombstone")
		}
	}
	if _, err := ca.ParseRecord(good.Bytes()); err == nil {
		t.Error("a tombstone was accepted as a record")
	}
}

// TestTLSEvicted lets an evicted member knock, and answer.
func TestTLSEvicted(t *testing.T) {
	ca, _ := NewCA("mesh")
	bkero, spencer := newIdentity(t, ca, "bkero", "127.0.0.1"), newIdentity(t, ca, "spencer", "127.0.0.1")
	tomb, _ := ca.Evict(bkero.Node, "spencer", "", time.Now())
	shake := func(client, server *Identity) error {
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		cc := client.TLS()
		cc.ServerName = server.Node.Name
		ended := make(chan error, 1)
		go func() {
			c := tls.Client(a, cc)
			err := c.Handshake()
			if err == nil {
				_, err = c.Read(make([]byte, 1)) // TLS 1.3: the server's verdict comes after the client's handshake
			}
			a.Close()
			ended <- err
		}()
		s := tls.Server(b, server.TLS())
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte{1})
		}
		b.Close()
		if e := <-ended; err == nil {
			err = e
		}
		return err
	}
	if err := shake(bkero, spencer); err != nil {
		t.Fatal(err)
	}
	spencer.Evicted = tomb.Voids
	for what, err := range map[string]error{"as a client": shake(bkero, spencer), "as a server": shake(spencer, bkero)} {
		if err == nil {
			t.Errorf("an evicted node is accepted %s", what)
		}
	}
	if err := shake(newIdentity(t, ca, "nibz", "127.0.0.1"), spencer); err != nil {
		t.Errorf("another node: %v", err)
	}
}

func FuzzParseTombstone(f *testing.F) {
	ca, _ := NewCA("mesh")
	id := newIdentity(f, ca, "bkero", "10.11.0.2")
	good, _ := ca.Evict(id.Node, "spencer", "lost", time.Now())
	f.Add(good.Bytes())
	f.Add([]byte{0x82, 0x40, 0x40})
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := ca.ParseTombstone(b); err == nil && (got.Name != "bkero" || got.Reason != "lost" || got.Serial.Cmp(id.Node.Serial) != 0) {
			t.Fatalf("%+v was accepted", got)
		}
	})
}
