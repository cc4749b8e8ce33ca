// SPDX-License-Identifier: MIT

package resolver

import (
	"net/netip"
	"testing"
	"time"
)

// TestWildcards holds that wildcards are below nodes only, and are no names of their own.
func TestWildcards(t *testing.T) {
	for name, owner := range map[string]string{"*": "bkero", "*.nibz": "bkero", "*.mesh": "bkero", "a.*.bkero": "bkero", "*.*.bkero": "bkero", "**.bkero": "bkero", "*.": "bkero", "*bkero": "bkero"} {
		if CheckName(name, owner) == nil {
			t.Errorf("%s may have %s", owner, name)
		}
	}
	a := []netip.Addr{netip.MustParseAddr("10.11.0.9")}
	v := Build(Parts{Zone: "mesh.internal", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.11.0.0/16")}, Nodes: []Node{{Name: "bkero", Addrs: []netip.Addr{netip.MustParseAddr("10.11.0.2")}}},
		Hosts: []Static{{Host: Host{Name: "*.x.bkero", Owner: "bkero", Addrs: a, Aliases: []string{"other"}}}, {Host: Host{Name: "printer", Owner: "bkero", Addrs: a, Aliases: []string{"*.bkero"}}},
			{Host: Host{Name: "*.nibz", Owner: "bkero", Addrs: a}}},
		Groups: []StaticGroup{{Group: Group{Name: "*.bkero", Owner: "bkero"}}}, Built: time.Unix(0, 0)})
	if len(v.Hosts()) != 2 || len(v.Wildcards()) != 1 || len(v.Groups()) != 0 || len(v.Conflicts) != 4 {
		t.Errorf("%v %v %v", v.Hosts(), v.Wildcards(), v.Conflicts)
	}
	if h, known := v.Lookup("y.x.bkero"); h != nil || known {
		t.Error("NSS has a name that is made by a rule")
	}
	if h := v.Host("*.x.bkero.mesh.internal"); h == nil {
		t.Error("its own name is not found")
	}
	if _, known := v.Lookup("x.bkero"); !known {
		t.Error("x.bkero is no empty non-terminal (RFC 4592 section 2.2.2)")
	}
	if h, _ := v.Reverse(a[0]); h == nil || h.Name != "printer" {
		t.Errorf("the address leads back to %v", h)
	}
}
