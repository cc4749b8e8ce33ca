// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"mesh.internal/mesh/cmd/internal/lab"
)

// run starts a program that ends with the test.
func run(t *testing.T, h *lab.Host, program string, args ...string) *lab.Process {
	t.Helper()
	p, err := h.Start(program, args...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestProjection: mesh status says what is written for others, and why it is not.
func TestProjection(t *testing.T) {
	h := machine(t)
	must(t, h, `mesh init --name spencer && echo 'project = ["skydns", "hosts"]' >>/etc/mesh/mesh.toml && meshd -check`)
	up(t, h)
	store := run(t, h, "meshd-etcd")
	// Of a node with two addresses: a key for each, also by its name in Consul's tree and as name server, and the apex; forwards and back.
	until(t, h, "the projection", "mesh status", "project    skydns, written by this node, 9 keys")
	until(t, h, "the projection", "mesh status", "project    hosts, written by this node, 4 keys")
	must(t, h, "mesh host add printer $(mesh hosts --format hosts | sed -n 's/^10\\.\\([0-9]*\\)\\..*/10.\\1.0.77/p')")
	until(t, h, "a new name", "mesh status", "written by this node, 11 keys")
	until(t, h, "a new name", "mesh status --json", `"keys": 6`)
	store.Signal(syscall.SIGKILL)
	<-store.Done()
	until(t, h, "the store is away", "mesh status", "project    skydns, not written: ")
}

// TestForeignStore lives with an etcd of Debian that others run, with users and passwords, as docs/store.md says.
func TestForeignStore(t *testing.T) {
	etcd := os.Getenv("MESH_ETCD")
	if etcd == "" {
		t.Skip("there is no etcd program: make test-etcd")
	}
	h := machine(t)
	for _, p := range []string{"etcd", "etcdctl"} {
		if err := h.Install(filepath.Join(filepath.Dir(etcd), p), "/usr/bin/"+p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	server := run(t, h, "etcd", "--data-dir", "/run/etcd", "--log-level", "error")
	until(t, h, "etcd", "etcdctl endpoint health", "is healthy")
	must(t, h, "etcdctl user add root --new-user-password=rootword && etcdctl role add root && etcdctl user grant-role root root && etcdctl auth enable")
	doc, err := os.ReadFile("../../docs/store.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(doc)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "etcdctl ") {
			must(t, h, "ETCDCTL_USER=root:rootword "+line)
		}
	}
	must(t, h, `mkdir -p /etc/mesh/store && cd /etc/mesh/store && umask 077 && echo wrong >password &&
		mesh init --name spencer --store http://127.0.0.1:2379 --store-user spencer --store-password-file password &&
		echo 'project = ["skydns", "hosts"]' >>/etc/mesh/mesh.toml && meshd -check && grep store_ /etc/mesh/mesh.toml`)
	up(t, h)
	until(t, h, "a wrong password", "mesh status", "the store refuses the user spencer or the password in /etc/mesh/store/password")
	must(t, h, "echo SECRET >/etc/mesh/store/password")
	until(t, h, "the right password", "mesh status", "store      ok")
	if out := must(t, h, "cat /etc/mesh/mesh.toml; mesh status --json"); strings.Contains(out, "SECRET") {
		t.Error("the password is shown")
	}
	until(t, h, "the projection", "mesh status", "skydns, written by this node, 9 keys")
	until(t, h, "the projection", "ETCDCTL_USER=root:rootword etcdctl get --print-value-only /hosts/spencer.mesh.internal", "10.")
	must(t, h, "chmod 644 /etc/mesh/store/password")
	if out, ok := say(t, h, "meshd -check"); ok || !strings.Contains(out, "chmod 0600 /etc/mesh/store/password") {
		t.Errorf("an open password: %s", out)
	}
	must(t, h, "chmod 600 /etc/mesh/store/password; ETCDCTL_USER=root:rootword etcdctl role revoke-permission mesh-spencer --prefix=true /mesh/v1/mesh/spencer/")
	must(t, h, "mesh host add printer $(mesh hosts --format hosts | sed -n 's/^10\\.\\([0-9]*\\)\\..*/10.\\1.0.77/p')")
	until(t, h, "no permission", "mesh status", "the store does not let the user spencer do that below /mesh/v1/mesh/")
	must(t, h, "ETCDCTL_USER=root:rootword etcdctl role grant-permission mesh-spencer --prefix=true readwrite /mesh/v1/mesh/spencer/")
	until(t, h, "the permission", "mesh status; ETCDCTL_USER=root:rootword etcdctl get --keys-only /mesh/v1/mesh/spencer/hosts/printer", "/mesh/v1/mesh/spencer/hosts/printer")
	server.Signal(syscall.SIGKILL)
	<-server.Done()
	until(t, h, "nobody there", "mesh status", "the store does not answer: nobody listens at 127.0.0.1:2379")
}

// TestRealCoreDNS asks a real CoreDNS and the node's own DNS server the same, of an embedded store.
func TestRealCoreDNS(t *testing.T) {
	coredns := os.Getenv("MESH_COREDNS")
	if coredns == "" {
		t.Skip("there is no CoreDNS program: make test-etcd")
	}
	h := machine(t)
	if err := h.Install(coredns, "/usr/bin/coredns", 0o755); err != nil {
		t.Fatal(err)
	}
	must(t, h, `mesh init --name spencer --prefix 10.77.0.0/16 && echo 'project = ["skydns"]' >>/etc/mesh/mesh.toml`)
	up(t, h)
	run(t, h, "meshd-etcd")
	until(t, h, "the store", "mesh status", "store      ok")
	must(t, h, "mesh host add printer 10.77.0.77 --alias lpt && mesh host add nas.spencer 10.77.0.80 10.77.0.81 --alias files.spencer")
	// 7 of spencer, 2 of its addresses back; printer, lpt and one back; nas and files twice, and two back.
	until(t, h, "the projection", "mesh status", "project    skydns, written by this node, 18 keys")
	corefile := `mesh.internal:5353 in-addr.arpa:5353 ip6.arpa:5353 {
	errors
	etcd {
		path /skydns
		endpoint https://10.77.0.1:2379
		tls /var/lib/mesh/node.crt /var/lib/mesh/node.key /var/lib/mesh/ca.crt
	}
}
`
	if err := h.WriteFile("/run/Corefile", []byte(corefile), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, h, "coredns", "-conf", "/run/Corefile")
	until(t, h, "CoreDNS", "dig +short +time=1 +tries=1 -p 5353 @127.0.0.1 printer.mesh.internal", "10.77.0.77")
	for _, q := range []string{"spencer.mesh.internal A", "spencer.mesh.internal AAAA", "printer.mesh.internal A", "printer.mesh.internal AAAA", "lpt.mesh.internal A",
		"nas.spencer.mesh.internal A", "FILES.spencer.mesh.internal A", "nobody.mesh.internal A", "mesh.internal A", "mesh.internal AAAA",
		"-x 10.77.0.1", "-x 10.77.0.77", "-x 10.77.0.80", "-x 10.77.0.99", "-x $(dig +short @10.77.0.1 spencer.mesh.internal AAAA)"} {
		answers := func(server string) string {
			return must(t, h, "dig +noall +comments +answer "+server+" "+q+" | sed -n 's/.*status: \\([A-Z]*\\).*/\\1/p; s/^[^;].*\\sIN\\s*//p' | sort")
		}
		ours, theirs := answers("@10.77.0.1"), answers("-p 5353 @127.0.0.1")
		if to := map[string]string{"lpt.mesh.internal A": "printer", "FILES.spencer.mesh.internal A": "nas.spencer"}[q]; to != "" { // the layout has addresses for aliases (docs/store.md)
			alias := "CNAME\t" + to + ".mesh.internal.\n"
			if !strings.Contains(ours, alias) {
				t.Errorf("%s: %q here, without %q", q, ours, alias)
			}
			ours = strings.Replace(ours, alias, "", 1)
		}
		if ours != theirs || ours == "" {
			t.Errorf("%s: %q here, %q from CoreDNS", q, ours, theirs)
		}
	}
	if out := must(t, h, "dig +short -p 5353 @127.0.0.1 mesh.internal NS"); out != "spencer.ns.dns.mesh.internal.\n" {
		t.Errorf("the zone's name server: %q", out)
	}
}
