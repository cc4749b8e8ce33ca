// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestRealDNS has real programs ask the DNS server, and a real BIND, which is not on the mesh, carry its zones.
func TestRealDNS(t *testing.T) {
	for _, p := range []string{"named", "dig", "kdig", "drill", "dnsperf"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("there is no %s: make test-dns", p)
		}
	}
	l, router := internet(t)
	spencer, public := attach(t, l, router, "spencer")
	home, homeLink := attach(t, l, router, "home")
	must(t, spencer, "mesh init --name spencer --prefix 10.77.0.0/16 --public "+public.Addr4.String())
	must(t, spencer, fmt.Sprintf("printf '[dns]\\nlisten = [\"127.0.0.153\", \"%s\"]\\nsecondaries = [\"%s\"]\\n' >>/etc/mesh/mesh.toml && meshd -check", public.Addr4, homeLink.Addr4))
	meshd := up(t, spencer)
	if _, err := spencer.Start("meshd-etcd"); err != nil {
		t.Fatal(err)
	}
	until(t, spencer, "the store", "mesh status", "ok, revision")
	must(t, spencer, "mesh host add lamp 10.77.0.70 --alias light --meta room=attic && mesh host add '*.spencer' 10.77.0.71")
	until(t, spencer, "the first name", "dig +short @127.0.0.153 lamp.mesh.internal", "10.77.0.70")

	// Clients.
	for _, c := range []struct{ query, want string }{
		{"spencer.mesh.internal A", "NOERROR"}, {"spencer.mesh.internal MX", "NOERROR"}, {"nobody.mesh.internal A", "NXDOMAIN"}, {"example.org A", "REFUSED"},
		{"light.mesh.internal A", "CNAME"}, {"any.spencer.mesh.internal A", "10.77.0.71"}, {"lamp.mesh.internal TXT", "room=attic"}, {"mesh.internal SOA", "hostmaster.mesh.internal."},
		{"70.0.77.10.in-addr.arpa PTR", "lamp.mesh.internal."}, {"b._dns-sd._udp.mesh.internal PTR", "mesh.internal."}, {"spencer.node.mesh.internal A", "10.77.0.1"}, {"lamp.mesh.internal ANY", "RFC8482"},
	} {
		for _, client := range []string{"dig +notcp @127.0.0.153", "dig +tcp @127.0.0.153", "dig +noedns @127.0.0.153", "kdig @127.0.0.153", "kdig +tcp @127.0.0.153", "drill @127.0.0.153", "drill -t @127.0.0.153", "dig @10.77.0.1"} {
			out, _ := say(t, spencer, client+" "+c.query)
			if strings.HasPrefix(client, "drill") { // NAME, then the type
				name, kind, _ := strings.Cut(c.query, " ")
				out, _ = say(t, spencer, strings.Replace(client, "@", name+" @", 1)+" "+kind)
			}
			if !strings.Contains(out, c.want) {
				t.Errorf("%s %s: no %s in\n%s", client, c.query, c.want, out)
			}
		}
	}
	out := must(t, spencer, "for n in spencer lamp light nobody; do echo $n.mesh.internal A; echo $n.mesh.internal AAAA; done >/tmp/q; dnsperf -s 127.0.0.153 -d /tmp/q -l 1")
	if !strings.Contains(out, "Queries lost:         0 (0.00%)") {
		t.Errorf("under load: %s", out)
	}

	// BIND.
	if err := home.WriteFile("/etc/named-test.conf", []byte(fmt.Sprintf(`options { directory "/var/tmp"; pid-file none; recursion no; dnssec-validation no; };
controls {};
zone "mesh.internal" { type secondary; primaries { %[1]s; }; file "mesh"; };
zone "77.10.in-addr.arpa" { type secondary; primaries { %[1]s; }; file "reverse"; };
`, public.Addr4)), 0o644); err != nil {
		t.Fatal(err)
	}
	named, err := home.Start("named", "-g", "-c", "/etc/named-test.conf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("named:\n%s\nmeshd:\n%s", named.Output(), meshd.Output())
		}
	})
	until(t, home, "BIND has the zone", "dig +short @127.0.0.1 lamp.mesh.internal", "10.77.0.70")
	until(t, home, "BIND has the reverse zone", "dig +short @127.0.0.1 -x 10.77.0.70", "lamp.mesh.internal.")
	must(t, spencer, "mesh host add printer 10.77.0.77 && mesh host rm lamp")
	begin := time.Now()
	until(t, home, "BIND has what came", "dig +short @127.0.0.1 printer.mesh.internal", "10.77.0.77")
	until(t, home, "and not what went", "dig @127.0.0.1 lamp.mesh.internal", "NXDOMAIN")
	until(t, home, "nor who it was", "dig @127.0.0.1 -x 10.77.0.70", "NXDOMAIN")
	t.Logf("a change was at BIND after %v", time.Since(begin))
	if time.Since(begin) > 15*time.Second {
		t.Errorf("BIND knew of a change after %v: it has not been told", time.Since(begin))
	}
	if !strings.Contains(meshd.Output(), "taken what has changed in a zone") {
		t.Error("BIND has never asked for changes alone")
	}
	for _, q := range []string{"any.spencer.mesh.internal A", "spencer.mesh.internal A", "mesh.internal NS", "nobody.mesh.internal A", "dns.mesh.internal A", "spencer.node.mesh.internal A"} {
		ours, theirs := must(t, spencer, "dig +short @127.0.0.153 "+q), must(t, home, "dig +short @127.0.0.1 "+q)
		if ours != theirs {
			t.Errorf("%s: %q here, %q from BIND", q, ours, theirs)
		}
	}
	if out, _ := say(t, spencer, "dig @127.0.0.153 mesh.internal AXFR"); strings.Contains(out, "printer") {
		t.Errorf("everybody gets the zone: %s", out)
	}
}
