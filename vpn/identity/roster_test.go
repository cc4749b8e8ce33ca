// SPDX-License-Identifier: MIT

package identity

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestRoster(t *testing.T) {
	ca, _ := NewCA("mesh")
	at := time.UnixMilli(1700000000000)
	r, err := ca.Roster(nil, 3, []string{"nibz", "bkero", "spencer"}, "spencer", at)
	if err != nil {
		t.Fatal(err)
	}
	got, err := (&CA{Cert: ca.Cert}).ParseRoster(r.Bytes())
	if err != nil || got.Epoch != 3 || !slices.Equal(got.Voters, []string{"bkero", "nibz", "spencer"}) || !got.At.Equal(at) || got.By != "spencer" {
		t.Fatalf("it came back as %+v, %v", got, err)
	}
	if !got.Has("nibz") || got.Has("mammon") || (*Roster)(nil).Has("nibz") {
		t.Error("who keeps the store")
	}
	// The next one is newer, whatever the clock says.
	next, err := ca.Roster(r, 4, []string{"spencer"}, "spencer", at.Add(-time.Hour))
	if err != nil || !next.At.After(r.At) {
		t.Errorf("the next is of %s, after %s, %v", next.At, r.At, err)
	}
	// Two of one moment: all nodes choose the same.
	other, _ := ca.Roster(nil, 3, []string{"mammon"}, "spencer", at)
	a1, c1 := r.Version()
	a2, c2 := other.Version()
	if a1 != a2 || c1 == c2 {
		t.Errorf("versions %d %d and %d %d", a1, c1, a2, c2)
	}
	var long []string
	for i := range MaxVoters {
		long = append(long, string(rune('a'+i))+strings.Repeat("x", 62))
	}
	if r, err := ca.Roster(nil, 1, long, strings.Repeat("y", 63), at); err != nil || len(r.Bytes()) > MaxRoster {
		t.Errorf("the longest: %v", err)
	}
}

// TestRosterForged makes rosters without the mesh's key, or of what is none.
func TestRosterForged(t *testing.T) {
	ca, _ := NewCA("mesh")
	other, _ := NewCA("mesh")
	good, _ := ca.Roster(nil, 0, []string{"bkero"}, "spencer", time.Now())
	for i := range good.Bytes() {
		b := bytes.Clone(good.Bytes())
		b[i] ^= 1
		if _, err := ca.ParseRoster(b); err == nil {
			t.Errorf("byte %d changed and the roster was accepted", i)
		}
	}
	forged, _ := other.Roster(nil, 0, []string{"evil"}, "spencer", time.Now())
	if _, err := ca.ParseRoster(forged.Bytes()); err == nil || !strings.Contains(err.Error(), "not signed") {
		t.Errorf("another mesh's: %v", err)
	}
	evicted, _ := ca.Evict(newIdentity(t, ca, "bkero", "10.11.0.2").Node, "spencer", "", time.Now())
	if _, err := ca.ParseRoster(evicted.Bytes()); err == nil {
		t.Error("a tombstone passes for a roster")
	}
	if _, err := (&CA{Cert: ca.Cert}).Roster(nil, 0, []string{"bkero"}, "spencer", time.Now()); err == nil {
		t.Error("made without the key")
	}
	for what, voters := range map[string][]string{"nobody": nil, "twice the same": {"a", "a"}, "too many": {"a", "b", "c", "d", "e", "f", "g", "h"}, "no name": {"A.B"}} {
		if _, err := ca.Roster(nil, 0, voters, "spencer", time.Now()); err == nil {
			t.Errorf("%s: made", what)
		}
	}
}

func FuzzParseRoster(f *testing.F) {
	ca, _ := NewCA("mesh")
	r, _ := ca.Roster(nil, 1, []string{"bkero", "nibz", "spencer"}, "spencer", time.UnixMilli(1700000000000))
	f.Add(r.Bytes())
	f.Add([]byte{0x82, 0x40, 0x40})
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := ca.ParseRoster(b); err == nil && !slices.Equal(got.Voters, r.Voters) {
			t.Errorf("%x was accepted as %+v", b, got)
		}
	})
}

func TestFit(t *testing.T) {
	ca, _ := NewCA("mesh")
	id := newIdentity(t, ca, "bkero", "10.11.0.2")
	for _, f := range []Fit{{}, {Can: true}, {Battery: true}, {Can: true, Fsync: 1200 * time.Microsecond, Boot: time.Unix(1700000000, 0).UTC().Truncate(time.Hour)}} {
		r, err := id.Record(1, Said{Fit: f})
		if err != nil || r.Fit != f {
			t.Errorf("%+v came back as %+v, %v", f, r.Fit, err)
		}
	}
	if r, err := id.Record(1, Said{Fit: Fit{Fsync: time.Hour}}); err != nil || r.Fit.Fsync < 6*time.Second {
		t.Errorf("a very slow disk: %v, %v", r.Fit, err)
	}
}
