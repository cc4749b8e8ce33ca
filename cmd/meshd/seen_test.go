// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mesh.internal/mesh/cmd/internal/lab"
)

// TestSeen has four nodes, one of them behind a symmetric NAT that has no IPv6, and looks at them with ping, path, netcheck
// and graph. MESH_SHOW=1 prints what a person sees.
func TestSeen(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the programs as they are shipped, which the race detector does not see")
	}
	lab.Require(t)
	l := lab.New(slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	router, err := l.Router("internet")
	if err != nil {
		t.Fatal(err)
	}
	hosts := map[string]*lab.Host{}
	for _, name := range []string{"spencer", "home", "nibz", "sol"} { // 198.18.1.2 to 198.18.4.2
		h, err := l.Host(name)
		if err == nil {
			_, err = l.Connect(h, router)
		}
		for from, to := range programs {
			if err == nil {
				err = h.Install(filepath.Join(built, from), to, 0o755)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		hosts[name] = h
	}
	spencer, home := hosts["spencer"], hosts["home"]
	must(t, router, `ip addr add 198.18.99.9/32 dev lo && nft -f - <<X
table inet nat {
	chain post { type nat hook postrouting priority 100; ip saddr 198.18.2.0/24 snat ip to 198.18.99.9 fully-random; }
	chain forward {
		type filter hook forward priority 0;
		ip daddr 198.18.2.0/24 ct state new drop
		ip6 saddr fd00:198:18:2::/64 drop
		ip6 daddr fd00:198:18:2::/64 drop
	}
	chain input { type filter hook input priority 0; udp dport 1-65535 drop; }
}
X`)
	must(t, spencer, "mesh init --name spencer --public 198.18.1.2")
	up(t, spencer)
	if _, err := spencer.Start("meshd-etcd"); err != nil {
		t.Fatal(err)
	}
	eventually(t, spencer, "mesh status", "store      ok")
	for _, name := range []string{"home", "nibz", "sol"} {
		token := must(t, spencer, "mesh invite "+name+" 2>/dev/null")
		must(t, hosts[name], "mesh join "+strings.TrimSpace(token))
		up(t, hosts[name])
	}
	for _, h := range hosts {
		eventually(t, h, "mesh graph --format json | grep -c '\"name\"'", "4")
	}

	if out := must(t, spencer, "mesh ping -c 2 -i 200ms nibz"); !strings.Contains(out, "2 sent, 2 answered, 0% lost") || !strings.Contains(out, "direct 198.18.3.2:7655") && !strings.Contains(out, "direct [fd00:198:18:3::2]:7655") {
		t.Errorf("ping:\n%s", out)
	}
	must(t, home, "mesh ping --until-direct --limit 20s spencer.mesh.internal")
	if out := must(t, home, "mesh ping --json -c 1 10.11.0.1"); !strings.Contains(out, `"name":"spencer"`) || strings.Count(out, "\n") != 2 {
		t.Errorf("ping --json:\n%s", out)
	}
	for command, want := range map[string]string{
		"mesh ping -c 1 nobody":  `no node of the mesh is called "nobody"`,
		"mesh ping -c 1 spencer": "spencer is this node itself",
		"mesh path 10.11.9.9":    "no node of the mesh has the address",
	} {
		if out, ok := say(t, spencer, command); ok || !strings.Contains(out, want) {
			t.Errorf("%s: %s", command, out)
		}
	}

	// sol takes no packets but from spencer: home reaches it through spencer.
	must(t, router, "nft insert rule inet nat forward ip saddr 198.18.2.0/24 ip daddr 198.18.4.0/24 drop; nft insert rule inet nat forward ip saddr 198.18.4.0/24 ip daddr 198.18.99.9 drop")
	eventually(t, home, "mesh ping -c 1 sol", "via ")
	out := must(t, home, "mesh path sol")
	show(t, out)
	for _, want := range []string{"▶  via ", "198.18.4.2:7655", "record", "Not direct: "} {
		if !strings.Contains(out, want) {
			t.Errorf("path: no %q in\n%s", want, out)
		}
	}
	if out, ok := say(t, home, "mesh ping --until-direct --limit 1s sol"); ok || !strings.Contains(out, "has not become direct") || !strings.Contains(out, "hint: `mesh path sol`") {
		t.Errorf("until direct: %s", out)
	}

	var c struct {
		IPv4, IPv6 struct {
			Answered           int
			Mapping, Filtering string
		}
		Peers []struct{ Name string }
	}
	if err := json.Unmarshal([]byte(must(t, home, "mesh netcheck --json")), &c); err != nil {
		t.Fatal(err)
	}
	if c.IPv4.Mapping != "address- or port-dependent" || c.IPv4.Filtering != "address- and port-dependent" || c.IPv4.Answered != 2 || c.IPv6.Answered != 0 || len(c.Peers) != 3 {
		t.Errorf("netcheck behind a symmetric NAT: %+v", c)
	}
	out = must(t, home, "mesh netcheck")
	show(t, out)
	for _, want := range []string{"2 of 3 nodes answer directly", "seen as     198.18.99.9:", "Behind a symmetric NAT", "through nibz, spencer"} {
		if !strings.Contains(out, want) {
			t.Errorf("netcheck: no %q in\n%s", want, out)
		}
	}
	show(t, must(t, home, "mesh path sol"))
	if err := json.Unmarshal([]byte(must(t, spencer, "mesh netcheck --json")), &c); err != nil {
		t.Fatal(err)
	}
	if c.IPv4.Mapping != "no NAT" || c.IPv4.Filtering != "endpoint-independent" || c.IPv4.Answered != 3 {
		t.Errorf("netcheck in the open: %+v", c)
	}
	show(t, must(t, spencer, "mesh netcheck"))

	dot := must(t, home, "mesh graph")
	for _, want := range []string{` "home" [label = "home", color = "green", style = "filled"];`, `"sol" [label = "sol", color = "orange"]`, `"spencer" -- "home" [w = `} {
		if !strings.Contains(dot, want) {
			t.Errorf("graph: no %q in\n%s", want, dot)
		}
	}
	must(t, home, "mesh graph --format svg -o /run/mesh.svg && test $(stat -c %a /run/mesh.svg) = 644")
	svg, err := home.ReadFile("/run/mesh.svg")
	if err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(strings.NewReader(string(svg))); err == nil; {
		_, err = d.Token()
	}
	if !errors.Is(err, io.EOF) || !strings.Contains(string(svg), "via ") {
		t.Errorf("the picture: %v\n%s", err, svg)
	}
	if dir := os.Getenv("MESH_PICTURES"); dir != "" {
		os.WriteFile(filepath.Join(dir, "lab.svg"), svg, 0o644)
	}
}

func show(t *testing.T, out string) {
	if os.Getenv("MESH_SHOW") != "" {
		t.Log("\n" + out)
	}
}

// eventually repeats a command until its output has want in it.
func eventually(t *testing.T, h *lab.Host, command, want string) {
	t.Helper()
	begin := time.Now()
	for out := ""; !strings.Contains(out, want); out, _ = say(t, h, command) {
		if time.Since(begin) > 30*time.Second {
			t.Fatalf("%s on %s: %q is not in\n%s", command, h.Name, want, out)
		}
	}
}
