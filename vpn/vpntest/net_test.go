// SPDX-License-Identifier: MIT

package vpntest

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

var lan = netip.MustParsePrefix("192.168.1.0/24")

// socket is a bind with what has arrived at it.
type socket struct {
	*Bind
	t   *testing.T
	got chan got
}

type got struct {
	from netip.AddrPort
	text string
	at   time.Time
}

func open(t *testing.T, b *Bind) *socket {
	t.Helper()
	fns, _, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	s := &socket{b, t, make(chan got, 10000)}
	go func() {
		bufs, sizes, eps := [][]byte{make([]byte, 2000)}, make([]int, 1), make([]conn.Endpoint, 1)
		for {
			if _, err := fns[0](bufs, sizes, eps); err != nil {
				return
			}
			s.got <- got{eps[0].(*conn.StdNetEndpoint).AddrPort, string(bufs[0][:sizes[0]]), time.Now()}
		}
	}()
	t.Cleanup(func() { b.Close() })
	return s
}

func (s *socket) send(to netip.AddrPort, text string) error {
	return s.Send([][]byte{[]byte(text)}, &conn.StdNetEndpoint{AddrPort: to})
}

// take returns what has arrived within a second.
func (s *socket) take() (all []got) {
	<-time.After(time.Second)
	synctest.Wait()
	for len(s.got) > 0 {
		all = append(all, <-s.got)
	}
	return all
}

func on(n *Net, addr string, port uint16, link Link) *Bind {
	h := n.Host(addr)
	h.Attach(n.Internet, netip.MustParseAddr(addr), link)
	return h.Bind(port, 1)
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// TestNAT shows for every kind how it maps and what it lets in: RFC 4787 sections 4.1 and 5.
func TestNAT(t *testing.T) {
	for _, c := range []struct {
		name                 string
		kind                 Kind
		same                 bool // the second server sees the same mapping
		otherPort, otherAddr bool // who was not sent to gets in
	}{
		{"full cone", FullCone, true, true, true},
		{"address-restricted", AddressRestricted, true, true, false},
		{"port-restricted", PortRestricted, true, false, false},
		{"symmetric", Symmetric, false, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := NewNet()
				a := open(t, on(n, "198.18.0.11", 7000, Link{}))
				b, other := open(t, a.host.Bind(7001, 1)), open(t, on(n, "198.18.0.12", 7000, Link{}))
				box := n.Internet.NAT(netip.MustParseAddr("198.18.0.1"), Link{}, c.kind, lan)
				h := n.Host("inside")
				h.Attach(box.Inside, netip.MustParseAddr("192.168.1.2"), Link{})
				in := open(t, h.Bind(5000, 1))
				in.send(ap("198.18.0.11:7000"), "hello")
				first := a.take()
				if len(first) != 1 || first[0].text != "hello" || first[0].from.Addr() != box.Addr() {
					t.Fatalf("the server got %v", first)
				}
				a.send(first[0].from, "answer")
				b.send(first[0].from, "other port")
				other.send(first[0].from, "other address")
				want := []string{"answer"}
				if c.otherPort {
					want = append(want, "other port")
				}
				if c.otherAddr {
					want = append(want, "other address")
				}
				var texts []string
				for _, g := range in.take() {
					texts = append(texts, g.text)
				}
				if !slices.Equal(texts, want) {
					t.Errorf("got in: %q, want %q", texts, want)
				}
				in.send(ap("198.18.0.12:7000"), "hello")
				if second := other.take(); len(second) != 1 || (second[0].from == first[0].from) != c.same {
					t.Errorf("the first server sees %v, the second %v", first, second)
				}
				box.Rebind(netip.MustParseAddr("198.18.0.2"))
				a.send(first[0].from, "late")
				a.send(netip.AddrPortFrom(box.Addr(), first[0].from.Port()), "late")
				if g := in.take(); len(g) != 0 {
					t.Errorf("after it was restarted it let in %v", g)
				}
				in.send(ap("198.18.0.11:7000"), "hello")
				again := a.take()
				if len(again) != 1 || again[0].from.Addr() != netip.MustParseAddr("198.18.0.2") {
					t.Fatalf("the server got %v", again)
				}
				<-time.After(2 * time.Minute)
				a.send(again[0].from, "late")
				if g := in.take(); len(g) != 0 {
					t.Errorf("after two minutes it let in %v", g)
				}
			})
		})
	}
}

// TestInside shows what two behind one box can do, by outside addresses and by inside ones, and a forwarded port.
func TestInside(t *testing.T) {
	for _, hairpin := range []bool{false, true} {
		t.Run(fmt.Sprint(hairpin), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := NewNet()
				server := open(t, on(n, "198.18.0.11", 7000, Link{}))
				outer := n.Internet.NAT(netip.MustParseAddr("198.18.0.1"), Link{}, Kind{Hairpin: hairpin}, netip.MustParsePrefix("192.168.50.0/24"))
				inner := outer.Inside.NAT(netip.MustParseAddr("192.168.50.9"), Link{}, FullCone, lan)
				if inner.Outer() != outer || outer.Outer() != nil {
					t.Error("who is behind whom is not right")
				}
				far, near, other := n.Host("far"), n.Host("near"), n.Host("other")
				far.Attach(inner.Inside, netip.MustParseAddr("192.168.1.2"), Link{}) // behind both
				near.Attach(outer.Inside, netip.MustParseAddr("192.168.50.2"), Link{})
				other.Attach(outer.Inside, netip.MustParseAddr("192.168.50.3"), Link{})
				a, b, c := open(t, far.Bind(1, 1)), open(t, near.Bind(2, 1)), open(t, other.Bind(3, 1))
				a.send(ap("198.18.0.11:7000"), "far")
				b.send(ap("198.18.0.11:7000"), "near")
				seen := server.take()
				if len(seen) != 2 {
					t.Fatalf("the server got %v", seen)
				}
				a.send(seen[1].from, "hairpin")
				if g := b.take(); (len(g) == 1) != hairpin {
					t.Errorf("by the outside address got %v", g)
				}
				a.send(ap("192.168.50.3:3"), "inside")
				if g := c.take(); len(g) != 1 || g[0].from != ap("192.168.50.9:1") {
					t.Errorf("by the inside address got %v", g)
				}
				if err := b.send(ap("192.168.1.2:1"), "no way in"); err != nil {
					t.Error(err)
				}
				if g := a.take(); len(g) != 0 {
					t.Errorf("from outside by an inside address got %v", g)
				}
				if h := n.Reaches(server.host, ap("198.18.0.1:9"), false); h != nil {
					t.Errorf("a port that is not forwarded reaches %s", h.Name)
				}
				outer.Forward(9, ap("192.168.50.9:9"))
				inner.Forward(9, ap("192.168.1.2:1"))
				if h := n.Reaches(server.host, ap("198.18.0.1:9"), false); h != far {
					t.Error("a forwarded port does not reach who it is for")
				}
				server.send(ap("198.18.0.1:9"), "forwarded")
				if g := a.take(); len(g) != 1 || g[0].text != "forwarded" {
					t.Errorf("by a forwarded port got %v", g)
				}
				if n.Reaches(far, ap("198.18.0.11:7000"), false) != server.host || n.Reaches(server.host, ap("192.168.50.2:2"), false) != nil || n.Reaches(near, ap("192.168.50.3:3"), false) != other {
					t.Error("Reaches is wrong")
				}
				outer.Kind.NoUDP = true
				a.send(ap("198.18.0.11:7000"), "blocked")
				if g := server.take(); len(g) != 0 || n.Reaches(far, ap("198.18.0.11:7000"), false) != nil {
					t.Errorf("where UDP is blocked got %v", g)
				}
			})
		})
	}
}

// pair is two hosts on the internet with one link each.
func pair(t *testing.T, n *Net, la, lb Link) (a, b *socket) {
	return open(t, on(n, "198.18.0.1", 1, la)), open(t, on(n, "198.18.0.2", 2, lb))
}

func TestLinks(t *testing.T) {
	const many = 900 // what is repeated too fits the socket's buffer
	for _, c := range []struct {
		name   string
		la, lb Link
		check  func(t *testing.T, start time.Time, all []got)
	}{
		{"delay", Link{Delay: 10 * time.Millisecond}, Link{Delay: 5 * time.Millisecond}, func(t *testing.T, start time.Time, all []got) {
			if len(all) != many || all[0].at.Sub(start) != 15*time.Millisecond || !inOrder(all) {
				t.Errorf("%d, the first after %s", len(all), all[0].at.Sub(start))
			}
		}},
		{"jitter keeps the order", Link{Delay: time.Millisecond, Jitter: 20 * time.Millisecond}, Link{}, func(t *testing.T, start time.Time, all []got) {
			if last := all[many-1].at.Sub(start); len(all) != many || !inOrder(all) || last < 20*time.Millisecond || last > 21*time.Millisecond {
				t.Errorf("%d, in order: %v, the last after %s", len(all), inOrder(all), last)
			}
		}},
		{"loss", Link{Loss: 0.1}, Link{Loss: 0.1}, func(t *testing.T, _ time.Time, all []got) {
			if len(all) < many*75/100 || len(all) > many*87/100 || !inOrder(all) {
				t.Errorf("%d of %d, want 81 %%", len(all), many)
			}
		}},
		{"duplicates", Link{Delay: time.Millisecond, Duplicate: 0.1}, Link{}, func(t *testing.T, _ time.Time, all []got) {
			if len(all) < many*107/100 || len(all) > many*114/100 {
				t.Errorf("%d of %d, want 110 %%", len(all), many)
			}
		}},
		{"reordering", Link{Delay: 10 * time.Millisecond, Reorder: 0.1}, Link{}, func(t *testing.T, _ time.Time, all []got) {
			if len(all) != many || inOrder(all) {
				t.Errorf("%d, in order: %v", len(all), inOrder(all))
			}
		}},
		{"a rate", Link{Rate: 100_000}, Link{}, func(t *testing.T, start time.Time, all []got) { // 32 bytes each: 320 µs
			if got := all[len(all)-1].at.Sub(start); len(all) < 300 || len(all) > 320 || got < queueFor-time.Millisecond || got > queueFor+time.Millisecond {
				t.Errorf("%d came, the last after %s", len(all), got)
			}
		}},
		{"down", Link{Down: true}, Link{}, func(t *testing.T, _ time.Time, all []got) {
			if len(all) != 0 {
				t.Errorf("%d came", len(all))
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var before []got
			for range 2 { // the same seed: the same
				synctest.Test(t, func(t *testing.T) {
					n := NewNet()
					n.Seed = 7
					a, b := pair(t, n, c.la, c.lb)
					start := time.Now()
					for i := range many {
						a.send(ap("198.18.0.2:2"), fmt.Sprintf("%04d", i))
						synctest.Wait()
					}
					all := b.take()
					c.check(t, start, all)
					if before != nil && !slices.Equal(before, all) {
						t.Error("the same seed, and another outcome")
					}
					before = all
				})
			}
		})
	}
}

func inOrder(all []got) bool {
	return slices.IsSortedFunc(all, func(a, b got) int { return strings.Compare(a.text, b.text) })
}

// TestSizes shows what happens to datagrams that are too large, and to those that lead nowhere.
func TestSizes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNet()
		a, b := pair(t, n, Link{MTU: 1400}, Link{MTU: 1300})
		fits, large, vast := string(make([]byte, 1300-28)), string(make([]byte, 1301-28)), string(make([]byte, 1401-28))
		to := ap("198.18.0.2:2")
		for _, c := range []struct {
			text string
			err  error
			got  int
		}{{fits, nil, 1}, {large, nil, 0}, {vast, syscall.EMSGSIZE, 0}} {
			if err := a.send(to, c.text); !errors.Is(err, c.err) {
				t.Errorf("%d bytes: %v, want %v", len(c.text), err, c.err)
			}
			if g := b.take(); len(g) != c.got {
				t.Errorf("%d bytes: %d came", len(c.text), len(g))
			}
		}
		n.Pair(a.host, b.host, Link{MTU: 1299})
		a.send(to, fits)
		n.Pair(a.host, b.host, Link{Down: true})
		a.send(to, "cut")
		if g := b.take(); len(g) != 0 || n.Reaches(a.host, to, false) != nil || n.Reaches(b.host, ap("198.18.0.1:1"), false) != a.host {
			t.Errorf("through a hole and a cut came %v", g)
		}
		b.send(ap("198.18.0.1:1"), "the other way")
		if g := a.take(); len(g) != 1 {
			t.Error("a cut in one direction cuts both")
		}
		n.Pair(a.host, b.host, Link{Delay: 300 * time.Millisecond})
		start := time.Now()
		a.send(to, "slow")
		if g := b.take(); len(g) != 1 || g[0].at.Sub(start) != 300*time.Millisecond {
			t.Errorf("through a slow way came %v", g)
		}
		if err := a.send(ap("[2001:db8::1]:1"), "x"); !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("without IPv6: %v", err)
		}
		a.host.Detach()
		if err := a.send(to, "x"); !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("without a cable: %v", err)
		}
	})
}
