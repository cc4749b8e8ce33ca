// SPDX-License-Identifier: MIT

package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"mesh.internal/mesh/cmd/internal/api"
)

func TestShowPeers(t *testing.T) {
	now := time.Now()
	at := now.Add(-3 * time.Second)
	addr := func(s string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(s)} }
	peers := []api.Peer{
		{Name: "bkero", Addrs: addr("10.11.0.2"), Active: true, Direct: true, Endpoint: "198.18.2.2:7655", RTT: 2.61, LastHandshake: &at, RX: 1100, TX: 2048},
		{Name: "nibz", Addrs: addr("10.11.0.3"), Active: true, Via: []string{"bkero", "sol"}, RTT: 41.2, Loss: 0.034, LastHandshake: &at},
		{Name: "phone", Addrs: addr("10.11.0.4"), Active: true, Stream: true, RTT: 80, LastHandshake: &at},
		{Name: "sol", Addrs: addr("10.11.0.5"), Active: true},
		{Name: "cellar", Addrs: addr("10.11.0.6")},
	}
	const want = `
PEER    ADDRESS          WAY                            RTT   HANDSHAKE   RECEIVED       SENT
bkero   10.11.0.2        direct 198.18.2.2:7655      2.6 ms     3 s ago    1.1 KiB    2.0 KiB
nibz    10.11.0.3        via bkero, sol, 3% lost    41.2 ms     3 s ago        0 B        0 B
phone   10.11.0.4        tls                        80.0 ms     3 s ago        0 B        0 B
sol     10.11.0.5        no way known now                 -       never        0 B        0 B
cellar  10.11.0.6        idle                             -       never        0 B        0 B
`
	var b strings.Builder
	showPeers(&b, paint(&b), peers, now)
	if got := "\n" + b.String(); got != want {
		t.Errorf("got%s\nwant%s", got, want)
	}
}

func TestShowProjection(t *testing.T) {
	var b strings.Builder
	for _, x := range []api.Projection{{Layout: "skydns", State: "writing", Keys: 7}, {Layout: "hosts", State: "waiting"},
		{Layout: "hosts", State: "failing", Error: "the store does not answer"}} {
		showProjection(&b, paint(&b), x)
	}
	const want = `project    skydns, written by this node, 7 keys
project    hosts, another node writes it
project    hosts, not written: the store does not answer
`
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

func TestShowLastSeen(t *testing.T) {
	now := time.Now()
	var b strings.Builder
	showStatus(&b, api.Status{Store: api.Store{State: "ok", LastSeen: &api.LastSeen{Names: 3, Owners: []string{"bkero", "jo"}, Since: now.Add(-2 * time.Minute)}}}, now)
	const want = "last seen  3 names of bkero, jo are as of 2 min ago, when the store began anew: it lacks them until they publish them again\n"
	if !strings.Contains(b.String(), want) {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}
