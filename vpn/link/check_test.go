// SPDX-License-Identifier: MIT

package link

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"net/netip"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
)

// sink is a socket that keeps what it sent where.
type sink struct {
	conn.Bind
	to   []netip.AddrPort
	sent [][]byte
}

func (s *sink) Send(bufs [][]byte, ep conn.Endpoint) error {
	for _, b := range bufs {
		s.to, s.sent = append(s.to, ep.(*conn.StdNetEndpoint).AddrPort), append(s.sent, bytes.Clone(b))
	}
	return nil
}

func key(t *testing.T) *ecdh.PrivateKey {
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestCheck asks as a peer, as a stranger, and again with what was asked before.
func TestCheck(t *testing.T) {
	var out sink
	keyA, keyB, keyC := key(t), key(t), key(t)
	a := New(&sink{}, keyA, 1412)
	b := New(&out, keyB, 1412)
	var elsewhere []netip.AddrPort
	b.Elsewhere = func(_ *Peer, _ []byte, at netip.AddrPort) { elsewhere = append(elsewhere, at) }
	toB, err := a.Peer("b", keyB.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Peer("a", keyA.PublicKey()); err != nil {
		t.Fatal(err)
	}
	other := netip.MustParseAddrPort("198.51.100.9:4000")
	ask := func(frame []byte, at netip.AddrPort) {
		s := sorter{l: b}
		if n, _ := b.ours(&s, frame, Way{Addr: at}, &conn.StdNetEndpoint{AddrPort: at}); n != 0 {
			t.Errorf("%d bytes were left to the engine", n)
		}
	}
	frame := toB.Ask(7, false)
	ask(bytes.Clone(frame), other)
	if len(out.to) != 1 || out.to[0] != other || len(out.sent[0]) != len(frame) {
		t.Fatalf("answers to %v: %x", out.to, out.sent)
	}
	told := b.byKey[toB.link.self].Tell(7, other, netip.AddrPort{})
	if p, number, seen, ok := a.Told(told); !ok || p != toB || number != 7 || seen != other {
		t.Errorf("told: %v %d %v %v", p, number, seen, ok)
	}
	if _, _, _, ok := b.Told(told); ok {
		t.Error("who told takes it as told")
	}
	if _, _, _, ok := a.Told(frame); ok {
		t.Error("a question is taken for an answer")
	}
	ask(bytes.Clone(frame), addrA) // replayed: one more answer
	ask(toB.Ask(8, true), other)
	if len(out.to) != 2 || len(elsewhere) != 1 || elsewhere[0] != other {
		t.Errorf("answers to %v, elsewhere to %v", out.to, elsewhere)
	}
	stranger, err := New(&sink{}, keyC, 1412).Peer("b", keyB.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	ask(stranger.Ask(9, false), other)
	frame[len(frame)-1] ^= 1
	ask(frame, other)
	if len(out.to) != 2 {
		t.Errorf("strangers or forgers were answered: %v", out.to)
	}
	if w := b.byKey[toB.link.self].Ways(); len(w) != 0 {
		t.Errorf("a check has left ways: %v", w)
	}
}
