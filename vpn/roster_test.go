// SPDX-License-Identifier: MIT

package vpn_test

import (
	"testing"
	"time"
)

// TestRoster says who keeps the store, and demands that all know it: those who are there, one who was away, and each after
// a restart.
func TestRoster(t *testing.T) {
	m, nodes := acquainted(t, 4)
	a, away := nodes[0], nodes[3]
	if a.Roster() != nil {
		t.Fatal("there is a roster that nobody made")
	}
	first, err := a.SetRoster(0, []string{"n1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		n.until(t, "the roster is known", 5*time.Second, func() bool { return n.Roster() != nil && n.Roster().Has("n1") })
	}
	away.stop()
	second, err := a.SetRoster(1, []string{"n2", "n3", "n1"})
	if err != nil {
		t.Fatal(err)
	}
	if !second.At.After(first.At) {
		t.Errorf("the second is of %s, the first of %s", second.At, first.At)
	}
	for _, n := range nodes[1:3] {
		n.until(t, "the next roster is known", 5*time.Second, func() bool { return n.Roster().Epoch == 1 })
	}
	m.start(away, "n1")
	if away.Roster() == nil {
		t.Error("after a restart it knows no roster")
	}
	away.until(t, "the next roster is known to who was away", 30*time.Second, func() bool { return away.Roster().Epoch == 1 })
}
