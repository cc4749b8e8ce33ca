// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"strings"
	"syscall"
	"testing"

	"mesh.internal/mesh/cmd/internal/lab"
)

// TestNames uses names as people do, on two nodes: hosts with all that belongs to them, in the forms of other programs, seen
// as they change and explained, brought from before, kept and given away.
func TestNames(t *testing.T) {
	l, router := internet(t)
	spencer, public := attach(t, l, router, "spencer")
	bkero, _ := attach(t, l, router, "bkero")
	says := func(h *lab.Host, command string, want ...string) {
		t.Helper()
		out, ok := say(t, h, command)
		t.Logf("%s$ %s\n%s", h.Name, command, out)
		for _, w := range want {
			if !strings.Contains(strings.Join(strings.Fields(out), " "), w) {
				t.Errorf("%s$ %s (success %v): no %q in\n%s", h.Name, command, ok, w, out)
			}
		}
	}
	must(t, spencer, "mesh init --name spencer --public "+public.Addr4.String())
	up(t, spencer)
	if _, err := spencer.Start("meshd-etcd"); err != nil {
		t.Fatal(err)
	}
	until(t, spencer, "the store", "mesh status", "ok, revision")
	must(t, bkero, "mesh join "+strings.TrimSpace(must(t, spencer, "mesh invite bkero 2>/dev/null")))
	member := up(t, bkero)
	until(t, bkero, "the store", "mesh status", "ok, revision")
	watching, err := bkero.Start("mesh", "watch", "--all", "bkero", "printer")
	if err != nil {
		t.Fatal(err)
	}
	seen := func(what, want string) {
		t.Helper()
		for range 4000 {
			if strings.Contains(strings.Join(strings.Fields(watching.Output()), " "), want) {
				return
			}
			say(t, bkero, "true")
		}
		t.Fatalf("%s: mesh watch said\n%s", what, watching.Output())
	}
	seen("what there is", "is bkero 10.11.0.2")

	must(t, spencer, "mesh host add printer 10.11.0.77 --alias laser --meta location=cellar --meta 'on-call=me {{ now }}'")
	seen("an addition", "added printer 10.11.0.77 (laser) of spencer")
	must(t, spencer, "mesh host add printer 10.11.0.78 && mesh host alias add printer ink && mesh host alias rm printer laser && mesh host set printer --meta on-call=")
	seen("a change", "addresses: 10.11.0.77 → 10.11.0.77 10.11.0.78")
	says(spencer, "mesh host show printer", "addresses 10.11.0.77 10.11.0.78", "aliases ink", "owner spencer", "metadata location = cellar")
	until(t, bkero, "a name is there", "mesh hosts", "ink")
	says(bkero, "mesh hosts --format hosts", "10.11.0.78 printer.mesh.internal printer ink.mesh.internal ink")
	says(bkero, "mesh hosts --format zone", "printer.mesh.internal. 10 IN A 10.11.0.78", "dns.mesh.internal. 10 IN A 10.11.0.1")
	says(bkero, "mesh hosts --format zone --reverse 10.11.0.0/16", "77.0.11.10.in-addr.arpa. IN PTR printer.mesh.internal.")
	says(bkero, "mesh hosts --format ssh-config", "Host printer.mesh.internal printer ink.mesh.internal ink HostName 10.11.0.77")
	says(bkero, "mesh hosts --format ansible", `"mesh_meta": { "location": "cellar" }`)
	says(bkero, "mesh hosts --format prometheus-sd --port 9115", `"10.11.0.77:9115"`)
	says(bkero, "mesh host rm printer", "was added on spencer")
	until(t, bkero, "the snapshot has it", "mesh snapshot dump /run/mesh/hosts.db", "ink")
	says(bkero, "mesh why ink", "is printer.mesh.internal", "an alias", "spencer/hosts/printer in the store, signed by spencer", "as of now", "ink is claimed by spencer", "as it should")
	says(bkero, "mesh why 10.11.0.1", "is spencer.mesh.internal", "its certificate, issued")
	says(bkero, "mesh why wpad; echo status $?", "cannot be", "status 1")
	says(bkero, "mesh why --json printer", `"source": "store"`, `"programs": {`)

	// Watching outlives meshd, and what was changed meanwhile is told.
	member.Signal(syscall.SIGTERM)
	if err := member.Wait(t.Context()); err != nil {
		t.Fatalf("%v: %s", err, member.Output())
	}
	says(bkero, "mesh why printer", "snapshot says 10.11.0.77 10.11.0.78", "meshd is not running")
	must(t, spencer, "mesh host rm printer 10.11.0.78")
	member = up(t, bkero)
	seen("a change while meshd was away", "addresses: 10.11.0.77 10.11.0.78 → 10.11.0.77")

	must(t, spencer, "mesh host claim shared")
	says(spencer, "mesh host claim", "shared")
	says(bkero, "mesh host add shared 10.11.0.90; echo status $?", "the name shared is taken: it belongs to spencer", "status 1")
	says(bkero, "mesh why shared; true", "shared is claimed by spencer")

	must(t, spencer, "printf '127.0.0.1 localhost\\n10.11.0.60 scanner flat\\n10.11.0.77 printer\\n192.0.2.1 far\\n' >/run/old")
	says(spencer, "mesh import hosts --dry-run /run/old", "would take old:2 scanner 10.11.0.60 (flat)", "there old:3 printer 10.11.0.77", "would take 1, there already 1, left 2")
	says(spencer, "mesh import hosts /run/old", "took 1, there already 1, left 2")
	says(spencer, "mesh import hosts /run/old", "took 0, there already 2, left 2")
	must(t, spencer, "mkdir -p /run/net/hosts && echo Name = x >/run/net/tinc.conf && printf 'Address = x.example.org\\nSubnet = 10.11.0.50/32\\nSubnet = 10.20.0.0/16\\n' >/run/net/hosts/Old_Box")
	says(spencer, "mesh import tinc /run/net", "took hosts/Old_Box:2 old-box 10.11.0.50", `subnet = ["10.20.0.0/16"]`, "took 1, there already 0, left 3")

	// bkero is off while it is given the printer.
	member.Signal(syscall.SIGTERM)
	member.Wait(t.Context())
	must(t, spencer, "mesh host give printer bkero && mesh host give shared bkero")
	says(spencer, "mesh host show ink", "addresses 10.11.0.77", "owner bkero")
	says(spencer, "mesh why printer", "spencer/hosts/printer in the store, signed by spencer", "was given by spencer to bkero")
	up(t, bkero)
	until(t, spencer, "bkero has taken it", "mesh why printer", "bkero/hosts/printer in the store, signed by bkero")
	seen("the new owner", "owner: spencer → bkero")
	until(t, bkero, "bkero keeps the other name", "mesh host claim", "shared")
	must(t, bkero, "mesh host set printer 10.11.0.79 && mesh host release shared")
	until(t, spencer, "the change of the new owner", "mesh host show printer", "10.11.0.79")
	must(t, spencer, "mesh host add shared 10.11.0.91")
	t.Logf("bkero$ mesh watch --all bkero printer\n%s", watching.Output())
}
