// SPDX-License-Identifier: MIT

package sim

import (
	"fmt"
	"net/netip"
	"regexp"
	"testing"
	"time"

	"mesh.internal/mesh/vpn/vpntest"
)

// stage is a world with nodes that have names.
type stage struct {
	*World
	net *network
}

func (s *stage) must(err error) {
	if err != nil {
		s.judge.wrong("the scene cannot be played: %v", err)
	}
}

// clean is the link of every node of a scene: 10 ms, and nothing lost.
var clean = vpntest.Link{Delay: 10 * time.Millisecond}

// public starts a node on the internet that joins through another, unless that is nil.
func (s *stage) public(name string, through *Node) *Node {
	h := s.Net.Host(name)
	h.Attach(s.Net.Internet, s.net.public(), clean)
	return s.start(h, through)
}

// behind starts a node behind NAT boxes of these kinds, the farthest first.
func (s *stage) behind(name string, through *Node, kinds ...vpntest.Kind) *Node {
	seg := s.Net.Internet
	for _, k := range kinds {
		seg = s.net.nat(seg, k).Inside
	}
	return s.inside(name, through, s.net.nats[len(s.net.nats)-1])
}

// inside starts a node behind a NAT box that is there.
func (s *stage) inside(name string, through *Node, box *vpntest.NAT) *Node {
	h := s.Net.Host(name)
	h.Attach(box.Inside, s.net.inside(box), vpntest.Link{Delay: time.Millisecond})
	n := s.start(h, through)
	n.NATs = s.net.chain(box)
	return n
}

func (s *stage) start(h *vpntest.Host, through *Node) *Node {
	n, err := s.Node(h)
	s.must(err)
	if through != nil {
		n.Connect = []string{through.Name}
	}
	s.must(n.Start())
	if through != nil {
		s.must(Introduce(n, through))
	}
	return n
}

// apart cuts two nodes off each other.
func (s *stage) apart(a, b *Node) { s.Part([]*Node{a}, []*Node{b}) }

func (s *stage) together(a, b *Node) { s.Rejoin([]*Node{a}, []*Node{b}) }

// crash lets a node crash and be gone for a time.
func (s *stage) crash(n *Node, lost bool, gone time.Duration) {
	s.must(n.Crash(lost))
	s.Sleep(gone)
	s.must(n.Start())
}

func (s *stage) wantDirect(a, b *Node, want bool) {
	if got := s.Direct(a, b); got != want {
		s.judge.wrong("%s and %s send directly: %v, want %v", a.Name, b.Name, got, want)
	}
}

// scene is a scenario with a name. Where needs is not empty the nodes lack what it takes, and if it fails, it must be for that.
type scene struct {
	name  string
	needs string
	play  func(*stage)
}

const settle = 10 * time.Second

func scenes() []scene {
	all := []scene{
		{"two", "", func(s *stage) {
			a := s.public("a", nil)
			s.Talk(a, s.public("b", a), 0)
			s.Sleep(settle)
		}},
		{"large packets", "", func(s *stage) {
			a := s.public("a", nil)
			s.Talk(a, s.public("b", a), 1380)
			s.Sleep(settle)
		}},
		{"one relay", "", func(s *stage) {
			r := s.public("r", nil)
			a, b := s.public("a", r), s.public("b", r)
			s.apart(a, b)
			s.Talk(a, b, 0)
			s.Sleep(settle)
		}},
		{"three relays", "", func(s *stage) {
			var chain []*Node
			for i := range 5 {
				var through *Node
				if i > 0 {
					through = chain[i-1]
				}
				n := s.public(fmt.Sprintf("c%d", i), through)
				for _, far := range chain[:max(0, i-1)] {
					s.apart(n, far)
				}
				chain = append(chain, n)
			}
			s.Talk(chain[0], chain[4], 0)
			s.Sleep(2 * settle)
		}},
		{"a cut", "", func(s *stage) {
			r := s.public("r", nil)
			a, b := s.public("a", r), s.public("b", r)
			s.Talk(a, b, 0)
			s.Sleep(settle)
			s.apart(a, b)
			s.Sleep(settle)
			s.wantDirect(a, b, false)
			s.together(a, b)
			s.Sleep(30 * time.Second)
			s.wantDirect(a, b, true)
		}},
		{"a cut in one direction", "", func(s *stage) {
			r := s.public("r", nil)
			a, b := s.public("a", r), s.public("b", r)
			s.Talk(a, b, 0)
			s.Sleep(settle)
			s.Cut(a, b)
			s.Sleep(settle)
			s.Heal(a, b)
			s.Cut(b, a)
			s.Sleep(settle)
		}},
		{"the relay dies", "", func(s *stage) {
			r1 := s.public("r1", nil)
			r2 := s.public("r2", r1)
			a, b := s.public("a", r1), s.public("b", r2)
			s.apart(a, b)
			s.Talk(a, b, 0)
			s.Sleep(settle)
			s.crash(r1, false, settle)
			s.Sleep(settle)
			s.crash(r2, false, settle)
			s.Sleep(settle)
		}},
		{"the peer restarts", "", func(s *stage) {
			a := s.public("a", nil)
			b := s.public("b", a)
			s.Talk(a, b, 0)
			s.Sleep(settle)
			for _, n := range []*Node{a, b} { // one of them begins handshakes
				n.Stop()
				s.must(n.Start())
				s.Sleep(settle)
				s.crash(n, false, 30*time.Second)
				s.Sleep(settle)
			}
		}},
		{"a cable is out for a minute", "", func(s *stage) {
			a := s.public("a", nil)
			b := s.public("b", a)
			s.Talk(a, b, 0)
			s.Sleep(settle)
			b.Unplug(true)
			s.Sleep(time.Minute)
			b.Unplug(false)
			s.Sleep(settle)
		}},
		{"a NAT box is restarted", "", func(s *stage) {
			a := s.public("a", nil)
			b := s.behind("b", a, vpntest.PortRestricted)
			s.Talk(a, b, 0)
			s.Sleep(settle)
			s.Rebind(b.NATs[0], s.net.public())
			s.Sleep(settle)
		}},
		{"a mapping times out", "", func(s *stage) {
			a := s.public("a", nil)
			b := s.behind("b", a, vpntest.Kind{Filtering: vpntest.AddressAndPortDependent, Timeout: 30 * time.Second})
			c := s.Talk(a, b, 0)
			s.Sleep(settle)
			c.Pause(true)
			s.Sleep(5 * time.Minute)
			c.Pause(false)
			s.Sleep(settle)
		}},
		{"an address changes", "", func(s *stage) {
			a := s.public("a", nil)
			b := s.public("b", a)
			s.Talk(a, b, 0)
			s.Sleep(settle)
			b.Move(s.Net.Internet, s.net.public(), clean)
			s.Sleep(settle)
		}},
		{"both addresses change at once", "", func(s *stage) {
			r := s.public("r", nil)
			a, b := s.public("a", r), s.public("b", r)
			s.Talk(a, b, 0)
			s.Sleep(settle)
			a.Move(s.Net.Internet, s.net.public(), clean)
			b.Move(s.Net.Internet, s.net.public(), clean)
			s.Sleep(settle)
		}},
		{"an hour asleep", "", func(s *stage) {
			a := s.public("a", nil)
			b := s.behind("b", a, vpntest.PortRestricted)
			s.Talk(a, b, 0)
			s.Sleep(settle)
			for _, n := range []*Node{a, b} {
				s.quietHour(n)
				s.Sleep(settle)
			}
		}},
		{"a slow and a fast way", "", func(s *stage) { // a lossy link loses to a clean one
			r := s.public("r", nil)
			a, b := s.public("a", r), s.public("b", r)
			s.judge.lossyLinks()
			lossy := vpntest.Link{Loss: 0.3}
			s.Net.Pair(a.Host, b.Host, lossy)
			s.Net.Pair(b.Host, a.Host, lossy)
			c := s.Talk(a, b, 0)
			s.Sleep(3 * settle)
			sent, came := c.Count()
			s.Sleep(settle)
			sent2, came2 := c.Count()
			if rate := float64(came2-came) / float64(sent2-sent); rate < 0.98 {
				s.judge.wrong("%.0f %% of the packets come through although there is a way without loss", 100*rate)
			}
		}},
		{"large packets vanish", "too big told to the kernel", func(s *stage) {
			r := s.public("r", nil)
			a, b := s.public("a", r), s.public("b", r)
			c := s.Talk(a, b, 0)
			s.Sleep(settle)
			hole := vpntest.Link{MTU: 1300}
			s.Net.Pair(a.Host, b.Host, hole)
			s.Net.Pair(b.Host, a.Host, hole)
			c.Resize(1380)
			s.Sleep(settle)
		}},
		{"a lost disk", "", func(s *stage) {
			a := s.public("a", nil)
			b, c := s.public("b", a), s.public("c", a)
			s.Talk(a, b, 0)
			s.Sleep(settle)
			s.crash(c, true, settle)
			s.must(Introduce(c, a))
			s.crash(b, true, settle)
			s.must(Introduce(b, c))
			s.must(s.Calm())
		}},
		{"a clock was ahead by a year", "", func(s *stage) {
			a := s.public("a", nil)
			b := s.public("b", a)
			b.Stop()
			s.must(b.SkewClock(365 * 24 * time.Hour))
			s.must(b.Start())
			s.must(Introduce(b, a))
			s.Talk(a, b, 0)
			s.Sleep(settle)
			s.crash(b, true, settle)
			s.must(Introduce(b, a))
			s.Sleep(settle)
			s.must(s.Calm())
		}},
		{"two halves", "", func(s *stage) {
			var all []*Node
			for i := range 6 {
				var through *Node
				if i > 0 {
					through = all[0]
				}
				all = append(all, s.public(fmt.Sprintf("h%d", i), through))
			}
			s.Talk(all[0], all[5], 0)
			s.Sleep(settle)
			s.Part(all[:3], all[3:])
			s.Sleep(time.Minute)
			all[1].Move(s.Net.Internet, s.net.public(), clean)
			all[4].Move(s.Net.Internet, s.net.public(), clean)
			s.Sleep(settle)
			s.Rejoin(all[:3], all[3:])
			s.must(s.Calm())
		}},
		{"a stranger replays", "", func(s *stage) {
			a := s.public("a", nil)
			b := s.public("b", a)
			x := s.Stranger(s.net.public())
			s.Talk(a, b, 0)
			for range 20 {
				s.Sleep(settle / 10)
				x.Replay()
			}
		}},
		{"sources are forged", "", func(s *stage) {
			a := s.public("a", nil)
			b, c := s.public("b", a), s.public("c", a)
			s.Talk(a, b, 0)
			s.Talk(a, c, 0)
			for range 20 {
				s.Sleep(settle / 10)
				c.Forge(b, a)
				a.Forge(b, c)
			}
		}},
		{"one LAN", "", func(s *stage) {
			r := s.public("r", nil)
			a := s.behind("a", r, vpntest.Symmetric)
			b := s.inside("b", r, a.NATs[0])
			s.Talk(a, b, 0)
			s.Sleep(settle)
			s.wantDirect(a, b, true)
			a.NATs[0].SetLink(func(l *vpntest.Link) { l.Down = true })
			s.judge.event("unplug", "their uplink")
			s.Sleep(time.Minute)
		}},
		{"a port is forwarded", "", func(s *stage) {
			r := s.public("r", nil)
			box := s.net.nat(s.Net.Internet, vpntest.Symmetric)
			h := s.Net.Host("a")
			at := s.net.inside(box)
			h.Attach(box.Inside, at, clean)
			box.Forward(Port, netip.AddrPortFrom(at, Port))
			a, err := s.Node(h)
			s.must(err)
			a.Public = []string{netip.AddrPortFrom(box.Addr(), Port).String()}
			a.Connect = []string{"r"}
			s.must(a.Start())
			s.must(Introduce(a, r))
			b := s.behind("b", r, vpntest.Symmetric)
			s.Talk(a, b, 0)
			s.Sleep(settle)
			s.wantDirect(a, b, true)
		}},
		{"UDP is blocked", "", func(s *stage) {
			r := s.public("r", nil)
			a := s.behind("a", r, vpntest.Kind{NoUDP: true})
			b := s.behind("b", r, vpntest.PortRestricted)
			c := s.behind("c", r, vpntest.Kind{NoUDP: true})
			s.Talk(a, r, 0)
			s.Talk(a, b, 0)
			s.Talk(a, c, 0)
			s.Sleep(3 * settle)
			s.wantDirect(a, r, false)
			a.NATs[0].Change(func(k *vpntest.Kind) { k.NoUDP = false })
			s.judge.event("heal", "UDP works")
			s.Sleep(6 * settle)
			s.wantDirect(a, r, true)
			s.wantDirect(a, b, true)
			a.NATs[0].Change(func(k *vpntest.Kind) { k.NoUDP = true })
			s.judge.event("cut", "UDP")
			s.Sleep(3 * settle)
		}},
		{"joining behind a NAT", "", func(s *stage) {
			r := s.public("r", nil)
			a := s.behind("a", r, vpntest.PortRestricted)
			s.Sleep(settle)
			b := s.behind("b", a, vpntest.PortRestricted)
			s.must(Introduce(b, r)) // an invitation names members that can be reached
			s.Talk(a, b, 0)
			s.Sleep(settle)
		}},
	}
	kinds := []struct {
		name string
		vpntest.Kind
	}{{"full cone", vpntest.FullCone}, {"address-restricted", vpntest.AddressRestricted}, {"port-restricted", vpntest.PortRestricted}, {"symmetric", vpntest.Symmetric}}
	for i, x := range kinds {
		for _, y := range kinds[i:] {
			all = append(all, scene{"NAT: " + x.name + " and " + y.name, "", func(s *stage) {
				r := s.public("r", nil)
				a, b := s.behind("a", r, x.Kind), s.behind("b", r, y.Kind)
				s.Talk(a, b, 0)
				s.Sleep(3 * settle)
				s.wantDirect(a, b, punchable(x.Kind, y.Kind))
			}})
		}
	}
	return append(all,
		scene{"NAT: hairpin", "", func(s *stage) {
			r := s.public("r", nil)
			outer := s.net.nat(s.Net.Internet, vpntest.Kind{Hairpin: true})
			a := s.inside("a", r, s.net.nat(outer.Inside, vpntest.FullCone))
			b := s.inside("b", r, s.net.nat(outer.Inside, vpntest.FullCone))
			s.Talk(a, b, 0)
			s.Sleep(3 * settle)
			s.wantDirect(a, b, true)
		}},
		scene{"NAT: two in a row", "", func(s *stage) {
			r := s.public("r", nil)
			a := s.behind("a", r, vpntest.PortRestricted, vpntest.FullCone)
			b := s.behind("b", r, vpntest.PortRestricted, vpntest.PortRestricted)
			s.Talk(a, b, 0)
			s.Sleep(3 * settle)
			s.wantDirect(a, b, true)
		}},
	)
}

// punchable reports whether two behind NAT boxes of these kinds can send to each other directly, once each knows what the
// other's address looks like to a third: both mappings must stay what they are for a new destination, or the filter of
// the one that stays must let in other ports of the address it has sent to (RFC 4787 sections 4.1 and 5; RFC 5128 section 3.3).
func punchable(x, y vpntest.Kind) bool {
	switch {
	case x.Mapping == vpntest.EndpointIndependent && y.Mapping == vpntest.EndpointIndependent:
		return true
	case x.Mapping == vpntest.EndpointIndependent:
		return x.Filtering != vpntest.AddressAndPortDependent
	case y.Mapping == vpntest.EndpointIndependent:
		return y.Filtering != vpntest.AddressAndPortDependent
	}
	return false
}

// lacking matches what is wrong where nodes do not find a way.
var lacking = regexp.MustCompile("nothing of .* reaches|send directly: false|% of the packets")

// TestScenes plays every scene.
func TestScenes(t *testing.T) {
	dir := fastDir(t)
	for i, c := range scenes() {
		t.Run(c.name, func(t *testing.T) {
			w, err := run(t, Config{Seed: uint64(i), Dir: fmt.Sprintf("%s/%d", dir, i), Hops: hops}, func(w *World) error {
				s := &stage{w, &network{w: w}}
				c.play(s)
				return nil
			})
			switch {
			case c.needs == "" && err != nil:
				t.Errorf("%v\nwhat happened last:\n%s", err, w.Trace())
			case c.needs != "" && err == nil:
				t.Logf("passes, although it is said to need %s", c.needs)
			case c.needs != "" && !lacking.MatchString(err.Error()):
				t.Errorf("lacks %s, but fails with: %v", c.needs, err)
			case err != nil:
				t.Logf("lacks %s:\n%v", c.needs, err)
			}
		})
	}
}
