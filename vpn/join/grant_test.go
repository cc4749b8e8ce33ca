// SPDX-License-Identifier: MIT

package join

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/tcp"
)

// office is an inviter that makes invitations for members too.
type office struct {
	*inviter
	grants *Grants
	server *Server
	record *identity.Record
	dial   tcp.Dial

	asked sync.Map // names that Invite was called with
}

func newOffice(t testing.TB) *office {
	o := &office{inviter: newInviter(t), grants: NewGrants(filepath.Join(t.TempDir(), "grants.json"))}
	o.id.Evicted = func(n identity.Node) bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, x := range o.evicted {
			if x.Voids(n) {
				return true
			}
		}
		return false
	}
	o.server = &Server{Identity: o.id, Book: o.book, Grants: o.grants, Log: slog.New(slog.DiscardHandler), Learn: func([]byte) error { return nil },
		Mesh: func() Mesh {
			return Mesh{Name: "mesh", Domain: "mesh.internal", Prefix: "10.11.0.0/16", Inviter: "spencer"}
		},
		Records: func() []*identity.Record { return nil },
		Evicted: func() []*identity.Tombstone {
			o.mu.Lock()
			defer o.mu.Unlock()
			return o.evicted
		}}
	var addr string
	desk := &Desk{Identity: o.id, Book: o.book, Grants: o.grants, Log: slog.New(slog.DiscardHandler),
		Invite: func(_ context.Context, by identity.Node, q Request) (Reply, error) {
			o.asked.Store(q.Name, by.Name)
			tok := Token{Root: o.ca.Fingerprint(), Inviter: o.id.Node.KeyHash(), Secret: NewSecret(), Name: q.Name, Expires: time.Now().Add(q.Expires).Truncate(time.Second), Endpoints: []string{addr}}
			return Reply{Token: tok.String(), Addr: netip.MustParseAddr("10.11.0.9"), Expires: tok.Expires}, o.book.AddFor(by, tok.Secret, q.Name, netip.MustParseAddr("10.11.0.9"), tok.Expires)
		}}
	addr = accept(t, map[string]tcp.Protocol{"": o.server.Protocol(), Protocol: o.server.Protocol(), InviteProtocol: desk.Protocol()})
	_, port, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(port)
	var err error
	if o.record, err = o.id.Record(2, identity.Said{Join: uint16(n)}); err != nil {
		t.Fatal(err)
	}
	o.dial = func(ctx context.Context, network, _ string) (net.Conn, error) { return tcp.Direct(ctx, network, addr) }
	return o
}

func (o *office) ask(t testing.TB, id *identity.Identity, name string) (Reply, error) {
	t.Helper()
	return Ask(t.Context(), o.dial, id, o.record, Request{Name: name, Expires: time.Hour})
}

func (o *office) evict(t *testing.T, n identity.Node) {
	t.Helper()
	tomb, err := o.ca.Evict(n, "spencer", "", time.Now().Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.evicted = append(o.evicted, tomb)
}

// TestGrant lets a member invite: what it gets lets one in.
func TestGrant(t *testing.T) {
	o := newOffice(t)
	bkero := newNode(t, o.ca, "bkero", "10.11.0.2")
	if err := o.grants.Set(bkero.Node, "lab"); err != nil {
		t.Fatal(err)
	}
	r, err := o.ask(t, bkero, "lab-printer")
	if err != nil {
		t.Fatal(err)
	}
	tok, _ := ParseToken(r.Token)
	key, wg, _ := identity.NewKeys()
	got, err := Join(t.Context(), tcp.Direct, tok, key, wg)
	if err != nil || got.Identity.Node.Name != "lab-printer" || len(got.Identity.Chain) != 1 {
		t.Fatalf("joined as %+v, %v", got, err)
	}
	all, err := NewGrants(o.grants.path).All() // from the disk
	if err != nil || len(all) != 1 || all[0].Node != "bkero" || all[0].Below != "lab" {
		t.Errorf("granted: %+v, %v", all, err)
	}
}

// TestHostileGrantee plays members who want to invite more than they may.
func TestHostileGrantee(t *testing.T) {
	o := newOffice(t)
	bkero, mallory := newNode(t, o.ca, "bkero", "10.11.0.2"), newNode(t, o.ca, "mallory", "10.11.0.6")
	o.grants.Set(bkero.Node, "lab")
	refused := func(what string, id *identity.Identity, name, why string) {
		t.Helper()
		if _, err := o.ask(t, id, name); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v", what, err)
		}
		if by, made := o.asked.LoadAndDelete(name); made {
			t.Errorf("%s: an invitation was made for %s", what, by)
		}
	}
	refused("who was granted nothing", mallory, "lab-x", "may not invite")
	refused("a name out of its scope", bkero, "printer", "begin with lab-")
	refused("a name that only begins like it", bkero, "labor", "begin with lab-")
	refused("the label itself", bkero, "lab", "begin with lab-")
	refused("a reserved name", bkero, "wpad", "reserved")
	refused("a name below another", bkero, "lab-x.spencer", "may hold only")
	refused("none", bkero, "", "empty")

	stranger, _ := identity.NewCA("mesh")
	if _, err := o.ask(t, newNode(t, stranger, "bkero", "10.11.0.2"), "lab-x"); err == nil {
		t.Error("a node of another mesh got an invitation")
	}
	raw, err := o.dial(t.Context(), "tcp", "")
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{InviteProtocol}}) // without a certificate
	write(c, Request{Name: "lab-x", Expires: time.Hour})
	if err := read(c, new(Reply)); err == nil {
		t.Error("a stranger got an answer")
	}

	// Another node of the same name, as one that was invited later, was granted nothing.
	refused("a later node of its name", newNode(t, o.ca, "bkero", "10.11.0.2"), "lab-x", "may not invite")

	// Nobody can be had to ask the wrong one: what it gets must be of its mesh, and for the name.
	liar := &Desk{Identity: newNode(t, o.ca, "liar", "10.11.0.7"), Grants: o.grants, Book: o.book, Log: slog.New(slog.DiscardHandler),
		Invite: func(context.Context, identity.Node, Request) (Reply, error) {
			return Reply{Token: Token{Root: stranger.Fingerprint(), Name: "lab-x", Endpoints: []string{"192.0.2.1:1"}, Expires: time.Now()}.String()}, nil
		}}
	addr := accept(t, map[string]tcp.Protocol{InviteProtocol: liar.Protocol()})
	rec, _ := liar.Identity.Record(1, identity.Said{Join: 1})
	if _, err := Ask(t.Context(), func(ctx context.Context, n, _ string) (net.Conn, error) { return tcp.Direct(ctx, n, addr) }, bkero, rec, Request{Name: "lab-x"}); err == nil || !strings.Contains(err.Error(), "another mesh") {
		t.Errorf("an invitation to another mesh: %v", err)
	}

	// No more than MaxOpen at once.
	for i := range MaxOpen {
		if _, err := o.ask(t, bkero, "lab-"+strconv.Itoa(i)+"x"); err != nil {
			t.Fatal(err)
		}
	}
	refused("one too many", bkero, "lab-more", "are open")
}

// TestGrantEnds demands that nothing of a member's right to invite outlives it: neither asking nor what is still open.
func TestGrantEnds(t *testing.T) {
	for what, c := range map[string]struct {
		end func(t *testing.T, o *office, bkero *identity.Identity)
		ask string // what asking again comes to
	}{
		"revoked": {func(t *testing.T, o *office, bkero *identity.Identity) {
			if err := o.grants.Take("bkero"); err != nil {
				t.Fatal(err)
			}
		}, "may not invite"},
		"evicted": {func(t *testing.T, o *office, bkero *identity.Identity) { o.evict(t, bkero.Node) }, ""},
		"narrowed": {func(t *testing.T, o *office, bkero *identity.Identity) {
			if err := o.grants.Set(bkero.Node, "other"); err != nil {
				t.Fatal(err)
			}
		}, "begin with other-"},
		"granted to a later node of its name": {func(t *testing.T, o *office, bkero *identity.Identity) {
			later := bkero.Node
			later.Serial = new(big.Int).Add(later.Serial, big.NewInt(1))
			if err := o.grants.Set(later, ""); err != nil {
				t.Fatal(err)
			}
		}, "may not invite"},
	} {
		t.Run(what, func(t *testing.T) {
			o := newOffice(t)
			bkero := newNode(t, o.ca, "bkero", "10.11.0.2")
			o.grants.Set(bkero.Node, "")
			used, err1 := o.ask(t, bkero, "phone")
			open, err2 := o.ask(t, bkero, "printer")
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			join := func(r Reply) (*Result, error) {
				tok, _ := ParseToken(r.Token)
				key, wg, _ := identity.NewKeys()
				return Join(t.Context(), tcp.Direct, tok, key, wg)
			}
			phone, err := join(used)
			if err != nil {
				t.Fatal(err)
			}
			c.end(t, o, bkero)
			if _, err := o.ask(t, bkero, "more"); err == nil || !strings.Contains(err.Error(), c.ask) {
				t.Errorf("it asks again: %v", err)
			}
			if _, err := join(open); err == nil || !strings.Contains(err.Error(), "ask another for one") {
				t.Errorf("an open invitation: %v", err)
			}
			if _, err := o.ca.Verify([]*x509.Certificate{phone.Identity.Chain[0]}); err != nil || o.id.Evicted(phone.Identity.Node) {
				t.Errorf("who was invited before is no member any more: %v", err)
			}
		})
	}
}

func FuzzRequest(f *testing.F) {
	var b bytes.Buffer
	write(&b, Request{Name: "lab-x", Addr: netip.MustParseAddr("10.11.0.9"), Expires: time.Hour})
	f.Add(b.Bytes())
	o := newOffice(f)
	bkero := newNode(f, o.ca, "bkero", "10.11.0.2")
	o.grants.Set(bkero.Node, "lab")
	d := &Desk{Book: NewBook(filepath.Join(f.TempDir(), "none.json")), Grants: o.grants, Invite: func(_ context.Context, _ identity.Node, q Request) (Reply, error) {
		if identity.CheckName(q.Name) != nil || !strings.HasPrefix(q.Name, "lab-") {
			f.Errorf("%q was let through", q.Name)
		}
		return Reply{}, nil
	}}
	f.Fuzz(func(t *testing.T, b []byte) {
		var q Request
		if read(bytes.NewReader(b), &q) == nil {
			d.reply(t.Context(), bkero.Node, q)
		}
	})
}
