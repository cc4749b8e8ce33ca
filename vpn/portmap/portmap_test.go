// SPDX-License-Identifier: MIT

package portmap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"
)

var (
	home       = Gateway{netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("192.168.1.7")}
	cafe       = Gateway{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.9")}
	errRefused = errors.New("refused")
)

// double is a client without a network. What it is asked is written down as protocol, deed, time.
type double struct {
	Protocol
	gw  Gateway
	log func(string)
	gateway
}

// gateway is how a double's gateway behaves; nil functions succeed.
type gateway struct {
	speaks func() error
	grants func(want) (grant, error)
}

func (d double) name() Protocol { return d.Protocol }

func (d double) probe(context.Context) error {
	if d.speaks == nil {
		return nil
	}
	return d.speaks()
}

func (d double) open(_ context.Context, w want) (grant, error) {
	d.log(fmt.Sprintf("%s open %s", d.Protocol, network(w.tcp)))
	if d.grants != nil {
		return d.grants(w)
	}
	return grant{netip.MustParseAddrPort("203.0.113.5:7655"), time.Hour}, nil
}

func (d double) close(_ context.Context, w want) error {
	d.log(fmt.Sprintf("%s close %s at %s", d.Protocol, network(w.tcp), d.gw.Addr))
	return nil
}

// bench runs a Mapper against doubles in virtual time.
type bench struct {
	*Mapper
	mu       sync.Mutex
	began    time.Time
	did      []string
	changes  int
	gateways []Gateway
	stop     func()
}

func newBench(t *testing.T, tcp bool, behaviour map[Protocol]gateway) *bench {
	b := &bench{began: time.Now(), gateways: []Gateway{home}}
	b.Mapper = New(Config{Port: 7655, TCP: tcp, Log: slog.New(slog.DiscardHandler),
		Gateways: func() ([]Gateway, error) { b.mu.Lock(); defer b.mu.Unlock(); return b.gateways, nil },
		Changed:  func() { b.mu.Lock(); defer b.mu.Unlock(); b.changes++ },
	})
	b.listen = func(context.Context) {}
	b.clients = func(gw Gateway) (out []client) {
		for _, p := range []Protocol{PCP, NATPMP, UPnP} {
			if g, ok := behaviour[p]; ok {
				out = append(out, double{p, gw, b.note, g})
			}
		}
		return out
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { b.Run(ctx); close(done) }()
	b.stop = func() { cancel(); <-done }
	return b
}

func (b *bench) note(s string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.did = append(b.did, fmt.Sprintf("%v %s", time.Since(b.began).Round(time.Second), s))
}

// after lets time pass and returns what was done in it.
func (b *bench) after(d time.Duration) []string {
	<-time.After(d) // virtual
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	did := b.did
	b.did = nil
	return did
}

func equal(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func TestRenewal(t *testing.T) {
	for _, c := range []struct {
		lifetime time.Duration
		want     []string // what happens after the first time, in 21 minutes
	}{
		{time.Hour, []string{"10m0s pcp open udp", "10m0s pcp open tcp", "20m0s pcp open udp", "20m0s pcp open tcp"}},
		{14 * time.Minute, []string{"7m0s pcp open udp", "7m0s pcp open tcp", "14m0s pcp open udp", "14m0s pcp open tcp", "21m0s pcp open udp", "21m0s pcp open tcp"}},
		{0, []string{"10m0s pcp open udp", "10m0s pcp open tcp", "20m0s pcp open udp", "20m0s pcp open tcp"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, true, map[Protocol]gateway{UPnP: {}, PCP: {grants: func(w want) (grant, error) {
				return grant{netip.MustParseAddrPort("203.0.113.5:7655"), c.lifetime}, nil
			}}})
			equal(t, "at first", b.after(time.Second), []string{"0s pcp open udp", "0s pcp open tcp"})
			m := b.Mapped()
			if len(m) != 2 || m[0].TCP || !m[1].TCP || m[0].External != netip.MustParseAddrPort("203.0.113.5:7655") ||
				m[0].Internal != netip.MustParseAddrPort("192.168.1.7:7655") || m[0].Protocol != PCP || !m[0].Public() {
				t.Errorf("mapped: %+v", m)
			}
			equal(t, "renewed", b.after(21*time.Minute), c.want)
			if b.changes != 1 {
				t.Errorf("%d changes, want 1", b.changes)
			}
			b.stop()
			if did := b.after(0); len(did) != 2 || len(b.Mapped()) != 0 {
				t.Errorf("at the end: %q, and %v is mapped", did, b.Mapped())
			}
		})
	}
	synctest.Test(t, func(t *testing.T) { // a gateway cannot keep us busy
		b := newBench(t, false, map[Protocol]gateway{PCP: {grants: func(w want) (grant, error) {
			return grant{netip.MustParseAddrPort("203.0.113.5:7655"), time.Second}, nil
		}}})
		if did := b.after(10 * time.Minute); len(did) > 21 {
			t.Errorf("asked %d times in 10 minutes", len(did))
		}
		b.stop()
	})
}

// TestFallback has the preferred protocol refuse, a gateway that refuses all, and one that stops answering.
func TestFallback(t *testing.T) {
	no := gateway{speaks: func() error { return errRefused }}
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, false, map[Protocol]gateway{PCP: {grants: func(want) (grant, error) { return grant{}, errRefused }}, NATPMP: no, UPnP: {}})
		equal(t, "asked", b.after(time.Second), []string{"0s pcp open udp", "0s upnp open udp"})
		b.stop()
		equal(t, "given back", b.after(0), []string{"1s upnp close udp at 192.168.1.1"})
	})
	synctest.Test(t, func(t *testing.T) {
		var tries atomic.Int64
		b := newBench(t, false, map[Protocol]gateway{UPnP: {speaks: func() error { tries.Add(1); return errRefused }}})
		for _, c := range []struct {
			after time.Duration
			want  int64
		}{{time.Second, 1}, {time.Minute, 2}, {2 * time.Minute, 3}, {4 * time.Minute, 4}, {24 * time.Hour, 30}} {
			if b.after(c.after); tries.Load() != c.want {
				t.Errorf("%v later: %d tries, want %d", c.after, tries.Load(), c.want)
			}
		}
		b.stop()
		equal(t, "given back", b.after(0), nil)
	})
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		fails := func() error {
			if down.Load() {
				return errRefused
			}
			return nil
		}
		b := newBench(t, false, map[Protocol]gateway{PCP: {speaks: fails, grants: func(want) (grant, error) {
			return grant{netip.MustParseAddrPort("203.0.113.5:7655"), time.Hour}, fails()
		}}})
		b.after(time.Second)
		down.Store(true)
		if b.after(30 * time.Minute); len(b.Mapped()) != 1 {
			t.Error("a mapping that has not expired is gone")
		}
		if b.after(31 * time.Minute); len(b.Mapped()) != 0 {
			t.Error("a mapping that has expired is there")
		}
		down.Store(false)
		if b.after(time.Hour); len(b.Mapped()) != 1 {
			t.Error("the mapping has not come back")
		}
		b.stop()
	})
}

// TestMove has the machine move from one network to another, with a burst of Pokes.
func TestMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, false, map[Protocol]gateway{PCP: {}})
		equal(t, "at home", b.after(30*time.Second), []string{"0s pcp open udp"})
		b.mu.Lock()
		b.gateways = []Gateway{cafe}
		b.mu.Unlock()
		for range 10 {
			b.Poke()
		}
		did := b.after(5 * time.Second)
		for i := range did {
			_, did[i], _ = strings.Cut(did[i], " ") // not the time, which is random
		}
		slices.Sort(did)
		equal(t, "moved", did, []string{"pcp close udp at 192.168.1.1", "pcp open udp"})
		if m := b.Mapped(); len(m) != 1 || m[0].Internal.Addr() != cafe.Local {
			t.Errorf("mapped: %+v", m)
		}
		for range 60 {
			b.Poke()
			b.after(time.Second)
		}
		b.mu.Lock()
		b.did = nil
		b.mu.Unlock()
		n := 0
		for range 60 {
			b.Poke()
			n += len(b.after(time.Second))
		}
		if n < 4 || n > 7 {
			t.Errorf("60 pokes in a minute renewed %d times, want about 6", n)
		}
		b.stop()
	})
}

// TestNonsense has gateways name external addresses.
func TestNonsense(t *testing.T) {
	for external, is := range map[string]struct{ taken, public bool }{
		"203.0.113.5:7655":     {true, true},
		"203.0.113.5:40000":    {true, true},
		"192.168.0.9:7655":     {true, false}, // behind another NAT
		"100.64.3.4:7655":      {true, false},
		"127.0.0.1:7655":       {},
		"0.0.0.0:7655":         {},
		"0.1.2.3:7655":         {},
		"224.0.0.1:7655":       {},
		"255.255.255.255:7655": {},
		"240.0.0.1:7655":       {},
		"169.254.1.1:7655":     {},
		"203.0.113.5:0":        {},
		"203.0.113.5:53":       {},
		"[2001:db8::1]:7655":   {},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, false, map[Protocol]gateway{PCP: {grants: func(want) (grant, error) {
				return grant{netip.MustParseAddrPort(external), time.Hour}, nil
			}}})
			b.after(time.Second)
			m := b.Mapped()
			if len(m) == 1 != is.taken || len(m) == 1 && m[0].Public() != is.public {
				t.Errorf("%s: mapped %+v", external, m)
			}
			b.stop()
		})
	}
}

// TestTame has a gateway write to the terminal.
func TestTame(t *testing.T) {
	err := tame(errors.New("\x1b]0;owned\a" + strings.Repeat("€", 1000)))
	if s := err.Error(); strings.ContainsAny(s, "\x1b\a") || len(s) > 210 || !utf8.ValidString(s) {
		t.Errorf("%q", s)
	}
}
