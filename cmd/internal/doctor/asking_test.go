// SPDX-License-Identifier: MIT

//go:build linux

package doctor

import (
	"fmt"
	"testing"

	"mesh.internal/mesh/cmd/internal/splitdns"
)

func TestAsking(t *testing.T) {
	static := []Program{{Path: "/bin/a", Why: Static, Count: 1}, {Path: "/bin/b", Why: Musl, Count: 1, Where: "container"}, {Path: "/bin/c", Why: NoModule, Count: 1}}
	for _, c := range []struct {
		name     string
		m        Machine
		severity []Severity
	}{
		{"on no mesh", Machine{OnMesh: "no"}, []Severity{Problem}},
		{"not root", Machine{Asking: AskedDNS{Err: "cannot be read"}, Programs: static}, []Severity{Warning}},
		{"set up", Machine{Asking: AskedDNS{Plan: splitdns.Plan{Way: splitdns.ByResolved, Done: true}}, Programs: static}, []Severity{OK, OK}},
		{"taken over", Machine{}, []Severity{OK}},
		{"no way", Machine{Asking: AskedDNS{Plan: splitdns.Plan{Why: "nobody"}, Sees: "no such name"}, Programs: static}, []Severity{Warning, Warning}},
		{"not yet", Machine{Asking: AskedDNS{Plan: splitdns.Plan{Way: splitdns.ByDnsmasq}, Sees: "no such name"}}, []Severity{Warning}},
		{"not possible", Machine{Asking: AskedDNS{Plan: splitdns.Plan{Way: splitdns.ByDnsmasq, Problem: "put it there"}, Sees: "no such name"}}, []Severity{Warning}},
		{"meshd is silent", Machine{Asking: AskedDNS{Plan: splitdns.Plan{Way: splitdns.ByDnsmasq, Done: true}, Sees: "no answer"}}, []Severity{Problem}},
	} {
		var got []Severity
		for _, f := range Asking(&c.m) {
			got = append(got, f.Severity)
			if f.What == "" || (f.Severity != OK) != (f.Remedy != "") {
				t.Errorf("%s: %+v", c.name, f)
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(c.severity) {
			t.Errorf("%s: %v, want %v", c.name, got, c.severity)
		}
	}
}
