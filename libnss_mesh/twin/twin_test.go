// SPDX-License-Identifier: MIT

//go:build linux && cgo

package twin

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"mesh.internal/mesh/nss"
	"mesh.internal/mesh/nss/leaf"
)

func sets() []nss.Set {
	one := nss.Set{Created: time.Unix(1, 0), Hosts: []nss.Host{{Name: "bkero.mesh.internal", Aliases: []string{"bkero"},
		Addrs: []netip.Addr{netip.MustParseAddr("10.11.0.2"), netip.MustParseAddr("fd00::2")}}}}
	many := nss.Set{Created: time.Unix(2, 0)}
	all := nss.Group{Name: "all"}
	for i := range 40 {
		h := nss.Host{Name: fmt.Sprintf("host%d.mesh.internal", i), Aliases: []string{fmt.Sprintf("host%d", i)}}
		for n := range 1 + i%20 {
			h.Addrs = append(h.Addrs, netip.AddrFrom4([4]byte{10, 20, byte(i), byte(n)}))
		}
		many.Hosts = append(many.Hosts, h)
		for n := range 6 {
			all.Members = append(all.Members, fmt.Sprintf("host%d-%d.mesh.internal", i, n))
		}
	}
	many.Hosts = append(many.Hosts, one.Hosts...)
	many.Groups = []nss.Group{all, {Name: "friends", Members: []string{"bkero"}}}
	return []nss.Set{one, many}
}

var keys = []struct {
	key  string
	kind uintptr
}{
	{"bkero", leaf.Name}, {"BKERO.mesh.internal", leaf.Name}, {"host19", leaf.Name}, {"nobody", leaf.Name}, {"friends", leaf.Group},
	{"all", leaf.Group}, {"bkero", leaf.Group}, {"\x0a\x0b\x00\x02", leaf.Addr4}, {"\x0a\x14\x13\x07", leaf.Addr4}, {"\x00\x00\x00\x00", leaf.Addr4},
	{"\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02", leaf.Addr6}, {"\x00\x00\x00\x00\x00\x00\x00\x00", leaf.Next},
}

// compare asks both readers everything. strict: they must agree; otherwise one may find the file unavailable.
func compare(t *testing.T, path string, strict bool) {
	t.Helper()
	var r leaf.Result
	for _, k := range keys {
		a, as := leaf.Lookup(path, []byte(k.key), k.kind, &r)
		b, bs := Lookup(path, []byte(k.key), k.kind)
		if as == bs && bytes.Equal(a, b) || !strict && (as == leaf.Unavailable || bs == leaf.Unavailable) {
			continue
		}
		t.Errorf("%q of kind %d: leaf says %d %x, the C reader %d %x", k.key, k.kind, as, a, bs, b)
	}
}

func TestReadersAgree(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts.db")
	for _, s := range sets() {
		if err := nss.WriteFile(path, s); err != nil {
			t.Fatal(err)
		}
		compare(t, path, true)
		var r leaf.Result
		found := 0
		for _, h := range s.Hosts {
			if _, st := Lookup(path, []byte(h.Name), leaf.Name); st == leaf.Found {
				found++
			}
			if _, st := leaf.Lookup(path, h.Addrs[0].AsSlice(), uintptr(len(h.Addrs[0].AsSlice())), &r); st != leaf.Found {
				t.Errorf("no %v", h.Addrs[0])
			}
		}
		if found != len(s.Hosts) {
			t.Errorf("the C reader finds %d of %d hosts", found, len(s.Hosts))
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	compare(t, path, true)
}

// FuzzReaders edits a snapshot as the fuzzer says and seals it, so that it comes past the checksums, and holds the two
// readers against each other: they must not crash and must not give two answers to one question. An edit is an offset of
// 2 bytes and the 4 bytes that go there.
func FuzzReaders(f *testing.F) {
	var files [][]byte
	for i, s := range sets() {
		b, err := nss.Encode(s)
		if err != nil {
			f.Fatal(err)
		}
		files = append(files, b)
		for _, at := range []int{16, 48, 52, 64, 72, 80, 88, 96, 108, 128, 132, 200, 256} {
			f.Add(uint8(i), []byte{byte(at), byte(at >> 8), b[at] + 1, b[at+1], b[at+2], b[at+3]}, true)
		}
		f.Add(uint8(i), []byte{}, false)
	}
	path := filepath.Join(f.TempDir(), "hosts.db")
	f.Fuzz(func(t *testing.T, file uint8, edits []byte, sealed bool) {
		b := bytes.Clone(files[int(file)%len(files)])
		for ; len(edits) >= 6; edits = edits[6:] {
			copy(b[int(binary.LittleEndian.Uint16(edits))%len(b):], edits[2:6])
		}
		if sealed {
			seal(b)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		compare(t, path, false)
	})
}

// seal gives a snapshot's parts the checksums that fit them, as far as its header leads to them.
func seal(b []byte) {
	le := binary.LittleEndian
	if len(b) < leaf.HeaderSize {
		return
	}
	seed, size := le.Uint64(b[40:]), uint64(len(b))
	part := func(at, n, sum, off uint64) bool {
		if at > size || n > size-at || n%8 != 0 || n > leaf.MaxRecord || sum > size-8 {
			return false
		}
		le.PutUint64(b[sum:], leaf.Sum(b[at:at+n], seed, off))
		return true
	}
	record := func(off uint64) uint64 {
		if off > size || size-off < leaf.RecordHead {
			return 0
		}
		n := uint64(le.Uint32(b[off+8:]))
		if n < leaf.RecordHead || !part(off+8, n-8, off, off) {
			return 0
		}
		return n
	}
	off := le.Uint64(b[80:])
	for range 100 {
		n := record(off)
		if n == 0 {
			break
		}
		off += n
	}
	for i := range uint64(2) {
		at, step := le.Uint64(b[64+8*i:]), uint64(leaf.LineSize)
		if i == 0 {
			step = uint64(le.Uint32(b[108:]))
		}
		for range min(le.Uint32(b[48+4*i:]), 100) {
			if at > size || size-at < leaf.LineSize {
				break
			}
			for s := range uint64(leaf.LineSlots) {
				if o := uint64(le.Uint32(b[at+8*s+4:])) * 8; o != 0 {
					record(o)
				}
			}
			part(at, leaf.LineSize-8, at+leaf.LineSize-8, at)
			at += step
		}
	}
	part(0, leaf.HeaderSize-8, leaf.HeaderSize-8, 0)
}
