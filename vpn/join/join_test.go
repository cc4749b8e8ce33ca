// SPDX-License-Identifier: MIT

package join

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/tcp"
)

// inviter is a running server on loopback that has given one invitation.
type inviter struct {
	ca    *identity.CA
	id    *identity.Identity
	book  *Book
	token Token

	mu      sync.Mutex
	learned [][]byte
	evicted []*identity.Tombstone
}

func newNode(t testing.TB, ca *identity.CA, name, v4 string) *identity.Identity {
	t.Helper()
	k, wg, err := identity.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	c, err := ca.Issue(name, "mesh.internal", []netip.Addr{netip.MustParseAddr(v4)}, &k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.New(ca, []*x509.Certificate{c}, k, wg)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func newInviter(t testing.TB) *inviter {
	ca, err := identity.NewCA("mesh")
	if err != nil {
		t.Fatal(err)
	}
	v := &inviter{ca: ca, id: newNode(t, ca, "spencer", "10.11.0.1"), book: NewBook(filepath.Join(t.TempDir(), "invitations.json"))}
	own, err := v.id.Record(1, identity.Said{})
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Identity: v.id, Book: v.book, Log: slog.New(slog.DiscardHandler),
		Mesh: func() Mesh {
			return Mesh{Name: "mesh", Domain: "mesh.internal", Prefix: "10.11.0.0/16", Inviter: "spencer"}
		},
		Records: func() []*identity.Record { return []*identity.Record{own} },
		Evicted: func() []*identity.Tombstone {
			v.mu.Lock()
			defer v.mu.Unlock()
			return v.evicted
		},
		Learn: func(b []byte) error {
			v.mu.Lock()
			defer v.mu.Unlock()
			v.learned = append(v.learned, b)
			return nil
		}}
	addr := accept(t, map[string]tcp.Protocol{"": s.Protocol(), Protocol: s.Protocol()})
	v.token = Token{Root: ca.Fingerprint(), Inviter: keyHash(v.id.Chain[0]), Secret: NewSecret(), Name: "bkero",
		Expires: time.Now().Add(time.Hour).Truncate(time.Second), Endpoints: []string{addr}}
	if err := v.book.Add(v.token.Secret, "bkero", netip.MustParseAddr("10.11.0.2"), v.token.Expires); err != nil {
		t.Fatal(err)
	}
	return v
}

// accept takes connections on loopback until the test has ended.
func accept(t testing.TB, protocols map[string]tcp.Protocol) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	a := &tcp.Acceptor{Protocols: protocols, Log: slog.New(slog.DiscardHandler)}
	ended.Go(func() { a.Serve(ctx, l) })
	t.Cleanup(func() { cancel(); ended.Wait() })
	return l.Addr().String()
}

func TestJoin(t *testing.T) {
	v := newInviter(t)
	key, wg, _ := identity.NewKeys()
	for range 2 { // the second time as if the first answer had been lost
		r, err := Join(t.Context(), tcp.Direct, v.token, key, wg)
		if err != nil {
			t.Fatal(err)
		}
		n := r.Identity.Node
		if n.Name != "bkero" || n.Addrs[0] != netip.MustParseAddr("10.11.0.2") || !v.ca.Prefix6().Contains(n.Addrs[1]) {
			t.Fatalf("joined as %+v", n)
		}
		if len(r.Records) != 1 || r.Records[0].Node.Name != "spencer" || r.Mesh.Domain != "mesh.internal" {
			t.Fatalf("got %+v", r)
		}
	}
	rec, err := v.ca.ParseRecord(v.learned[0])
	if err != nil || rec.Node.Name != "bkero" || !rec.WG.Equal(wg.PublicKey()) {
		t.Fatalf("the inviter learnt %+v, %v", rec, err)
	}
}

func TestRefused(t *testing.T) {
	thief := func(t *testing.T, v *inviter, tok Token, want string) {
		t.Helper()
		key, wg, _ := identity.NewKeys()
		_, err := Join(t.Context(), tcp.Direct, tok, key, wg)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	t.Run("used", func(t *testing.T) {
		v := newInviter(t)
		key, wg, _ := identity.NewKeys()
		if _, err := Join(t.Context(), tcp.Direct, v.token, key, wg); err != nil {
			t.Fatal(err)
		}
		thief(t, v, v.token, "has been used already")
	})
	t.Run("guessed", func(t *testing.T) {
		v := newInviter(t)
		tok := v.token
		tok.Secret = NewSecret()
		thief(t, v, tok, "not known here")
	})
	t.Run("expired", func(t *testing.T) {
		v := newInviter(t)
		tok := v.token
		tok.Secret = NewSecret()
		v.book.Add(tok.Secret, "nibz", netip.MustParseAddr("10.11.0.3"), time.Now().Add(-time.Minute))
		thief(t, v, tok, "expired on")
	})
	t.Run("other member in the middle", func(t *testing.T) {
		v := newInviter(t)
		evil := newInviter(t)
		tok := v.token
		tok.Endpoints = evil.token.Endpoints
		thief(t, v, tok, "somebody other than the inviter")
	})
	t.Run("member of the same mesh in the middle", func(t *testing.T) {
		v := newInviter(t)
		tok := v.token
		tok.Inviter = sha256.Sum256([]byte("another node"))
		thief(t, v, tok, "somebody other than the inviter")
	})
	t.Run("nobody there", func(t *testing.T) {
		v := newInviter(t)
		tok := v.token
		tok.Endpoints = []string{"127.0.0.1:1"}
		thief(t, v, tok, "could not be reached")
	})
}

// TestEvicted lets who was evicted come back: with the invitation it once used, with one that it had not used yet, and
// with a new one. Whoever joins learns of all who were evicted.
func TestEvicted(t *testing.T) {
	v := newInviter(t)
	key, wg, _ := identity.NewKeys()
	first, err := Join(t.Context(), tcp.Direct, v.token, key, wg)
	if err != nil {
		t.Fatal(err)
	}
	unused := v.token
	unused.Secret = NewSecret()
	if err := v.book.Add(unused.Secret, "bkero", netip.MustParseAddr("10.11.0.2"), unused.Expires); err != nil {
		t.Fatal(err)
	}
	evict := func(n identity.Node, at time.Time) {
		tomb, err := v.ca.Evict(n, "spencer", "", at)
		if err != nil {
			t.Fatal(err)
		}
		v.mu.Lock()
		v.evicted = []*identity.Tombstone{tomb}
		v.mu.Unlock()
	}
	evict(first.Identity.Node, time.Now().Add(time.Millisecond)) // as tombstones have it: whole milliseconds
	for what, tok := range map[string]Token{"used": v.token, "unused": unused} {
		if _, err := Join(t.Context(), tcp.Direct, tok, key, wg); err == nil || !strings.Contains(err.Error(), "was evicted by spencer") {
			t.Errorf("an invitation of before, %s: %v", what, err)
		}
	}
	evict(first.Identity.Node, time.Now().Add(-time.Second))
	again := v.token
	again.Secret = NewSecret()
	if err := v.book.Add(again.Secret, "bkero", netip.MustParseAddr("10.11.0.2"), again.Expires); err != nil {
		t.Fatal(err)
	}
	second, err := Join(t.Context(), tcp.Direct, again, key, wg)
	if err != nil {
		t.Fatal(err)
	}
	if len(second.Evicted) != 1 || !second.Evicted[0].Voids(first.Identity.Node) || second.Evicted[0].Voids(second.Identity.Node) {
		t.Errorf("it learns of %v", second.Evicted)
	}
	later := second.Identity.Node
	later.Serial = new(big.Int).Lsh(later.Serial, 1)
	evict(later, time.Now().Add(-time.Second))
	again.Secret = NewSecret()
	if err := v.book.Add(again.Secret, "bkero", netip.MustParseAddr("10.11.0.2"), again.Expires); err != nil {
		t.Fatal(err)
	}
	if _, err := Join(t.Context(), tcp.Direct, again, key, wg); err == nil || !strings.Contains(err.Error(), "clock is behind") {
		t.Errorf("a certificate that is void already: %v", err)
	}
}

// TestManyEvicted joins a mesh that has evicted thousands: those that fit are told, and it still gets to know nodes.
func TestManyEvicted(t *testing.T) {
	v := newInviter(t)
	for i := range 3000 {
		tomb, err := v.ca.Evict(identity.Node{Name: fmt.Sprintf("gone-%d", i), Serial: big.NewInt(1)}, "spencer", "", time.UnixMilli(int64(5000-i)))
		if err != nil {
			t.Fatal(err)
		}
		v.evicted = append(v.evicted, tomb)
	}
	key, wg, _ := identity.NewKeys()
	r, err := Join(t.Context(), tcp.Direct, v.token, key, wg)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Evicted) < 100 || r.Evicted[0].Name != "gone-0" || len(r.Records) != 1 {
		t.Errorf("told of %d evicted nodes and %d others", len(r.Evicted), len(r.Records))
	}
}

// TestOneOfMany lets many keys race for one invitation: exactly one may win.
func TestOneOfMany(t *testing.T) {
	v := newInviter(t)
	var wg sync.WaitGroup
	won := make(chan struct{}, 20)
	for range 20 {
		wg.Go(func() {
			key, x, _ := identity.NewKeys()
			if _, err := Join(t.Context(), tcp.Direct, v.token, key, x); err == nil {
				won <- struct{}{}
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Fatalf("%d keys redeemed one invitation", len(won))
	}
}

func TestBookForgets(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := NewBook(filepath.Join(dir, "invitations.json"))
		s := NewSecret()
		if err := b.Add(s, "bkero", netip.MustParseAddr("10.11.0.2"), time.Now().Add(24*time.Hour)); err != nil {
			t.Fatal(err)
		}
		if open, _ := b.Open(); len(open) != 1 {
			t.Fatalf("open: %v", open)
		}
		<-time.After(25 * time.Hour)
		if open, _ := b.Open(); len(open) != 0 {
			t.Fatalf("open after a day: %v", open)
		}
		if _, err := b.redeem(s[:], "k"); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Fatal(err)
		}
		<-time.After(31 * 24 * time.Hour)
		b.Add(NewSecret(), "nibz", netip.MustParseAddr("10.11.0.3"), time.Now())
		if _, err := b.redeem(s[:], "k"); err == nil || !strings.Contains(err.Error(), "not known") {
			t.Fatal(err)
		}
	})
}

func TestTokenText(t *testing.T) {
	want := Token{Root: [32]byte{1}, Inviter: [32]byte{2}, Secret: [16]byte{3}, Name: "bkero", Expires: time.Unix(1800000000, 0), Endpoints: []string{"192.0.2.1:7655", "[2001:db8::1]:7655"}}
	for _, via := range [][]string{nil, {"198.51.100.7:7655", "home.example.org:7655", "[2001:db8::7]:7655"}} {
		want.Via = via
		s := want.String()
		t.Logf("%d characters with %d members", len(s), len(via))
		got, err := ParseToken(" " + s + "\n")
		if err != nil || got.String() != s || !slices.Equal(got.Endpoints, want.Endpoints) || !slices.Equal(got.Via, want.Via) || !got.Expires.Equal(want.Expires) {
			t.Fatalf("%+v, %v", got, err)
		}
		for i := range s {
			c := []byte(s)
			c[i] ^= 1
			if _, err := ParseToken(string(c)); err == nil {
				t.Errorf("character %d changed and the token was accepted", i)
			}
		}
		for i := range s {
			if _, err := ParseToken(s[:i]); err == nil {
				t.Errorf("the first %d characters were accepted as a token", i)
			}
		}
	}
	// The first version, as it was printed before there were members in it.
	const old = "mesh://hwFYIAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAWCACAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAFADAAAAAAAAAAAAAAAAAAAAZWJrZXJvGmtJ0gCCbjE5Mi4wLjIuMTo3NjU1clsyMDAxOmRiODo6MV06NzY1NepYVWg"
	got, err := ParseToken(old)
	if err != nil || got.Name != "bkero" || len(got.Endpoints) != 2 || got.Via != nil || got.String() != old {
		t.Errorf("%+v, %v", got, err)
	}
	want.Endpoints, want.Via = nil, []string{"198.51.100.7:7655"} // the inviter has no address of its own
	if got, err := ParseToken(want.String()); err != nil || len(got.Endpoints) != 0 || len(got.Via) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []Token{{Name: "none"}, {Name: "many", Via: []string{"a:1", "b:1", "c:1", "d:1"}}, {Name: "no port", Via: []string{"a"}}} {
		if got, err := ParseToken(bad.String()); err == nil {
			t.Errorf("accepted: %+v", got)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(Token{Name: "bkero", Endpoints: []string{"192.0.2.1:7655"}}.String())
	f.Add(Token{Name: "bkero", Endpoints: []string{"192.0.2.1:7655"}, Via: []string{"192.0.2.2:7655"}}.String())
	f.Add(Scheme)
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			return
		}
		if again, err := ParseToken(tok.String()); err != nil || again.String() != tok.String() {
			t.Fatalf("%q: %v", s, err)
		}
	})
}

func FuzzHello(f *testing.F) {
	v := newInviter(f)
	s := &Server{Identity: v.id, Book: v.book, Mesh: func() Mesh { return Mesh{} }, Records: func() []*identity.Record { return nil },
		Evicted: func() []*identity.Tombstone { return nil }}
	key, _, _ := identity.NewKeys()
	csr, _ := request(key)
	b, _ := encMode.Marshal(hello{Secret: make([]byte, 16), CSR: csr})
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var h hello
		if decMode.Unmarshal(b, &h) != nil {
			return
		}
		if _, _, err := s.welcome(h); err == nil && string(h.Secret) != string(v.token.Secret[:]) {
			t.Fatal("let in without the secret")
		}
	})
}
