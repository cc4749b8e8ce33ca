// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// nat makes a host a home router that lets nothing in from its uplink but answers and, with a server, what is for the
// mesh's port there.
const nat = `nft -f - <<'X'
flush ruleset
table ip home {
 chain pre { type nat hook prerouting priority -100; %s; }
 chain post { type nat hook postrouting priority 100; oifname "eth0" masquerade; }
 chain forward { type filter hook forward priority 0; iifname "eth0" ct state established,related accept; iifname "eth0" ct status dnat accept; iifname "eth0" drop; }
 chain input { type filter hook input priority 0; iifname "eth0" ct state established,related accept; iifname "eth0" drop; }
}
X`

// TestJoinThroughAMember has an inviter behind NAT. bkero, who can be reached, joined while the router had a port open.
//
//	spencer ── home (NAT) ──┐
//	bkero, public ──────────┼── internet
//	nibz ───────────────────┘
func TestJoinThroughAMember(t *testing.T) {
	l, router := internet(t)
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("skipped: nft(8) is not installed")
	}
	home, err := l.Router("home")
	if err != nil {
		t.Fatal(err)
	}
	uplink, err := l.Connect(home, router)
	if err != nil {
		t.Fatal(err)
	}
	spencer, atHome := attach(t, l, home, "spencer")
	bkero, public := attach(t, l, router, "bkero")
	nibz, _ := attach(t, l, router, "nibz")

	must(t, home, fmt.Sprintf(nat, `iifname "eth0" meta l4proto { tcp, udp } th dport 7655 dnat to `+atHome.Addr4.String()))
	must(t, spencer, "mesh init --name spencer --public "+uplink.Addr4.String())
	meshd := up(t, spencer)
	if _, err := spencer.Start("meshd-etcd"); err != nil {
		t.Fatal(err)
	}
	until(t, spencer, "the store", "mesh status", "ok, revision")
	join := func(flags string, token string) string {
		t.Helper()
		return "mesh join " + flags + " " + strings.TrimSpace(token)
	}
	must(t, bkero, join("--public "+public.Addr4.String(), must(t, spencer, "mesh invite bkero 2>/dev/null")))
	member := up(t, bkero)
	until(t, spencer, "the tunnel", "mesh status", "direct "+public.Addr4.String())

	must(t, home, fmt.Sprintf(nat, ""))
	must(t, spencer, "sed -i '/^public/d' /etc/mesh/mesh.toml")
	meshd.Signal(syscall.SIGHUP)
	until(t, spencer, "the configuration is read again", "mesh status | grep -c "+uplink.Addr4.String()+":7655", "0")
	if out, ok := say(t, nibz, "timeout 3 bash -c '</dev/tcp/"+uplink.Addr4.String()+"/7655' 2>&1"); ok {
		t.Fatalf("spencer can be reached after all: %s", out)
	}
	token := must(t, spencer, "mesh invite nibz 2>/run/hints; grep hint /run/hints || true")
	if strings.Contains(token, "hint") {
		t.Errorf("inviting warns: %s", token)
	}
	out := must(t, nibz, join("", token))
	if !strings.Contains(out, "This machine is nibz on the mesh mesh") {
		t.Errorf("joining: %s", out)
	}
	if out := must(t, nibz, "grep connect /etc/mesh/mesh.toml"); !strings.Contains(out, "spencer") || !strings.Contains(out, "bkero") {
		t.Errorf("it will connect to %s", out)
	}
	if out := member.Output(); !strings.Contains(out, "a stranger speaks to an inviter through this node") {
		t.Errorf("bkero says: %s", out)
	}
	up(t, nibz)
	until(t, nibz, "nibz reaches bkero", "ping -c1 -W2 10.11.0.2", "1 received")
	until(t, nibz, "nibz reaches spencer", "ping -c1 -W2 10.11.0.1", "1 received")

	bad, ok := say(t, nibz, "mesh --state /run/x --config /run/x.toml join "+token)
	if ok || !strings.Contains(bad, "has been used already") {
		t.Errorf("the token again: %s", bad)
	}
}
