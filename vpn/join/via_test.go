// SPDX-License-Identifier: MIT

package join

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/tcp"
)

// behind puts a member before an inviter, which from now on is reached through it alone. The mesh, as the member sees
// it, leads each address to the inviter.
func behind(t testing.TB, v *inviter, change func(c net.Conn) net.Conn) (member *Via, dialled *[]string) {
	t.Helper()
	rec, err := v.id.Record(2, identity.Said{Join: 7655})
	if err != nil {
		t.Fatal(err)
	}
	other, err := newNode(t, v.ca, "bob", "10.11.0.9").Record(1, identity.Said{}) // may not invite
	if err != nil {
		t.Fatal(err)
	}
	at := v.token.Endpoints[0]
	var mu sync.Mutex
	dialled = new([]string)
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		mu.Lock()
		*dialled = append(*dialled, addr)
		mu.Unlock()
		c, err := tcp.Direct(ctx, network, at)
		if err == nil && change != nil {
			c = change(c)
		}
		return c, err
	}
	member = NewVia(newNode(t, v.ca, "nibz", "10.11.0.3"), func() []*identity.Record { return []*identity.Record{other, rec} }, dial, slog.New(slog.DiscardHandler))
	v.token.Endpoints, v.token.Via = nil, []string{accept(t, map[string]tcp.Protocol{ViaProtocol: member.Protocol()})}
	return member, dialled
}

func TestVia(t *testing.T) {
	v := newInviter(t)
	_, dialled := behind(t, v, nil)
	v.token.Endpoints = []string{"127.0.0.1:1"} // nobody there
	key, wg, _ := identity.NewKeys()
	for range 2 {
		r, err := Join(t.Context(), tcp.Direct, v.token, key, wg)
		if err != nil {
			t.Fatal(err)
		}
		if r.Identity.Node.Name != "bkero" || r.Via != "nibz" || r.Mesh.Inviter != "spencer" {
			t.Errorf("%+v", r)
		}
	}
	if !slices.Equal(*dialled, []string{"10.11.0.1:7655", "10.11.0.1:7655"}) {
		t.Errorf("the member dialled %v", *dialled)
	}
	if len(v.learned) != 2 {
		t.Errorf("the inviter learnt %d records", len(v.learned))
	}
}

// TestWays has one good way among bad ones, at any place.
func TestWays(t *testing.T) {
	silent := func(t *testing.T) string {
		l, err := net.Listen("tcp", "127.0.0.1:0") // whose connections nobody takes
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l.Addr().String()
	}
	v := newInviter(t)
	direct := v.token.Endpoints[0]
	behind(t, v, nil)
	via := v.token.Via[0]
	for name, w := range map[string][2][]string{
		"direct, first":    {{direct, silent(t)}, {via}},
		"direct, last":     {{"127.0.0.1:1", silent(t), direct}, {via}},
		"a member, last":   {{"127.0.0.1:1", silent(t)}, {silent(t), direct, via}},
		"an older inviter": {{via, direct}, nil}, // and something at an address that has changed hands
	} {
		t.Run(name, func(t *testing.T) {
			tok := v.token
			tok.Endpoints, tok.Via = w[0], w[1]
			tok.Secret = NewSecret()
			v.book.Add(tok.Secret, "bkero", netip.MustParseAddr("10.11.0.2"), tok.Expires)
			key, wg, _ := identity.NewKeys()
			begin := time.Now()
			if _, err := Join(t.Context(), tcp.Direct, tok, key, wg); err != nil || time.Since(begin) > 10*time.Second {
				t.Errorf("after %v: %v", time.Since(begin), err)
			}
		})
	}
}

// tampered changes what comes from the inviter.
type tampered struct {
	net.Conn
	change func(b []byte) []byte
}

func (c tampered) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	return copy(b, c.change(b[:n])), err
}

func TestEvilMember(t *testing.T) {
	join := func(t *testing.T, tok Token, want string) {
		t.Helper()
		key, wg, _ := identity.NewKeys()
		_, err := Join(t.Context(), tcp.Direct, tok, key, wg)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	t.Run("of another mesh", func(t *testing.T) {
		v, other := newInviter(t), newInviter(t)
		behind(t, v, nil)
		behind(t, other, nil)
		v.token.Via = other.token.Via
		join(t, v.token, "not of the inviter's mesh")
	})
	t.Run("a stranger with the mesh's root", func(t *testing.T) {
		v, other := newInviter(t), newInviter(t)
		m, _ := behind(t, other, nil)
		p := m.Protocol()
		p.TLS.Certificates[0].Certificate[1] = v.ca.Cert.Raw
		v.token.Endpoints, v.token.Via = nil, []string{accept(t, map[string]tcp.Protocol{ViaProtocol: p})}
		join(t, v.token, "certificate")
	})
	t.Run("takes the inviter's place", func(t *testing.T) {
		v := newInviter(t)
		m, _ := behind(t, v, nil)
		s := &Server{Identity: m.identity, Book: v.book, Evicted: func() []*identity.Tombstone { return nil }, Log: slog.New(slog.DiscardHandler)}
		evil := accept(t, map[string]tcp.Protocol{Protocol: s.Protocol()})
		m.dial = func(ctx context.Context, network, _ string) (net.Conn, error) { return tcp.Direct(ctx, network, evil) }
		join(t, v.token, "somebody other than the inviter")
	})
	t.Run("cuts and goes on", func(t *testing.T) {
		for after := range 4 {
			v := newInviter(t)
			var tries atomic.Int32
			m, _ := behind(t, v, nil)
			dial := m.dial
			m.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				c, err := dial(ctx, network, addr)
				if err != nil || tries.Add(1) > 1 {
					return c, err
				}
				reads := 0
				return tampered{c, func(b []byte) []byte {
					if reads++; reads > after {
						c.Close()
						return nil
					}
					return b
				}}, nil
			}
			v.token.Via = append(v.token.Via, v.token.Via...) // the first way breaks, the second does not
			key, wg, _ := identity.NewKeys()
			if r, err := Join(t.Context(), tcp.Direct, v.token, key, wg); err != nil || r.Identity.Node.Name != "bkero" {
				t.Errorf("cut after %d reads: %v", after, err)
			}
		}
	})
	t.Run("changes bytes", func(t *testing.T) {
		v := newInviter(t)
		behind(t, v, func(c net.Conn) net.Conn {
			return tampered{c, func(b []byte) []byte {
				if len(b) > 0 {
					b[len(b)-1] ^= 1
				}
				return b
			}}
		})
		join(t, v.token, "could not be reached")
		if len(v.learned) != 0 {
			t.Error("the inviter learnt a record")
		}
	})
	t.Run("replays", func(t *testing.T) {
		v := newInviter(t)
		var said bytes.Buffer
		var mu sync.Mutex
		m, _ := behind(t, v, func(c net.Conn) net.Conn {
			return tampered{c, func(b []byte) []byte { mu.Lock(); defer mu.Unlock(); said.Write(b); return b }}
		})
		key, wg, _ := identity.NewKeys()
		if _, err := Join(t.Context(), tcp.Direct, v.token, key, wg); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		record := bytes.Clone(said.Bytes())
		mu.Unlock()
		m.dial = func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go io.Copy(io.Discard, theirs)
			go theirs.Write(record)
			return ours, nil
		}
		join(t, v.token, "could not be reached")
	})
}

// TestStrangersAtAMember asks a member for what it must not give.
func TestStrangersAtAMember(t *testing.T) {
	v := newInviter(t)
	m, dialled := behind(t, v, nil)
	open := func() *tls.Conn {
		c, err := net.Dial("tcp", v.token.Via[0])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(20 * time.Second))
		return tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ViaProtocol}})
	}
	request := func(c *tls.Conn, key []byte) string {
		if err := write(c, viaRequest{Inviter: key}); err != nil {
			return err.Error()
		}
		var a viaAnswer
		if err := read(c, &a); err != nil {
			return err.Error()
		}
		return a.Error
	}
	bob := m.records()[0].Node.KeyHash()
	for name, key := range map[string][]byte{"nobody": make([]byte, 32), "no key": nil, "one who may not invite": bob[:],
		"a name": []byte("spencer"), "the member": func() []byte { h := keyHash(m.identity.Chain[0]); return h[:] }()} {
		if got := request(open(), key); got != "no such inviter is known here" {
			t.Errorf("%s: %q", name, got)
		}
	}
	if len(*dialled) != 0 {
		t.Errorf("the member dialled %v", *dialled)
	}
	c := open()
	c.Write([]byte{255, 255})
	c.Write(bytes.Repeat([]byte{0xff}, 65535))
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("garbage was answered")
	}
	spencer := v.token.Inviter[:]
	t.Run("without an invitation", func(t *testing.T) { // as at the inviter's own address
		tok := v.token
		tok.Secret = NewSecret()
		key, wg, _ := identity.NewKeys()
		if _, err := Join(t.Context(), tcp.Direct, tok, key, wg); err == nil || !strings.Contains(err.Error(), "not known here") {
			t.Error(err)
		}
	})
	t.Run("the inviter is away", func(t *testing.T) {
		dial := m.dial
		defer func() { m.dial = dial }()
		m.dial = func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("no route to host 10.11.0.1")
		}
		if got := request(open(), spencer); !strings.HasPrefix(got, "the inviter cannot be reached") || strings.Contains(got, "10.11") {
			t.Error(got)
		}
	})
	t.Run("too much", func(t *testing.T) {
		dial := m.dial
		defer func() { m.dial = dial }()
		var took atomic.Int64
		m.dial = func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() { n, _ := io.Copy(io.Discard, theirs); took.Store(n) }()
			return ours, nil
		}
		c := open()
		if got := request(c, spencer); got != "" {
			t.Fatal(got)
		}
		buf, sent := make([]byte, 64<<10), 0
		for ; sent < 100*viaBytes; sent += len(buf) {
			if _, err := c.Write(buf); err != nil {
				break
			}
		}
		if sent >= 100*viaBytes {
			t.Errorf("%d bytes were taken", sent)
		}
	})
	t.Run("too many", func(t *testing.T) {
		for begin := time.Now(); len(m.places) > 0; { // those above are on their way out
			if time.Since(begin) > 10*time.Second {
				t.Fatal("places are not given back")
			}
		}
		for n := 0; ; n++ {
			got := request(open(), spencer)
			if got != "" {
				if n != maxVias || !strings.Contains(got, "too many") {
					t.Errorf("the %d. was refused: %s", n+1, got)
				}
				break
			}
		}
	})
}

func TestMembers(t *testing.T) {
	ca, err := identity.NewCA("mesh")
	if err != nil {
		t.Fatal(err)
	}
	rec := func(hosts []string, eps ...string) *identity.Record {
		var out []netip.AddrPort
		for _, e := range eps {
			out = append(out, netip.MustParseAddrPort(e))
		}
		r, err := newNode(t, ca, "n", "10.11.0.1").Record(1, identity.Said{Endpoints: out, Hosts: hosts})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	got := Members([]*identity.Record{
		rec(nil, "192.168.1.2:7655", "[fd00::1]:7655", "100.64.3.4:7655", "[fe80::1]:7655", "127.0.0.1:7655"),
		rec(nil),
		rec(nil, "192.168.1.2:7655", "[2001:db8::1]:7655", "203.0.113.7:1234"),
		rec([]string{"home.example.org:7655"}, "203.0.113.8:7655"),
		rec(nil, "[fd00::1]:7655", "[2001:db8::2]:7655"),
		rec(nil, "203.0.113.9:7655"),
	})
	if want := []string{"203.0.113.7:1234", "home.example.org:7655", "[2001:db8::2]:7655"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// FuzzVia gives a member any request: only the inviter's key leads anywhere.
func FuzzVia(f *testing.F) {
	v := newInviter(f)
	m, _ := behind(f, v, nil)
	good, _ := encMode.Marshal(viaRequest{Inviter: v.token.Inviter[:]})
	f.Add(good)
	f.Add([]byte{0xa1, 1, 0x40})
	f.Fuzz(func(t *testing.T, b []byte) {
		var q viaRequest
		if decMode.Unmarshal(b, &q) == nil && m.find(q.Inviter) != nil && !bytes.Equal(q.Inviter, v.token.Inviter[:]) {
			t.Fatalf("%x leads to an inviter", q.Inviter)
		}
	})
}
