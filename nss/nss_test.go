// SPDX-License-Identifier: MIT

package nss

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mesh.internal/mesh/nss/leaf"
)

func set(n int) Set {
	s := Set{Created: time.Unix(1800000000, 5), Revision: 42}
	for i := range n {
		name := fmt.Sprintf("host%d", i)
		s.Hosts = append(s.Hosts, Host{Name: name + ".mesh.internal", Aliases: []string{name},
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0xfd, 12: byte(i >> 24), 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})}})
	}
	return s
}

func write(t testing.TB, s Set) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "hosts.db")
	if err := WriteFile(p, s); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestLookup(t *testing.T) {
	for _, n := range []int{0, 1, 3, 10, 100, 10000} {
		s := set(n)
		p := write(t, s)
		got, err := ReadFile(p)
		if err != nil || len(got.Hosts) != n || got.Revision != 42 || !got.Created.Equal(s.Created) || n > 0 && !reflect.DeepEqual(got.Hosts, s.Hosts) {
			t.Fatalf("%d hosts came back as %d, %v", n, len(got.Hosts), err)
		}
		for i := 0; i < n; i += 1 + n/500 {
			h := s.Hosts[i]
			for _, q := range []string{h.Name, strings.ToUpper(h.Name) + ".", h.Aliases[0]} {
				if g, ok, err := LookupName(p, q); !ok || err != nil || !reflect.DeepEqual(g, h) {
					t.Fatalf("%d: %s is %v %v %v", n, q, g, ok, err)
				}
			}
			for _, a := range h.Addrs {
				if g, ok, err := LookupAddr(p, a); !ok || err != nil || g.Name != h.Name {
					t.Fatalf("%d: %s leads to %v %v %v", n, a, g, ok, err)
				}
			}
		}
		for i := range 1000 {
			if g, ok, err := LookupName(p, fmt.Sprintf("absent%d", i)); ok || err != nil {
				t.Fatalf("absent%d is %v %v", i, g, err)
			}
		}
		if g, ok, err := LookupAddr(p, netip.MustParseAddr("192.0.2.1")); ok || err != nil {
			t.Fatal(g, err)
		}
	}
}

func TestGroups(t *testing.T) {
	for _, hosts := range []int{0, 2, 100} {
		s := set(hosts)
		for _, members := range []int{0, 1, 100, 1000} {
			g := Group{Name: fmt.Sprintf("group%d", members)}
			for i := range members {
				g.Members = append(g.Members, fmt.Sprintf("host%d.mesh.internal", i))
			}
			s.Groups = append(s.Groups, g)
		}
		p := write(t, s)
		if got, err := ReadFile(p); err != nil || !reflect.DeepEqual(got.Groups, s.Groups) || len(got.Hosts) != hosts {
			t.Fatalf("%d hosts: read %d hosts, %d groups, %v", hosts, len(got.Hosts), len(got.Groups), err)
		}
		for _, g := range s.Groups {
			if got, ok, err := LookupGroup(p, strings.ToUpper(g.Name)); !ok || err != nil || !reflect.DeepEqual(got, g) {
				t.Errorf("%s: %d members, %v, %v", g.Name, len(got.Members), ok, err)
			}
			if _, ok, err := LookupName(p, g.Name); ok || err != nil {
				t.Errorf("%s is a host too, %v", g.Name, err)
			}
		}
		if _, ok, err := LookupGroup(p, "host1"); ok || err != nil {
			t.Errorf("a host is a group too, %v", err)
		}
	}
}

// TestBounds holds what a look-up costs to what docs/snapshot.md promises: copies beside most names of a large
// mesh, and a small one in one read.
func TestBounds(t *testing.T) {
	b, err := Encode(set(20000))
	if err != nil {
		t.Fatal(err)
	}
	hosts := le.Uint64(b[80:])
	stride, buckets := int(le.Uint32(b[108:])), int(le.Uint32(b[48:]))
	slots, copied := 0, 0
	for i := range buckets {
		l := b[int(le.Uint64(b[64:]))+i*stride:]
		for s := range leaf.LineSlots {
			if at := uint64(le.Uint32(l[s*8+4:])) * 8; at != 0 {
				slots++
				if at < hosts {
					copied++
				}
			}
		}
	}
	t.Logf("%d bytes a host; %d of %d names have their record in their bucket", len(b)/20000, copied, slots)
	if slots != 40000 || copied < slots*85/100 || len(b) > 20000*400 {
		t.Errorf("%d slots, %d copies, %d bytes", slots, copied, len(b))
	}
	if names, _ := Encode(set(20)); le.Uint32(names[108:]) != leaf.LineSize || len(names) > leaf.MaxRecord {
		t.Errorf("20 hosts take %d bytes, more than one read", len(names))
	}
}

func TestFirstHostHasIt(t *testing.T) {
	a := netip.MustParseAddr("10.0.0.1")
	p := write(t, Set{Hosts: []Host{{Name: "a", Aliases: []string{"x", "x"}, Addrs: []netip.Addr{a}}, {Name: "b", Aliases: []string{"x"}, Addrs: []netip.Addr{a}}}})
	if h, _, _ := LookupName(p, "x"); h.Name != "a" || len(h.Aliases) != 1 {
		t.Error(h)
	}
	if h, _, _ := LookupName(p, "b"); h.Name != "b" || len(h.Aliases) != 0 {
		t.Error(h)
	}
	if h, _, _ := LookupAddr(p, a); h.Name != "a" {
		t.Error(h)
	}
}

// TestManyWantOne holds look-ups in snapshots of hosts that want each other's names and addresses against the rule.
func TestManyWantOne(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	name := func() string { return fmt.Sprint("n", rng.IntN(40)) }
	var w Writer
	p := filepath.Join(t.TempDir(), "hosts.db")
	for try := range 200 {
		var s Set
		for range rng.IntN(80) {
			h := Host{Name: name()}
			for range rng.IntN(4) {
				h.Aliases = append(h.Aliases, name())
			}
			for range rng.IntN(3) {
				a := netip.AddrFrom4([4]byte{10, 0, 0, byte(rng.IntN(40))})
				if h.Addrs = append(h.Addrs, a); rng.IntN(3) == 0 {
					h.Shared = append(h.Shared, a)
				}
			}
			if rng.IntN(2) == 0 {
				if err := h.Prepare(); err != nil {
					t.Fatal(err)
				}
			}
			s.Hosts = append(s.Hosts, h)
		}
		s.Groups = []Group{{Name: "n1", Members: []string{"n2"}}}
		names, addrs := map[string]int{}, map[netip.Addr]int{}
		for i, h := range s.Hosts {
			for _, n := range append([]string{h.Name}, h.Aliases...) {
				if _, ok := names[n]; !ok {
					names[n] = i
				}
			}
			for _, a := range h.Addrs {
				if _, ok := addrs[a]; !ok && !slices.Contains(h.Shared, a) {
					addrs[a] = i
				}
			}
		}
		if err := w.WriteFile(p, s); err != nil {
			t.Fatal(err)
		}
		for i := range 41 {
			n := fmt.Sprint("n", i)
			h, ok, err := LookupName(p, n)
			if at, want := names[n]; err != nil || ok != want {
				t.Fatalf("try %d: %s: %v %v, want %v", try, n, ok, err, want)
			} else if want {
				w := s.Hosts[at]
				aliases := slices.DeleteFunc(slices.Clone(w.Aliases), func(n string) bool { return n == w.Name || names[n] != at })
				for i, n := range aliases {
					if slices.Contains(aliases[:i], n) {
						aliases[i] = ""
					}
				}
				aliases = slices.DeleteFunc(aliases, func(n string) bool { return n == "" })
				if h.Name != w.Name || !slices.Equal(h.Aliases, aliases) || !slices.Equal(h.Addrs, w.Addrs) {
					t.Fatalf("try %d: %s: %+v, want %s %v %v", try, n, h, w.Name, aliases, w.Addrs)
				}
			}
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
			h, ok, err = LookupAddr(p, a)
			if at, want := addrs[a]; err != nil || ok != want || want && h.Name != s.Hosts[at].Name {
				t.Fatalf("try %d: %s: %+v %v %v", try, a, h, ok, err)
			}
		}
		if g, ok, err := LookupGroup(p, "n1"); !ok || err != nil || !slices.Equal(g.Members, []string{"n2"}) {
			t.Fatal(g, ok, err)
		}
		if got, err := ReadFile(p); err != nil || len(got.Hosts) != len(s.Hosts) {
			t.Fatal(err)
		}
		b, _ := os.ReadFile(p)
		if n := int(le.Uint32(b[60:])); n != len(names)+1 {
			t.Fatalf("the header says %d names, there are %d", n, len(names)+1)
		}
	}
}

// BenchmarkEncode makes snapshots of hosts that have not changed.
func BenchmarkEncode(b *testing.B) {
	for _, n := range []int{100, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := set(n)
			for i := range s.Hosts {
				s.Hosts[i].Prepare()
			}
			var buf []byte
			for b.Loop() {
				var err error
				if buf, err = encode(s, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestEncodeRefuses(t *testing.T) {
	many := Host{Name: "a"}
	for i := range MaxAddrs + 1 {
		many.Addrs = append(many.Addrs, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	for _, h := range []Host{many, {Name: ""}, {Name: "A"}, {Name: "a b"}, {Name: strings.Repeat("a", 64)}, {Name: "a..b"}, {Name: "a\x00"}, {Name: "a", Aliases: []string{"é"}},
		{Name: "a", Addrs: []netip.Addr{{}}}, {Name: "a", Addrs: []netip.Addr{netip.MustParseAddr("fe80::1%eth0")}}} {
		if _, err := Encode(Set{Hosts: []Host{h}}); err == nil {
			t.Errorf("%+v was encoded", h)
		}
	}
	many.Addrs = many.Addrs[:MaxAddrs]
	for i := range MaxAddrs {
		many.Addrs = append(many.Addrs, netip.AddrFrom16([16]byte{0xfd, 15: byte(i)}))
	}
	many.Name = strings.Repeat(strings.Repeat("a", 62)+".", 4)[:251] + "a"
	p := write(t, Set{Hosts: []Host{many}})
	if h, ok, err := LookupName(p, many.Name); !ok || len(h.Addrs) != 2*MaxAddrs {
		t.Error(len(h.Addrs), ok, err)
	}
}

func firstError(errs ...error) error {
	for _, e := range errs {
		if e != nil {
			return e
		}
	}
	return nil
}

// check holds every look-up in a damaged snapshot against the true answers: right, or unavailable.
func check(t testing.TB, path string, truth Set, names []string) (wrong int) {
	for _, n := range names {
		h, ok, err := LookupName(path, n)
		if err != nil {
			continue
		}
		var want *Host
		for i := range truth.Hosts {
			if truth.Hosts[i].Aliases[0] == n {
				want = &truth.Hosts[i]
			}
		}
		if ok != (want != nil) || ok && !reflect.DeepEqual(h, *want) {
			wrong++
			t.Errorf("%s: wrong answer %+v %v", n, h, ok)
		}
	}
	return wrong
}

// TestDamaged flips bits, cuts, moves and overwrites parts of snapshots, small and large.
func TestDamaged(t *testing.T) {
	names := []string{"host0", "host1", "host7", "host40", "nobody"}
	rng := rand.New(rand.NewPCG(1, 2))
	dir := t.TempDir()
	for _, n := range []int{3, 60} {
		truth := set(n)
		good, err := Encode(truth)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 5000 {
			b := bytes.Clone(good)
			switch i % 5 {
			case 0:
				b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
			case 1:
				b = b[:rng.IntN(len(b))]
			case 2: // one 8-byte word moved over another
				copy(b[rng.IntN(len(b)/8)*8:], good[rng.IntN(len(b)/8)*8:][:8])
			case 3: // one line or record moved over another
				copy(b[rng.IntN(len(b)/64)*64:], good[rng.IntN(len(b)/64)*64:][:64])
			case 4: // zeros, as of a page that never reached the disk
				clear(b[rng.IntN(len(b)/8)*8:][:8])
			}
			p := filepath.Join(dir, "hosts.db")
			if err := os.WriteFile(p, b, 0o644); err != nil {
				t.Fatal(err)
			}
			if check(t, p, truth, names) > 0 {
				t.Fatalf("case %d of %d hosts", i, n)
			}
		}
	}
}

// TestReplaced looks up while the file is replaced: every answer is right and there is always one.
func TestReplaced(t *testing.T) {
	p := write(t, set(50))
	var stop atomic.Bool
	var wg sync.WaitGroup
	var asked atomic.Int64
	for range 4 {
		wg.Go(func() {
			for !stop.Load() {
				h, ok, err := LookupName(p, "host7")
				if !ok || err != nil || h.Addrs[0] != netip.MustParseAddr("10.0.0.7") {
					t.Errorf("%v %v %v", h, ok, err)
					return
				}
				asked.Add(1)
			}
		})
	}
	for i := range 300 {
		if err := WriteFile(p, set(50+i)); err != nil {
			t.Error(err)
		}
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("%d look-ups during 300 replacements", asked.Load())
}

func TestParseHosts(t *testing.T) {
	got, err := ParseHosts(strings.NewReader("# x\n10.0.0.1 A.mesh.internal. a # y\nfd00::1\ta.mesh.internal\n\n10.0.0.2 b\n"))
	want := []Host{{Name: "a.mesh.internal", Aliases: []string{"a"}, Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}},
		{Name: "b", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}}}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v %v", got, err)
	}
	for in, want := range map[string]string{"\nx y": "line 2: \"x\" is not an address", "10.0.0.1": "line 1: address 10.0.0.1 has no name", "10.0.0.1 a/b": "line 1: name"} {
		if _, err := ParseHosts(strings.NewReader(in)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	b, _ := Encode(set(3))
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) { Decode(b) })
}

func FuzzLookup(f *testing.F) {
	truth := set(3)
	b, _ := Encode(truth)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		p := filepath.Join(t.TempDir(), "hosts.db")
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
		LookupName(p, "host1")
		LookupName(p, "host1.mesh.internal")
		LookupAddr(p, netip.MustParseAddr("10.0.0.1"))
	})
}

func FuzzParseHosts(f *testing.F) {
	f.Add("10.0.0.1 a b\nfd00::1 a\n")
	f.Fuzz(func(t *testing.T, s string) {
		h, err := ParseHosts(strings.NewReader(s))
		if err != nil {
			return
		}
		Encode(Set{Hosts: h})
	})
}

func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{10, 10000, 1000000} {
		p := write(b, set(n))
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				LookupName(p, fmt.Sprintf("host%d", i%n))
			}
		})
	}
}
