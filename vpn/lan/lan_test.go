// SPDX-License-Identifier: MIT

package lan

import (
	"bytes"
	"crypto/x509"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"mesh.internal/mesh/vpn/identity"
)

// member makes a node of a mesh, with a record that has n endpoints.
func member(t testing.TB, ca *identity.CA, name string, n int) *Finder {
	t.Helper()
	key, wg, err := identity.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	addr6, err := ca.Addr6(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(name, "mesh.internal", []netip.Addr{netip.MustParseAddr("10.11.0.2"), addr6}, &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.New(ca, []*x509.Certificate{cert}, key, wg)
	if err != nil {
		t.Fatal(err)
	}
	var eps []netip.AddrPort
	for range n {
		eps = append(eps, netip.MustParseAddrPort("[2001:db8::1]:7655"))
	}
	record, err := id.Record(1, identity.Said{Endpoints: eps})
	if err != nil {
		t.Fatal(err)
	}
	f, err := New(Config{Identity: id, Interface: "mesh0", Port: 7655, Record: record.Bytes, Found: func(*identity.Record, netip.AddrPort) {}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func newCA(t testing.TB) *identity.CA {
	t.Helper()
	ca, err := identity.NewCA("mesh")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func sealed(t testing.TB, f *Finder, answer bool) []byte {
	t.Helper()
	b, err := f.seal(answer)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAnnouncement(t *testing.T) {
	ca := newCA(t)
	a, b, c := member(t, ca, "spencer", 0), member(t, ca, "bkero", 16), member(t, newCA(t), "nibz", 0)
	for _, f := range []*Finder{a, b} {
		d := sealed(t, f, true)
		t.Logf("the record of %s has %d bytes", f.cfg.Identity.Node.Name, len(f.cfg.Record()))
		if len(d) != Size {
			t.Errorf("%d bytes, want %d", len(d), Size)
		}
		got, err := a.open(d)
		if err != nil {
			t.Fatal(err)
		}
		if got.record.Node.Name != f.cfg.Identity.Node.Name || got.port != 7655 || !got.answer || time.Since(got.sent).Abs() > time.Minute {
			t.Errorf("opened %+v", got)
		}
		if _, err := c.open(d); err == nil {
			t.Error("another mesh opens it")
		}
		for i := range d {
			d[i] ^= 1
			if _, err := a.open(d); err == nil {
				t.Errorf("it was opened with byte %d changed", i)
			}
			d[i] ^= 1
		}
	}
	x, y := sealed(t, a, false), sealed(t, a, false)
	for i := range x[:Size-8] {
		if bytes.Contains(y, x[i:i+8]) {
			t.Fatalf("two announcements have %x in common", x[i:i+8])
		}
	}
}

// TestForged has a member speak of another, under the key that both have.
func TestForged(t *testing.T) {
	ca := newCA(t)
	honest, liar, reader := member(t, ca, "spencer", 0), member(t, ca, "bkero", 0), member(t, ca, "nibz", 0)
	liar.cfg.Record = honest.cfg.Record
	if _, err := reader.open(sealed(t, liar, false)); err == nil {
		t.Error("a member announced another")
	}
	// The honest one's, opened, changed where its signature covers, and sealed again.
	d := sealed(t, honest, false)
	body, err := honest.aead.Open(nil, d[:24], d[24:], nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{1, 2, 3, 4, 11} {
		forged := bytes.Clone(body)
		forged[at] ^= 1
		if _, err := reader.open(liar.aead.Seal(bytes.Clone(d[:24]), d[:24], forged, nil)); err == nil {
			t.Errorf("byte %d was changed by another member", at)
		}
	}
	other := bytes.Repeat([]byte{7}, 24)
	if _, err := reader.open(liar.aead.Seal(bytes.Clone(other), other, body, nil)); err == nil {
		t.Error("another member gave it a new nonce")
	}
	if _, err := reader.open(d); err != nil {
		t.Errorf("the unchanged one: %v", err)
	}
}

// TestConsider says what is news and what is answered.
func TestConsider(t *testing.T) {
	ca := newCA(t)
	f, peer := member(t, ca, "spencer", 0), member(t, ca, "bkero", 0)
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	first, err := f.open(sealed(t, peer, false))
	if err != nil {
		t.Fatal(err)
	}
	one, two := netip.MustParseAddr("198.18.0.2"), netip.MustParseAddr("198.18.0.3")
	var found []netip.AddrPort
	f.cfg.Found = func(_ *identity.Record, at netip.AddrPort) { found = append(found, at) }
	for _, c := range []struct {
		name         string
		after        time.Duration // of the reader's clock
		sent         time.Duration // by the sender's, from the beginning
		from         netip.Addr
		isAnswer     bool
		news, answer bool
	}{
		{"the first", 0, 0, one, false, true, true},
		{"a copy", 0, 0, one, false, false, false},
		{"from another address", 0, 0, two, false, true, true},
		{"an older one", 0, -time.Second, one, false, false, false},
		{"a newer one", time.Second, time.Second, one, false, false, false},
		{"after a while", 20 * time.Second, 21 * time.Second, one, false, false, true},
		{"after a longer while", 20 * time.Second, 41 * time.Second, one, false, true, true},
		{"an answer", time.Minute, 2 * time.Minute, one, true, true, false},
		{"of tomorrow", time.Minute, 25 * time.Hour, one, false, false, false},
		{"replayed after two days", 48 * time.Hour, 2 * time.Minute, one, false, false, false},
		{"today's", 0, 48 * time.Hour, one, false, true, true},
		{"by a clock that was put back", 9 * time.Minute, 47 * time.Hour, one, false, false, false},
		{"still", 2 * time.Minute, 47 * time.Hour, one, false, true, true},
	} {
		now = now.Add(c.after)
		a := first
		a.sent, a.answer = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC).Add(c.sent), c.isAnswer
		found = nil
		if answer := f.consider(a, c.from, now); answer != c.answer || len(found) == 1 != c.news {
			t.Errorf("%s: found %v, answered %v", c.name, found, answer)
		}
		if c.news && len(found) == 1 && found[0] != netip.AddrPortFrom(c.from, 7655) {
			t.Errorf("%s: found at %v", c.name, found)
		}
	}
	own, err := f.open(sealed(t, f, false))
	if err != nil {
		t.Fatal(err)
	}
	if found = nil; f.consider(own, one, now) || found != nil {
		t.Error("a node found itself")
	}
}

// TestBounds has a replay from many addresses, and a member that floods.
func TestBounds(t *testing.T) {
	ca := newCA(t)
	f, peer := member(t, ca, "spencer", 0), member(t, ca, "bkero", 0)
	a, err := f.open(sealed(t, peer, false))
	if err != nil {
		t.Fatal(err)
	}
	found, answers, now := 0, 0, time.Now()
	f.cfg.Found = func(*identity.Record, netip.AddrPort) { found++ }
	from := netip.MustParseAddr("198.18.0.1")
	for range 5000 {
		if from = from.Next(); f.consider(a, from, now) {
			answers++
		}
	}
	if found > maxAddrs || answers > maxAnswer || len(f.answered) > maxKnown {
		t.Errorf("found %d, answered %d, remembered %d", found, answers, len(f.answered))
	}
	opened := 0
	began := time.Now()
	for range 100 {
		if _, err := f.open(sealed(t, peer, false)); err == nil {
			opened++
		}
	}
	if most := maxOpened * (2 + int(time.Since(began).Seconds())); opened > most || len(f.copies) > maxCopies {
		t.Errorf("opened %d, want at most %d; %d copies", opened, most, len(f.copies))
	}
}

func TestClocks(t *testing.T) {
	real := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		sent, now time.Time
		want      bool
	}{
		{real, real.Add(23 * time.Hour), true},
		{real, real.Add(25 * time.Hour), false},
		{real.Add(25 * time.Hour), real, false},
		{time.Unix(100, 0), real, true}, // the sender's clock is not set
		{real, time.Unix(100, 0), true}, // the reader's is not
		{time.UnixMilli(1 << 62), real, false},
		{time.UnixMilli(-1 << 62), real, true},
	} {
		a := announcement{sent: c.sent}
		if got := a.fresh(c.now); got != c.want {
			t.Errorf("sent %v, read %v: %v", c.sent, c.now, got)
		}
	}
}

func FuzzDecode(f *testing.F) {
	ca := newCA(f)
	m := member(f, ca, "spencer", 2)
	d := sealed(f, m, false)
	body, err := m.aead.Open(nil, d[:24], d[24:], nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(d, body)
	f.Add(d[:40], body[:headSize])
	f.Fuzz(func(t *testing.T, datagram, body []byte) {
		if a, err := parse(m.aead, datagram); err == nil && !bytes.Equal(datagram, d) {
			t.Errorf("a datagram that nobody sealed was opened: %+v", a)
		}
		var a announcement
		if err := a.decode(d[:24], body); err == nil {
			if a.verify(ca) == nil && (a.record.Node.Name != "spencer" || a.port != 7655) {
				t.Errorf("a body that nobody signed was accepted: %+v", a)
			}
		}
	})
}
