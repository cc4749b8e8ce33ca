// SPDX-License-Identifier: MIT

package daemon

import (
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"mesh.internal/mesh/nss"
	"mesh.internal/mesh/resolver"
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
	if err := nss.WriteFile(path, Set(v, map[string]bool{"printer": true})); err != nil {
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
