// SPDX-License-Identifier: MIT

package doctor

import (
	"net/netip"
	"strings"
	"testing"
)

func TestDNS(t *testing.T) {
	m := &Machine{Zone: "mesh.internal", Addr: netip.MustParseAddr("10.11.0.2")}
	for system, want := range map[string]string{
		"darwin":  "/etc/resolver/mesh.internal the line\n    nameserver 10.11.0.2",
		"freebsd": "forward-addr: 10.11.0.2",
		"windows": "Add-DnsClientNrptRule -Namespace .mesh.internal -NameServers 10.11.0.2",
		"plan9":   "questions for mesh.internal asked of 10.11.0.2",
	} {
		f := DNS(m, system)
		if len(f) != 1 || f[0].Severity != Warning || !strings.Contains(f[0].Remedy, want) {
			t.Errorf("%s: %v", system, f)
		}
	}
	m.OnMesh = "no configuration"
	if f := DNS(m, "darwin"); len(f) != 1 || f[0].Severity != Problem {
		t.Errorf("on no mesh: %v", f)
	}
}
