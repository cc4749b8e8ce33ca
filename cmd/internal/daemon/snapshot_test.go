// SPDX-License-Identifier: MIT

package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"mesh.internal/mesh/nss"
	"mesh.internal/mesh/resolver"
	"mesh.internal/mesh/resolver/store/storetest"
)

// TestGroupsInSnapshot follows groups from the View into the file, as programs find them there.
func TestGroupsInSnapshot(t *testing.T) {
	a := netip.MustParseAddr
	v := resolver.Build(resolver.Parts{Zone: "mesh.internal", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.11.0.0/16")}, Revision: 1,
		Nodes: []resolver.Node{{Name: "bkero", Addrs: []netip.Addr{a("10.11.0.2")}}, {Name: "com", Addrs: []netip.Addr{a("10.11.0.3")}}},
		Hosts: []resolver.Static{
			{Host: resolver.Host{Name: "printer", Owner: "bkero", Addrs: []netip.Addr{a("10.11.0.77")}, Aliases: []string{"laser"}}},
			{Host: resolver.Host{Name: "google.com", Owner: "com", Addrs: []netip.Addr{a("10.11.0.78")}}},
		},
		Groups: []resolver.StaticGroup{
			{Group: resolver.Group{Name: "friends", Owner: "bkero", Members: []string{"laser", "@all", "gone"}}},
			{Group: resolver.Group{Name: "all", Owner: "com", Members: []string{"bkero", "google.com", "@friends"}}},
			{Group: resolver.Group{Name: "nobody", Owner: "com", Members: []string{"gone"}}},
		}})
	path := filepath.Join(t.TempDir(), "hosts.db")
	if err := nss.WriteFile(path, new(Sets).Of(v, map[string]bool{"printer": true})); err != nil {
		t.Fatal(err)
	}
	// No short form that /etc/hosts has, or that looks like a name of the world.
	want := []string{"bkero.mesh.internal", "bkero", "bkero.node.mesh.internal", "bkero.node", "google.com.mesh.internal", "printer.mesh.internal", "laser.mesh.internal", "laser"}
	for name, want := range map[string][]string{"friends": want, "all": want, "nobody": nil} {
		g, ok, err := nss.LookupGroup(path, name)
		if !ok || err != nil || !slices.Equal(g.Members, want) {
			t.Errorf("%s: %v %v %v, want %v", name, g.Members, ok, err, want)
		}
	}
	if _, ok, err := nss.LookupGroup(path, "gone"); ok || err != nil {
		t.Errorf("a group that is not there: %v %v", ok, err)
	}
}

// TestSets holds what is made of a View with what is known of the one before it against what is made of it alone.
func TestSets(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		r := resolver.New(resolver.Config{Zone: "mesh.internal", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.11.0.0/16")}, Signer: anyone("nibz"), Verifier: anyone("nibz"),
			StateDir: dir, Store: new(storetest.Memory), Log: slog.New(slog.DiscardHandler)})
		r.SetNodes([]resolver.Node{{Name: "nibz", Addrs: []netip.Addr{netip.MustParseAddr("10.11.0.2")}, Key: "1"}})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { r.Run(ctx); close(ended) }()
		defer func() { cancel(); <-ended }()
		synctest.Wait()
		if _, err := r.SetServices(ctx, []resolver.Service{{Name: "http", Type: "http", Proto: "tcp", Port: 80}}); err != nil {
			t.Fatal(err)
		}
		var sets Sets
		hides := map[string]bool{"h1": true}
		kept := 0
		for i := range 300 {
			name := fmt.Sprint("h", rng.IntN(12))
			switch rng.IntN(4) {
			case 0:
				r.RemoveHost(ctx, name) // there may be none
			case 1:
				r.AddGroup(ctx, "friends", name)
			default:
				h := resolver.Host{Name: name, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 11, 1, byte(1 + rng.IntN(6))})}}
				if rng.IntN(2) == 0 {
					h.Aliases = []string{name + "a"}
				}
				if _, err := r.AddHost(ctx, h); err != nil {
					t.Fatal(err)
				}
			}
			r.SetHealth(map[string]resolver.Health{"http": {State: []resolver.State{resolver.Passing, resolver.Critical}[rng.IntN(2)]}})
			<-time.After(time.Second)
			synctest.Wait()
			if i%100 == 99 {
				hides = map[string]bool{name: true}
			}
			before := sets.hosts
			got, want := sets.Of(r.View(), hides), new(Sets).Of(r.View(), hides)
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("after %d changes\n%+v, want\n%+v", i, got, want)
			}
			for _, h := range got.Hosts {
				if slices.ContainsFunc(before, func(b nss.Host) bool {
					return b.Name == h.Name && len(b.Aliases) > 0 && len(h.Aliases) > 0 && &b.Aliases[0] == &h.Aliases[0]
				}) {
					kept++
				}
			}
		}
		if kept < 1000 {
			t.Errorf("only %d hosts were as before", kept)
		}
	})
}

// anyone signs and believes everything.
type anyone string

func (a anyone) Name() string                      { return string(a) }
func (anyone) Sign([]byte) ([]byte, error)         { return []byte("signed"), nil }
func (anyone) Verify(string, []byte, []byte) error { return nil }
