// SPDX-License-Identifier: MIT

package export

import (
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"mesh.internal/mesh/cmd/internal/api"
)

func as(s string) (out []netip.Addr) {
	for f := range strings.FieldsSeq(s) {
		out = append(out, netip.MustParseAddr(f))
	}
	return out
}

// example is a mesh with all that its forms must cope with.
func example() Mesh {
	host := func(name, owner, addrs string, aliases ...string) api.Host {
		h := api.Host{Name: name, FQDN: name + ".mesh.internal", Owner: owner, Node: name == owner, Addrs: as(addrs), Aliases: aliases}
		h.Names = append(h.Names, h.FQDN, name)
		for _, a := range aliases {
			h.Names = append(h.Names, a+".mesh.internal", a)
		}
		return h
	}
	m := Mesh{Hosts: api.Hosts{Revision: 1<<32 + 42, Domain: "mesh.internal", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.11.0.0/16"), netip.MustParsePrefix("fd00:1::/48")}}}
	shared := host("alias-of-spencer", "bkero", "10.11.0.1")
	shared.Shared = as("10.11.0.1")
	public := host("google.com", "com", "10.11.0.9") // its short form is the world's
	public.Names = public.Names[:1]
	m.Hosts.Hosts = []api.Host{shared, host("bkero", "bkero", "10.11.0.2 fd00:1::2"), public, host("nas.bkero", "bkero", "10.11.0.80 10.11.0.81 fd00:1::80"),
		host("printer", "spencer", "10.11.0.77", "laser", "ink.spencer"), host("spencer", "spencer", "10.11.0.1 fd00:1::1")}
	m.Hosts.Hosts[4].Meta = map[string]string{"location": "cellar, left", "on-call": `"{{ lookup('pipe', 'id') }}" \ <b>&`}
	m.Groups = []api.Group{{Name: "big-iron", Owner: "bkero", Hosts: []string{"nas.bkero.mesh.internal"}},
		{Name: "big.iron", Owner: "bkero", Hosts: []string{"nas.bkero.mesh.internal", "printer.mesh.internal"}}, {Name: "nobody", Owner: "bkero"}}
	return m
}

func write(t *testing.T, format string, o Options) string {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, format, example(), o); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// forms are all golden files, and how they are made.
var forms = map[string]struct {
	format string
	o      Options
}{
	"hosts":                            {"hosts", Options{}},
	"hosts.json":                       {"json", Options{}},
	"11.10.in-addr.arpa":               {"zone", Options{Reverse: netip.MustParsePrefix("10.11.0.0/16")}},
	"0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa": {"zone", Options{Reverse: netip.MustParsePrefix("fd00:1::/48")}},
	"ssh_config":                       {"ssh-config", Options{}},
	"ansible.json":                     {"ansible", Options{}},
	"prometheus.json":                  {"prometheus-sd", Options{Port: 9100}},
}

// TestGolden compares with testdata; UPDATE=1 writes that.
func TestGolden(t *testing.T) {
	for name, f := range forms {
		path := filepath.Join("testdata", name)
		got := write(t, f.format, f.o)
		if os.Getenv("UPDATE") != "" {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil || got != string(want) {
			t.Errorf("%s (%v): got\n%s", path, err, got)
		}
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct {
		format string
		o      Options
		err    string
	}{
		{"yaml", Options{}, "want table, hosts, json, zone, ssh-config, ansible or prometheus-sd"},
		{"zone", Options{Reverse: netip.MustParsePrefix("10.11.0.0/20")}, "8, 16, 24"},
		{"zone", Options{Reverse: netip.MustParsePrefix("fd00::/7")}, "4, 8, 12"},
		{"zone", Options{Reverse: netip.MustParsePrefix("0.0.0.0/0")}, "8, 16, 24"},
	} {
		if err := Write(new(bytes.Buffer), c.format, example(), c.o); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s %v: %v", c.format, c.o, err)
		}
	}
}

// reader finds the program that reads a form. Debian has sbin in root's PATH only.
func reader(t *testing.T, program, pkg string) string {
	t.Helper()
	for _, p := range []string{program, "/usr/sbin/" + program} {
		if path, err := exec.LookPath(p); err == nil {
			return path
		}
	}
	t.Skipf("%s (package %s) is not here: what it reads was compared with testdata only", program, pkg)
	return ""
}

// say runs a reader and returns all that it says.
func say(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestZoneReader(t *testing.T) {
	check := reader(t, "named-checkzone", "bind9-utils")
	for name, f := range forms {
		if f.format != "zone" {
			continue
		}
		out := say(t, check, "-k", "fail", "-m", "fail", "-r", "fail", name, filepath.Join("testdata", name))
		if !strings.Contains(out, "loaded serial 42") || strings.Contains(out, "warning") {
			t.Errorf("%s: %s", name, out)
		}
	}
}

func TestSSHReader(t *testing.T) {
	ssh := reader(t, "ssh", "openssh-client")
	for typed, want := range map[string]string{"laser": "10.11.0.77 printer.mesh.internal", "printer.mesh.internal": "10.11.0.77 printer.mesh.internal", "nas.bkero": "10.11.0.80 nas.bkero.mesh.internal",
		"google.com": "google.com "} {
		var hostname, alias string
		for line := range strings.Lines(say(t, ssh, "-G", "-F", filepath.Join("testdata", "ssh_config"), typed)) {
			switch key, value, _ := strings.Cut(strings.TrimSpace(line), " "); key {
			case "hostname":
				hostname = value
			case "hostkeyalias":
				alias = value
			}
		}
		if got := hostname + " " + alias; got != want {
			t.Errorf("ssh %s goes to %q, want %q", typed, got, want)
		}
	}
}

// TestHostsReader has the C library read the hosts file, in a program of its own with a mount namespace of its own.
func TestHostsReader(t *testing.T) {
	unshare := reader(t, "unshare", "util-linux")
	if os.Getuid() != 0 {
		t.Skip("needs root, for a mount namespace with another /etc/hosts")
	}
	path, err := filepath.Abs("testdata/hosts")
	if err != nil {
		t.Fatal(err)
	}
	script := "mount --bind " + path + " /etc/hosts && for n in laser PRINTER.mesh.internal 10.11.0.1 fd00:1::80; do getent -s hosts:files hosts $n; done"
	out, err := exec.CommandContext(t.Context(), unshare, "--mount", "--propagation", "private", "sh", "-c", script).CombinedOutput()
	if err != nil && strings.Contains(string(out), "permitted") {
		t.Skipf("no mount namespace here: %s", out)
	}
	want := []string{"10.11.0.77 printer.mesh.internal printer laser.mesh.internal laser ink.spencer.mesh.internal ink.spencer",
		"10.11.0.77 printer.mesh.internal printer laser.mesh.internal laser ink.spencer.mesh.internal ink.spencer",
		"10.11.0.1 spencer.mesh.internal spencer", "fd00:1::80 nas.bkero.mesh.internal nas.bkero"}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	for i := range lines {
		lines[i] = strings.Join(strings.Fields(lines[i]), " ")
	}
	if err != nil || strings.Join(lines, "\n") != strings.Join(want, "\n") {
		t.Errorf("%v: got\n%s\nwant\n%s", err, strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

func TestAnsibleReader(t *testing.T) {
	inventory := reader(t, "ansible-inventory", "ansible-core")
	path, err := filepath.Abs("testdata/ansible.json")
	if err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(t.TempDir(), "inventory")
	if err := os.WriteFile(script, []byte("#!/bin/sh\ncat "+path+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out := say(t, inventory, "-i", script, "--graph", "mesh_group_big_iron"); !strings.Contains(out, "printer.mesh.internal") || strings.Contains(out, "WARN") {
		t.Error(out)
	}
	if out := say(t, inventory, "-i", script, "--host", "printer.mesh.internal"); !strings.Contains(out, `"mesh_name": "printer"`) || !strings.Contains(out, `lookup('pipe', 'id')`) {
		t.Error(out)
	}
}

func TestPrometheusReader(t *testing.T) {
	promtool := reader(t, "promtool", "prometheus")
	path, err := filepath.Abs("testdata/prometheus.json")
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "prometheus.yml")
	const text = "scrape_configs:\n- job_name: mesh\n  file_sd_configs:\n  - files: [%]\n"
	if err := os.WriteFile(config, []byte(strings.Replace(text, "%", path, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	say(t, promtool, "check", "config", config)
	if out := say(t, promtool, "check", "service-discovery", "--timeout=3s", config, "mesh"); strings.Count(out, `"__address__"`) < 6 || !strings.Contains(out, `"__meta_mesh_meta_on_call"`) || !strings.Contains(out, `"instance": "nas.bkero.mesh.internal"`) {
		t.Error(out)
	}
}
