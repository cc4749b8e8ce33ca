// SPDX-License-Identifier: MIT

package daemon

import (
	"slices"
	"strings"
	"testing"
	"time"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/vpn/identity"
)

func TestChangeVoters(t *testing.T) {
	records := map[string]*identity.Record{}
	for _, name := range []string{"spencer", "bkero", "nibz", "jo", "slow", "bare"} {
		r := &identity.Record{Node: identity.Node{Name: name}, Said: identity.Said{Fit: identity.Fit{Can: true, Fsync: time.Millisecond}}}
		switch name {
		case "jo":
			r.Fit.Battery = true
		case "slow":
			r.Fit.Fsync = time.Second
		case "bare":
			r.Fit.Can = false
		}
		records[name] = r
	}
	one, three := []string{"spencer"}, []string{"spencer", "bkero", "nibz"}
	for _, c := range []struct {
		what string
		now  []string
		v    api.Voters
		want string // members, or a part of the error after "!"
	}{
		{"one becomes three", one, api.Voters{Add: []string{"bkero", "nibz"}}, "spencer bkero nibz"},
		{"an even number", one, api.Voters{Add: []string{"bkero"}}, "!name two nodes at once"},
		{"an even number, by force", one, api.Voters{Add: []string{"bkero"}, Force: true}, "spencer bkero"},
		{"a laptop", one, api.Voters{Add: []string{"bkero", "jo"}}, "!jo is no good home for the store: it runs on a battery"},
		{"a laptop, by force", one, api.Voters{Add: []string{"bkero", "jo"}, Force: true}, "spencer bkero jo"},
		{"a slow disk", one, api.Voters{Add: []string{"bkero", "slow"}}, "!1000 ms for a small write"},
		{"no meshd-etcd", one, api.Voters{Add: []string{"bkero", "bare"}}, "!not installed"},
		{"nobody", one, api.Voters{Add: []string{"bkero", "nobody"}}, "!no node nobody is known"},
		{"who does already", three, api.Voters{Add: []string{"nibz"}}, "!nibz keeps the store already"},
		{"three become one", three, api.Voters{Remove: []string{"bkero", "nibz"}}, "spencer"},
		{"three become two", three, api.Voters{Remove: []string{"bkero"}}, "!name two nodes at once"},
		{"a move", three, api.Voters{Remove: []string{"bkero"}, Add: []string{"slow"}, Force: true}, "spencer nibz slow"},
		{"the last", one, api.Voters{Remove: []string{"spencer"}}, "!the last member cannot leave"},
		{"who does not", one, api.Voters{Remove: []string{"nibz"}}, "!nibz does not keep the store: spencer do"},
	} {
		got, err := changeVoters(c.now, c.v, records)
		if part, wrong := strings.CutPrefix(c.want, "!"); wrong != (err != nil) || wrong && !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %v, want %s", c.what, err, c.want)
		} else if !wrong && strings.Join(got, " ") != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
	if !slices.Equal(three, []string{"spencer", "bkero", "nibz"}) {
		t.Error("the present members were changed in place")
	}
}

// A file that says the same is not written again: round trips that have hardly changed wake nobody.
func TestSameVoter(t *testing.T) {
	v := func(rtt float64, members ...string) *config.Voter {
		return &config.Voter{Mesh: "mesh", Voters: []config.Keeper{{Name: "spencer"}, {Name: "bkero", RTT: rtt}}, Members: members}
	}
	for _, c := range []struct {
		a, b *config.Voter
		want bool
	}{{v(10, "a"), v(12, "a"), true}, {v(10, "a"), v(30, "a"), false}, {v(30, "a"), v(10, "a"), false}, {v(10, "a"), v(10, "a", "b"), false}} {
		if got := sameVoter(c.a, c.b); got != c.want {
			t.Errorf("%+v and %+v: %v", c.a, c.b, got)
		}
	}
}
