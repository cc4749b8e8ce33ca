// SPDX-License-Identifier: MIT

package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"mesh.internal/mesh/cmd/internal/api"
)

func TestShowBook(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	backup := now.Add(-3 * time.Hour)
	addr := netip.MustParseAddr("10.11.0.1")
	b := api.Book{Own: true, Quorum: true, Backup: &backup, Leaving: []string{"nibz"},
		Voters: []api.Voter{
			{Name: "bkero", Addr: addr, State: "away", Error: "the store does not answer"},
			{Name: "mammon", Addr: addr, State: "learning", Used: 20 << 10, Quota: 256 << 20, Index: 40, Version: "3.7.3", Answered: 12.3},
			{Name: "spencer", Addr: addr, State: "leader", Used: 52 << 10, Quota: 256 << 20, Index: 41, Version: "3.7.3", Answered: 1.2, Problems: []string{"memberID:1 alarm:NOSPACE "}}},
		Candidates: []api.Candidate{
			{Name: "home", Fit: true, Public: true, Up: 300, Fsync: 0.9, RTT: 8},
			{Name: "jo", Battery: true, Up: 2, Fsync: 0.4, Why: "it runs on a battery, so it sleeps and travels"}}}
	var out strings.Builder
	if err := showBook(&out, b, now); err != nil {
		t.Fatal(err)
	}
	want := `can be changed  survives the loss of any one member
MEMBER   STATE     ANSWERS IN  NAMES' FILE            CHANGES  VERSION
bkero    away      -           -                      -        -
mammon   learning  12.3 ms     20.0 KiB of 256.0 MiB  40       3.7.3
spencer  leader    1.2 ms      52.0 KiB of 256.0 MiB  41       3.7.3
warning bkero: the store does not answer
warning spencer: it is full: names can be read and not changed; it makes room by itself where it can, else remove some
nibz is still leaving
last backup on this node 3 h ago

OTHER NODE         REACHED  UP       DISK    AWAY    WHY NOT
home        fit    by all   12 days  0.9 ms  8.0 ms
jo          unfit  by some  2 h      0.4 ms  -       it runs on a battery, so it sleeps and travels
`
	if out.String() != want {
		t.Errorf("it shows\n%s\nwant\n%s", out.String(), want)
	}
}
