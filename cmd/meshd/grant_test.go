// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"strings"
	"testing"
	"time"

	"mesh.internal/mesh/cmd/internal/lab"
)

// TestGrant lets a member of a mesh of real programs invite, and holds it to what it may.
func TestGrant(t *testing.T) {
	l, router := internet(t)
	spencer, link := attach(t, l, router, "spencer")
	bkero, _ := attach(t, l, router, "bkero")
	guest, _ := attach(t, l, router, "guest")
	until := func(h *lab.Host, what, command string) {
		t.Helper()
		for begin := time.Now(); ; {
			out, ok := say(t, h, command)
			if ok {
				return
			}
			if time.Since(begin) > 20*time.Second {
				t.Fatalf("%s, on %s: %s", what, h.Name, out)
			}
		}
	}
	must(t, spencer, "mesh init --name spencer --prefix 10.11.0.0/16 --public "+link.Addr4.String())
	up(t, spencer)
	if _, err := spencer.Start("meshd-etcd"); err != nil {
		t.Fatal(err)
	}
	until(spencer, "the store comes up", "mesh status | grep 'ok, revision'")
	must(t, bkero, "mesh join "+strings.TrimSpace(must(t, spencer, "mesh invite bkero 2>/dev/null")))
	up(t, bkero)
	until(bkero, "it reaches spencer", "ping -c 1 -W 1 10.11.0.1")
	refused := func(h *lab.Host, command, want string) {
		t.Helper()
		if out, ok := say(t, h, command); ok || !strings.Contains(out, want) {
			t.Errorf("%s on %s: %s", command, h.Name, out)
		}
	}
	refused(bkero, "mesh invite lab-guest", "mesh grant bkero invite")
	refused(bkero, "mesh grant bkero invite", "does not hold the mesh's key")
	refused(bkero, "mesh revoke bkero invite", "does not hold the mesh's key")
	refused(spencer, "mesh grant nobody invite", "there is no node nobody")
	refused(spencer, "mesh grant bkero evict", "cannot be granted")
	t.Log(must(t, spencer, "mesh grant bkero invite --below lab && mesh grant"))
	if out := must(t, spencer, "mesh grant"); !strings.Contains(out, "bkero  invite  lab-*") {
		t.Errorf("granted: %s", out)
	}
	refused(bkero, "mesh invite guest", "begin with lab-")
	refused(bkero, "mesh invite lab-guest --address 192.0.2.9", "outside the mesh")
	refused(bkero, "mesh invite lab-guest --address 10.11.0.1", "it belongs to spencer")
	refused(bkero, "mesh invite lab-guest --expires 9999h", "an invitation is good for")
	refused(bkero, "mesh invite lab-guest --subnet 10.99.0.0/24", "routers of subnets")
	token := strings.TrimSpace(must(t, bkero, "mesh invite lab-guest 2>/dev/null"))
	refused(bkero, "mesh invite lab-guest", "taken")
	open := strings.TrimSpace(must(t, bkero, "mesh invite lab-later 2>/dev/null"))
	t.Log(must(t, guest, "mesh join "+token))
	up(t, guest)
	until(bkero, "the new node is known", "mesh status | grep lab-guest")
	until(guest, "it has the store", "mesh status | grep 'ok, revision' && mesh host add camera.lab-guest 10.11.0.77")
	refused(guest, "mesh invite lab-more", "mesh grant lab-guest invite")
	t.Log(must(t, spencer, "mesh revoke bkero invite"))
	refused(bkero, "mesh invite lab-more", "mesh grant bkero invite")
	refused(spencer, "mesh revoke bkero invite", "was not granted anything")
	refused(guest, "mesh --config /tmp/mesh.toml --state /tmp/mesh join "+open, "may not invite any more")
	until(guest, "who was invited stays", "ping -c 1 -W 1 10.11.0.1")
}
