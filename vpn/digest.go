// SPDX-License-Identifier: MIT

package vpn

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash/maphash"
	"math/big"
	"slices"

	"mesh.internal/mesh/vpn/identity"
)

// Two neighbours find out what differs in what they know without telling it all: one tells a sum over everything; the
// other, if its own is different, tells the sums of sixteen parts; and so on with each part that differs, until one of
// them has no more than maxEntries in it, which it lists; the other pushes what the list lacks and asks for what it is
// ahead in. That takes log16 of the number of statements steps, and 130 bytes on the wire when nothing differs. No step
// depends on one before: each message is answered from what is known when it comes, so any may be lost, repeated or late.

// statement is what gossip spreads: a node record, a tombstone or the roster.
type statement struct {
	at  uint64 // its place: a hash of its kind and the node's name
	sum uint64 // a hash of place and version
	version
	kind string
	raw  []byte
}

// version of a statement; the larger one counts, by Serial first.
type version struct{ Serial, Seq uint64 }

func (v version) less(o version) bool {
	return v.Serial < o.Serial || v.Serial == o.Serial && v.Seq < o.Seq
}

// Kinds of statements. The digest of a name that has both has both.
const (
	kindRecord    = "record "
	kindTombstone = "tombstone "
	kindRoster    = "roster "
)

func place(kind, name string) uint64 {
	h := sha256.Sum256([]byte(kind + name))
	return binary.BigEndian.Uint64(h[:])
}

func newStatement(kind, name string, v version, raw []byte) statement {
	s := statement{at: place(kind, name), version: v, kind: kind, raw: raw}
	var b [24]byte
	binary.BigEndian.PutUint64(b[:], s.at)
	binary.BigEndian.PutUint64(b[8:], v.Serial)
	binary.BigEndian.PutUint64(b[16:], v.Seq)
	h := sha256.Sum256(b[:])
	s.sum = binary.BigEndian.Uint64(h[:])
	return s
}

// issued is the time of issue in a serial number, see identity.
func issued(serial *big.Int) uint64 { return new(big.Int).Rsh(serial, 64).Uint64() }

func recordStatement(r *identity.Record) statement {
	return newStatement(kindRecord, r.Node.Name, version{issued(r.Node.Serial), r.Seq}, r.Bytes())
}

func tombstoneStatement(t *identity.Tombstone) statement {
	return newStatement(kindTombstone, t.Name, version{issued(t.Serial), 0}, t.Bytes())
}

// digest is all that is known, for comparing. Its zero value is empty.
type digest struct {
	all  []statement // by place
	raws map[uint64]uint64
	seed maphash.Seed
}

func (d *digest) find(at uint64) (int, bool) {
	return slices.BinarySearchFunc(d.all, at, func(s statement, at uint64) int {
		switch {
		case s.at < at:
			return -1
		case s.at > at:
			return 1
		}
		return 0
	})
}

// put takes a statement in place of the one that is there.
func (d *digest) put(s statement) {
	if d.raws == nil {
		d.raws, d.seed = map[uint64]uint64{}, maphash.MakeSeed()
	}
	i, found := d.find(s.at)
	if found {
		delete(d.raws, maphash.Bytes(d.seed, d.all[i].raw))
		d.all[i] = s
	} else {
		d.all = slices.Insert(d.all, i, s)
	}
	d.raws[maphash.Bytes(d.seed, s.raw)] = s.at
}

func (d *digest) drop(at uint64) {
	if i, found := d.find(at); found {
		delete(d.raws, maphash.Bytes(d.seed, d.all[i].raw))
		d.all = slices.Delete(d.all, i, i+1)
	}
}

func (d *digest) get(at uint64) (statement, bool) {
	if i, found := d.find(at); found {
		return d.all[i], true
	}
	return statement{}, false
}

// has returns the place of a statement that is known in just this form.
func (d *digest) has(raw []byte) (at uint64, ok bool) {
	if d.raws == nil {
		return 0, false
	}
	at, ok = d.raws[maphash.Bytes(d.seed, raw)]
	if s, known := d.get(at); !ok || !known || !bytes.Equal(s.raw, raw) {
		return 0, false
	}
	return at, true
}

// span is all places that begin with the first Bits bits of Prefix. Bits is a multiple of four, from 0 to 60.
type span struct {
	_      struct{} `cbor:",toarray"`
	Prefix uint64
	Bits   uint8
}

const (
	fan        = 16 // parts of a span
	maxBits    = 60
	maxEntries = 32 // of a list: it fits a packet
)

func (s span) valid() bool {
	return s.Bits%4 == 0 && s.Bits <= maxBits && s.Prefix<<s.Bits == 0
}

func (s span) has(at uint64) bool { return s.Bits == 0 || at>>(64-s.Bits) == s.Prefix>>(64-s.Bits) }

// part is the i-th sixteenth.
func (s span) part(i int) span {
	return span{Prefix: s.Prefix | uint64(i)<<(60-s.Bits), Bits: s.Bits + 4}
}

func (d *digest) in(s span) []statement {
	from, _ := d.find(s.Prefix)
	if s.Bits == 0 {
		return d.all
	}
	to := len(d.all)
	if last := s.Prefix | (1<<(64-s.Bits) - 1); last != 1<<64-1 {
		to, _ = d.find(last + 1)
	}
	return d.all[from:to]
}

// sum does not depend on an order; that of nothing is 0.
func sum(list []statement) (x uint64) {
	for _, s := range list {
		x ^= s.sum
	}
	return x
}

// sums are what the sender has: of a span as a whole, or of its parts.
type sums struct {
	_    struct{} `cbor:",toarray"`
	Span span
	Sums []uint64 // 1 or 16
}

// list is all that the sender has in a span.
type list struct {
	_     struct{} `cbor:",toarray"`
	Span  span
	Items []entry
}

type entry struct {
	_      struct{} `cbor:",toarray"`
	At     uint64
	Serial uint64
	Seq    uint64
}

// whole is how a comparison begins.
func (d *digest) whole() message { return message{Sums: &sums{Sums: []uint64{sum(d.all)}}} }

// compare returns what to say to who has told sums: more of the spans that differ, and what is here where it has nothing.
func (d *digest) compare(s *sums) (say []message, push []uint64) {
	if !s.Span.valid() {
		return nil, nil
	}
	tell := func(sp span, theirs uint64) {
		mine := d.in(sp)
		switch {
		case sum(mine) == theirs:
		case theirs == 0:
			push = appendPlaces(push, mine)
		case len(mine) <= maxEntries || sp.Bits == maxBits:
			l := &list{Span: sp}
			for _, x := range mine[:min(len(mine), maxEntries)] {
				l.Items = append(l.Items, entry{At: x.at, Serial: x.Serial, Seq: x.Seq})
			}
			say = append(say, message{List: l})
		default:
			parts := &sums{Span: sp}
			for i := range fan {
				parts.Sums = append(parts.Sums, sum(d.in(sp.part(i))))
			}
			say = append(say, message{Sums: parts})
		}
	}
	switch {
	case len(s.Sums) == 1:
		tell(s.Span, s.Sums[0])
	case len(s.Sums) == fan && s.Span.Bits < maxBits:
		for i, theirs := range s.Sums {
			tell(s.Span.part(i), theirs)
		}
	}
	return say, push
}

func appendPlaces(to []uint64, l []statement) []uint64 {
	for _, s := range l {
		to = append(to, s.at)
	}
	return to
}

// compareList returns what of ours the sender of a list lacks, and what it is ahead in.
func (d *digest) compareList(l *list) (push, want []uint64) {
	if !l.Span.valid() || len(l.Items) > maxEntries {
		return nil, nil
	}
	theirs := make(map[uint64]version, len(l.Items))
	for _, e := range l.Items {
		v := version{e.Serial, e.Seq}
		theirs[e.At] = v
		if mine, ok := d.get(e.At); l.Span.has(e.At) && (!ok || mine.less(v)) {
			want = append(want, e.At)
		}
	}
	for _, s := range d.in(l.Span) {
		if v, ok := theirs[s.at]; !ok || v.less(s.version) {
			push = append(push, s.at)
		}
	}
	return push, want
}
