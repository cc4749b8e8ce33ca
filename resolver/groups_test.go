// SPDX-License-Identifier: MIT

package resolver

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mesh.internal/mesh/resolver/store"
	"mesh.internal/mesh/resolver/store/storetest"
)

// group is one as its owner has published it, from "OWNER NAME MEMBER…".
func group(text string) StaticGroup {
	f := strings.Fields(text)
	return StaticGroup{Group: Group{Owner: f[0], Name: f[1], Members: f[2:]}}
}

// written is what a group comes to, in one line.
func written(g *Group) string {
	if g == nil {
		return "none"
	}
	var s []string
	for _, h := range g.Hosts {
		s = append(s, h.Name)
	}
	for _, m := range g.Unknown {
		s = append(s, m+"?")
	}
	return g.Owner + ": " + strings.Join(s, " ")
}

func TestGroupsWrittenOut(t *testing.T) {
	statics := []Static{{Host: Host{Name: "printer", Owner: "nibz", Addrs: []netip.Addr{netip.MustParseAddr("10.11.0.77")}, Aliases: []string{"laser"}}}}
	for _, c := range []struct {
		name   string
		groups []string
		want   map[string]string
		refuse string // part of a reason
	}{
		{"hosts and nodes", []string{"nibz all spencer printer bkero"}, map[string]string{"all": "nibz: bkero printer spencer"}, ""},
		{"an alias is its host, once", []string{"nibz g laser printer"}, map[string]string{"g": "nibz: printer"}, ""},
		{"nobody", []string{"nibz g"}, map[string]string{"g": "nibz: "}, ""},
		{"unknown members stay", []string{"nibz g gone bkero @gone"}, map[string]string{"g": "nibz: bkero @gone? gone?"}, ""},
		{"a host is no group and a group no host", []string{"nibz g @bkero h", "nibz h nibz"}, map[string]string{"g": "nibz: @bkero? h?", "h": "nibz: nibz"}, ""},
		{"groups in groups", []string{"nibz a @b", "bkero b @c bkero", "spencer c spencer gone"},
			map[string]string{"a": "nibz: bkero spencer gone?", "@A": "nibz: bkero spencer gone?", "c": "spencer: spencer gone?"}, ""},
		{"cycles", []string{"nibz a @b nibz", "bkero b @a bkero", "spencer c @c"},
			map[string]string{"a": "nibz: bkero nibz", "b": "nibz: bkero nibz", "c": "spencer: "}, ""},
		{"below its owner", []string{"nibz servers.nibz nibz"}, map[string]string{"servers.nibz": "nibz: nibz"}, ""},
		{"below another", []string{"nibz servers.bkero nibz"}, map[string]string{"servers.bkero": "none"}, "below"},
		{"a reserved name", []string{"nibz localhost nibz"}, map[string]string{"localhost": "none"}, "reserved"},
		{"upper case", []string{"nibz Friends nibz"}, map[string]string{"friends": "none"}, "a-z"},
		{"a member that is no name", []string{"nibz g nibz -"}, map[string]string{"g": "none"}, "hyphen"},
		{"a member that is everybody in a netgroup", []string{"nibz g (,,)"}, map[string]string{"g": "none"}, "a-z"},
		{"a member of two @", []string{"nibz g @@h"}, map[string]string{"g": "none"}, "a-z"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var gs []StaticGroup
			for i, text := range c.groups {
				g := group(text)
				g.Created = int64(i + 1)
				gs = append(gs, g)
			}
			v := Build(Parts{Zone: "mesh.internal", Prefixes: prefixes, Nodes: nodes(everybody...), Hosts: statics, Groups: gs, Revision: 1})
			for name, want := range c.want {
				got := written(v.Group(name))
				if name == "b" {
					want = strings.Replace(want, "nibz: ", "bkero: ", 1)
				}
				if got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
			if c.refuse == "" && len(v.Conflicts) > 0 || c.refuse != "" && (len(v.Conflicts) != 1 || !strings.Contains(v.Conflicts[0].Reason, c.refuse)) {
				t.Errorf("conflicts %v, want one that says %q", v.Conflicts, c.refuse)
			}
		})
	}
}

func TestGroupStanding(t *testing.T) {
	older, younger, claimed := group("bkero g bkero"), group("nibz g nibz"), group("spencer g spencer")
	older.Created, younger.Created, claimed.Created, claimed.Claimed = 1, 2, 3, true
	for _, c := range []struct {
		groups []StaticGroup
		want   string
	}{
		{[]StaticGroup{younger, older}, "bkero: bkero"},
		{[]StaticGroup{younger, older, claimed}, "spencer: spencer"},
	} {
		v := Build(Parts{Zone: "mesh.internal", Prefixes: prefixes, Nodes: nodes(everybody...), Groups: c.groups, Revision: 1})
		if got := written(v.Group("g")); got != c.want || len(v.Conflicts) != len(c.groups)-1 || v.Conflicts[0].Name != "@g" {
			t.Errorf("%q, want %q; conflicts %v", got, c.want, v.Conflicts)
		}
	}
}

// TestGroupsWithoutEnd is a member whose groups come to more than anybody should have to write out.
func TestGroupsWithoutEnd(t *testing.T) {
	var gs []StaticGroup
	const n = 700
	for i := range n { // each holds all others
		g := group(fmt.Sprintf("bkero g%d bkero", i))
		for j := range n {
			g.Members = append(g.Members, fmt.Sprintf("@g%d", j))
		}
		g.Created = int64(i + 1)
		gs = append(gs, g)
	}
	gs = append(gs, StaticGroup{group("nibz friends nibz @g1").Group, Standing{Created: n + 1}})
	v := Build(Parts{Zone: "mesh.internal", Prefixes: prefixes, Nodes: nodes(everybody...), Groups: gs, Revision: 1})
	if len(v.Conflicts) != n || !strings.Contains(v.Conflicts[0].Reason, "over") {
		t.Errorf("%d conflicts", len(v.Conflicts))
	}
	// Whoever holds one of them loses no more than it.
	if got := written(v.Group("friends")); got != "nibz: nibz @g1?" {
		t.Errorf("friends: %s", got)
	}
}

func wantGroup(t *testing.T, r *Resolver, name, want string) {
	t.Helper()
	if got := written(r.View().Group(name)); got != want {
		t.Errorf("@%s is %q, want %q", name, got, want)
	}
}

func TestGroupReachesOthers(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		a, stopA := start(t, dir("a"), "nibz", &st)
		b, stopB := start(t, dir("b"), "spencer", &st)
		defer stopB()
		defer stopA()
		for _, c := range []struct {
			members []string
			want    string
		}{
			{[]string{"bkero", "printer"}, "nibz: bkero printer?"},
			{[]string{"bkero", "spencer"}, "nibz: bkero spencer printer?"}, // adds, and nobody twice
		} {
			if landed, err := a.AddGroup(t.Context(), "friends", c.members...); !landed || err != nil {
				t.Fatal(landed, err)
			}
			wantGroup(t, a, "friends", c.want) // the writer reads what it wrote
			settle()
			wantGroup(t, b, "friends", c.want)
		}
		b.AddHost(t.Context(), host("printer", "10.11.0.77"))
		settle()
		wantGroup(t, a, "friends", "nibz: bkero printer spencer")
		if _, err := b.AddGroup(t.Context(), "friends", "spencer"); !errors.Is(err, ErrTaken) {
			t.Errorf("a taken name: %v", err)
		}
		if _, err := b.RemoveGroup(t.Context(), "friends"); err == nil || !strings.Contains(err.Error(), "nibz") {
			t.Errorf("removed another's: %v", err)
		}
		if _, err := a.RemoveGroup(t.Context(), "friends", "spencer", "nobody"); err == nil || !strings.Contains(err.Error(), "nobody") {
			t.Errorf("removed who is not in it: %v", err)
		}
		if _, err := a.RemoveGroup(t.Context(), "friends", "spencer"); err != nil {
			t.Error(err)
		}
		settle()
		wantGroup(t, b, "friends", "nibz: bkero printer")
		if landed, err := a.RemoveGroup(t.Context(), "friends"); !landed || err != nil {
			t.Error(landed, err)
		}
		settle()
		wantGroup(t, b, "friends", "none")
		if landed, err := b.AddGroup(t.Context(), "friends"); !landed || err != nil {
			t.Errorf("a freed name: %v %v", landed, err)
		}
		big := make([]string, 3000)
		for i := range big {
			big[i] = fmt.Sprintf("host%d", i)
		}
		if _, err := a.AddGroup(t.Context(), "big", big...); err == nil || !strings.Contains(err.Error(), "bytes") {
			t.Errorf("a group that does not fit: %v", err)
		}
		if w := a.State().Waiting; len(w) != 0 {
			t.Errorf("waiting: %v", w)
		}
	})
}

// TestGroupsRace has everybody add the same group at once while nobody sees the others' yet.
func TestGroupsRace(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		var rs []*Resolver
		for _, n := range everybody {
			r, stop := start(t, dir(n), n, &st)
			defer stop()
			rs = append(rs, r)
		}
		settle()
		st.SetDown(true)
		settle()
		for _, r := range rs {
			if landed, err := r.AddGroup(t.Context(), "friends", r.cfg.Signer.Name()); landed || err != nil {
				t.Fatal(landed, err)
			}
		}
		st.SetDown(false)
		settle()
		winner := rs[0].View().Group("friends").Owner
		for i, r := range rs {
			wantGroup(t, r, "friends", winner+": "+winner)
			w := strings.Join(r.State().Waiting, "\n")
			if lost := everybody[i] != winner; lost != strings.HasPrefix(w, "@friends: the name @friends is taken: it belongs to "+winner) {
				t.Errorf("%s of the winner %s waits: %q", everybody[i], winner, w)
			}
		}
	})
}

// TestOwnMigrates starts from the own.json of before there were groups, and from a new disk with the store away.
func TestOwnMigrates(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		d := dir("a")
		os.WriteFile(filepath.Join(d, "own.json"), []byte(`[{"name":"printer","owner":"nibz","node":false,"addrs":["10.11.0.77"],"aliases":["laser"]}]`), 0o600)
		a, stop := start(t, d, "nibz", &st)
		settle()
		wantAddr(t, a, "laser", "10.11.0.77")
		a.AddGroup(t.Context(), "friends", "printer")
		settle()
		stop()
		a, stop = start(t, d, "nibz", &st) // reads the new form
		settle()
		wantAddr(t, a, "laser", "10.11.0.77")
		wantGroup(t, a, "friends", "nibz: printer")
		stop()

		os.Remove(filepath.Join(d, "own.json"))
		os.Remove(filepath.Join(d, "names.json"))
		st.SetDown(true)
		a, stop = start(t, d, "nibz", &st)
		a.AddGroup(t.Context(), "others", "bkero")
		stop()
		a, stop = start(t, d, "nibz", &st) // what was added is kept, and not taken for all that there is
		defer stop()
		st.SetDown(false)
		settle()
		wantAddr(t, a, "printer", "10.11.0.77")
		wantGroup(t, a, "friends", "nibz: printer")
		wantGroup(t, a, "others", "nibz: bkero")
	})
}

// TestHostileGroups plays a member with full access to the store.
func TestHostileGroups(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		victim, stopV := start(t, dir("v"), "nibz", &st)
		defer stopV()
		reader, stopR := start(t, dir("r"), "spencer", &st)
		defer stopR()
		for _, name := range []string{"shared", "friends.nibz"} {
			victim.AddGroup(t.Context(), name, "spencer", "bkero")
		}
		settle()
		const ours = "nibz/groups/friends.nibz"
		old, _ := st.Get(t.Context(), ours)
		victim.RemoveGroup(t.Context(), "friends.nibz", "bkero")
		settle()
		put := func(key, name string, members ...string) {
			t.Helper()
			b, err := store.Seal(key, store.Value{Seq: 1 << 60, Name: name, Members: members}, member("bkero"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := st.Commit(t.Context(), nil, []store.Op{{Key: key, Value: b}}); err != nil {
				t.Fatal(err)
			}
		}
		put(ours, "friends.nibz", "bkero")                                     // another's group, signed by itself
		put("nibz/groups/more", "more", "bkero")                               // a new one below another's name
		put("bkero/groups/friends.nibz", "friends.nibz", "bkero")              // a name below another's
		put("bkero/groups/alias", "friends.nibz", "bkero")                     // under another key
		put("bkero/hosts/host", "host", "bkero")                               // a host with members
		put("bkero/groups/everybody", "everybody", "(,,)")                     // a netgroup's triple that matches all
		put("bkero/groups/mine", "mine", "bkero", "@friends.nibz")             // what it may do
		put("bkero/groups/shared", "shared", "bkero")                          // a name that another has claimed
		<-time.After(time.Millisecond)                                         // so that readers see each
		st.Commit(t.Context(), nil, []store.Op{{Key: ours, Value: old.Value}}) // an older value, put back
		settle()
		for _, r := range []*Resolver{victim, reader} {
			wantGroup(t, r, "friends.nibz", "nibz: spencer")
			wantGroup(t, r, "shared", "nibz: bkero spencer")
			wantGroup(t, r, "mine", "bkero: bkero spencer")
			if n := len(r.View().Groups()); n != 3 {
				t.Errorf("%d groups: %v", n, r.View().Groups())
			}
			wantAddr(t, r, "host", "")
		}
		st.Commit(t.Context(), nil, []store.Op{{Key: "_claims/groups/shared"}})
		settle()
		if kv, _ := st.Get(t.Context(), "_claims/groups/shared"); kv.Modified == 0 {
			t.Error("a claim that somebody deleted was not put back")
		}
		// The store lets it put a claim of its own in the place of another's. Nobody who knows the holder's takes it, and the
		// holder puts its own back.
		put("_claims/groups/shared", "shared")
		settle()
		wantGroup(t, reader, "shared", "nibz: bkero spencer")
		if kv, _ := st.Get(t.Context(), "_claims/groups/shared"); !strings.Contains(string(kv.Value), `"owner":"nibz"`) {
			t.Errorf("a claim that somebody replaced was not put back: %s", kv.Value)
		}
		// It can delete the claim, and be faster than its holder with a new one: that looks like a name that was given up.
		// Then the name is its, it is shown as its, and who had the name is told.
		b, err := store.Seal("_claims/groups/shared", store.Value{Seq: 1 << 60, Name: "shared"}, member("bkero"))
		if err != nil {
			t.Fatal(err)
		}
		st.Commit(t.Context(), nil, []store.Op{{Key: "_claims/groups/shared"}, {Key: "_claims/groups/shared", Value: b}})
		settle()
		wantGroup(t, reader, "shared", "bkero: bkero")
		if w := strings.Join(victim.State().Waiting, " "); !strings.Contains(w, "@shared") || !strings.Contains(w, "bkero") {
			t.Errorf("the victim is told %q", w)
		}
	})
}
