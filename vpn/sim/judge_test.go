// SPDX-License-Identifier: MIT

package sim

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"mesh.internal/mesh/vpn/vpntest"
)

// TestJudgeBites breaks what must be true, one after the other: the judge notices each.
func TestJudgeBites(t *testing.T) {
	dir := fastDir(t)
	type trio struct {
		*stage
		a, b, c *Node
	}
	wait := func(s *trio) { s.Sleep(settle) }
	send := func(from, to *Node, b []byte) {
		s := from.Host.Bind(Port+1, 1)
		s.Open(0)
		s.Send([][]byte{b}, &conn.StdNetEndpoint{AddrPort: netip.AddrPortFrom(to.Host.Addrs()[0], Port+1)})
		s.Close()
	}
	sealedPacket := append([]byte{4, 0, 0, 0}, "12345678901234567890123456789012"...)
	for _, c := range []struct {
		name   string
		want   string // empty: nothing is wrong
		do     func(*trio)
		meddle func(s *trio, to *Node, b []byte) // with what is delivered
	}{
		{"nothing", "", wait, nil},
		{"the wrong node", "c was given a packet for b", wait, func(s *trio, to *Node, b []byte) {
			if to == s.b {
				to = s.c
			}
			s.judge.delivered(to, b)
		}},
		{"a packet twice", "twice", wait, func(s *trio, to *Node, b []byte) {
			s.judge.delivered(to, b)
			s.judge.delivered(to, b)
		}},
		{"an altered packet", "not as it was sent", wait, func(s *trio, to *Node, b []byte) {
			b = slices.Clone(b)
			b[len(b)-20] ^= 1
			s.judge.delivered(to, b)
		}},
		{"a shortened packet", "not as it was sent", wait, func(s *trio, to *Node, b []byte) {
			m, src, dst, _, _ := parseMarked(b)
			s.judge.delivered(to, m.packet(src, dst, len(b)-8))
		}},
		{"a forged source", "b was given a forged packet from 10.11.0.3", wait, func(s *trio, to *Node, b []byte) {
			if to == s.b {
				b = slices.Clone(b)
				a := s.c.Addr().As4()
				copy(b[12:], a[:])
			}
			s.judge.delivered(to, b)
		}},
		{"rubbish", "that nobody sent", wait, func(s *trio, to *Node, b []byte) { s.judge.delivered(to, b[:40]) }},
		{"silence", "nothing of a reaches b: nothing for ", func(s *trio) {
			s.Sleep(settle)
			for _, to := range []*Node{s.b, s.c} { // and the judge is not told
				s.Net.Pair(s.a.Host, to.Host, vpntest.Link{Down: true})
			}
			s.Sleep(2 * time.Second)
		}, nil},
		{"never a packet", "nothing of c reaches a: nothing yet, 3.", func(s *trio) {
			for _, from := range []*Node{s.b, s.c} {
				s.Net.Pair(from.Host, s.a.Host, vpntest.Link{Down: true})
			}
			s.Talk(s.c, s.a, 0)
			s.Sleep(5 * time.Second)
		}, nil},
		{"a loop", "a packet of a goes round: it passed b 2 times", func(s *trio) {
			send(s.a, s.b, sealedPacket)
			send(s.b, s.c, sealedPacket)
			send(s.c, s.b, sealedPacket)
			send(s.b, s.c, sealedPacket)
		}, nil},
		{"a relay", "", func(s *trio) {
			send(s.a, s.b, sealedPacket)
			send(s.b, s.c, sealedPacket)
			s.Sleep(settle)
		}, nil},
		{"many copies", "a sent one sealed packet 4 times", func(s *trio) {
			for range 4 {
				send(s.a, s.b, sealedPacket)
			}
		}, nil},
		{"something for a stranger", "a stranger was sent", func(s *trio) {
			x := s.Stranger(s.net.public())
			s.Sleep(time.Second)
			socket := s.a.Host.Bind(Port+1, 1)
			socket.Open(0)
			socket.Send([][]byte{sealedPacket}, &conn.StdNetEndpoint{AddrPort: x.addr})
			s.Sleep(time.Second)
		}, nil},
		{"an older record", "c replaced the record of a by an older one", func(s *trio) {
			s.judge.mu.Lock()
			k := seenKey{s.c.running(), "a"}
			r := s.judge.seen[k]
			r.seq++ // as if it had had a newer one
			s.judge.seen[k] = r
			s.judge.mu.Unlock()
			s.Sleep(time.Second)
		}, nil},
		{"a record that does not get there", "b knows the record of c with sequence", func(s *trio) {
			for _, to := range []*Node{s.a, s.b} {
				s.Net.Pair(s.c.Host, to.Host, vpntest.Link{Down: true})
			}
			s.c.running().SetPublic([]string{"192.0.2.77:7655"})
			s.Sleep(convergeIn + time.Second)
		}, nil},
		{"much memory", "KiB of heap", func(s *trio) {
			hog := make([]byte, 64<<20)
			s.judge.bounded(3)
			hog[0] = 1
		}, nil},
		{"many goroutines", "goroutines, more than", func(s *trio) {
			end := make(chan struct{})
			for range 1000 {
				s.wg.Go(func() { <-end })
			}
			s.judge.bounded(3)
			close(end)
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := run(t, Config{Seed: 1, Dir: dir + "/" + c.name}, func(w *World) error {
				s := &trio{stage: &stage{w, &network{w: w}}}
				if c.meddle != nil {
					w.deliver = func(to *Node, b []byte) { c.meddle(s, to, b) }
				}
				s.a = s.public("a", nil)
				s.b, s.c = s.public("b", s.a), s.public("c", s.a)
				s.Talk(s.a, s.b, 0)
				s.Sleep(settle)
				c.do(s)
				return nil
			})
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("the judge says %v, want %q", err, c.want)
			}
		})
	}
}
