// SPDX-License-Identifier: MIT

package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/nss"
)

func TestShowWhy(t *testing.T) {
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.Local)
	min := func(n int) time.Time { return now.Add(-time.Duration(n) * time.Minute) }
	printer := &api.Host{Name: "printer", FQDN: "printer.mesh.internal", Owner: "nibz", Addrs: []netip.Addr{netip.MustParseAddr("10.11.0.77")}, Names: []string{"printer.mesh.internal", "printer"}}
	said := &api.Said{Key: "nibz/hosts/printer", Owner: "nibz", Sequence: 42, At: min(5), Created: 6, Modified: 7}
	gone, since := *said, min(2)
	gone.LastSeen = &since
	told := programs{Created: min(3), Revision: 7, Name: printer.FQDN, Addrs: printer.Addrs}
	ok := api.Store{State: "ok", Revision: 9}
	bkero := &api.Host{Name: "bkero", FQDN: "bkero.mesh.internal", Owner: "bkero", Node: true, Addrs: []netip.Addr{netip.MustParseAddr("10.11.0.2")}, Names: []string{"bkero.mesh.internal", "bkero"}}
	for _, c := range []struct {
		name string
		y    whyAll
		want string
	}{
		{"all is well", whyAll{api.Why{Asked: "printer", Form: "short name", Host: printer, Source: "store", Said: said, Store: ok, Claims: []api.Claim{{What: "printer", Owner: "nibz", Modified: 6}}}, told}, `
printer  is printer.mesh.internal, 10.11.0.77
asked as   its short name
owner      nibz
said by    nibz/hosts/printer in the store, signed by nibz
           revision 7, sequence 42 of 5 min ago
fresh      as of now: the store is followed, at revision 9
claim      printer is claimed by nibz, since revision 6
snapshot   says 10.11.0.77, made 3 min ago at revision 7: as it should
`},
		{"a node", whyAll{api.Why{Asked: "10.11.0.2", Form: "address", Host: bkero, Source: "certificate", Record: &api.Record{Sequence: 5, At: min(2), Issued: min(60)}, Store: ok},
			programs{Created: min(3), Name: bkero.FQDN}}, `
10.11.0.2  is bkero.mesh.internal, 10.11.0.2
asked as   an address
owner      itself, a node
said by    its certificate, issued 2026-11-30 11:00, which the mesh's root has signed
           gossip brought it, with the node's record 5 of 2 min ago
snapshot   says bkero.mesh.internal, made 3 min ago at revision 0: as it should
`},
		{"much is wrong", whyAll{api.Why{Asked: "printer", Form: "short name", Host: printer, Source: "disk", Said: said, Store: api.Store{State: "unreachable", Since: min(90), Revision: 7, Error: "nobody answers"},
			Lost:    []api.Lost{{Name: "printer", Owner: "bkero", Reason: "the name is taken: it belongs to nibz"}},
			Refused: []api.Refused{{Key: "bkero/hosts/printer", Revision: 8, Reason: "bad"}, {Key: "nibz/hosts/printer", Reason: "old"}}, Waiting: &api.HostShown{Host: *printer, Waiting: "not in the store yet"}},
			programs{Created: min(100), Name: printer.FQDN, Addrs: bkero.Addrs, File: []string{"192.0.2.1"}}}, `
printer  is printer.mesh.internal, 10.11.0.77
asked as   its short name
owner      nibz
said by    nibz/hosts/printer in the store, signed by nibz
           revision 7, sequence 42 of 5 min ago
fresh      as it was kept on disk, at revision 7: the store is unreachable since meshd began, 1 h ago
lost       printer of bkero: the name is taken: it belongs to nibz
refused    bkero/hosts/printer (revision 8): bad
refused    nibz/hosts/printer (the value accepted before stays): old
waiting    here it was made 10.11.0.77; not in the store yet
programs   are told 192.0.2.1 by /etc/hosts, which comes before the mesh
snapshot   says 10.11.0.2, made 1 h ago at revision 0
`},
		{"last seen", whyAll{api.Why{Asked: "printer", Form: "short name", Host: printer, Source: "store", Said: &gone, Store: ok, Claims: []api.Claim{{What: "printer", Owner: "nibz", Modified: 6, LastSeen: gone.LastSeen}}}, told}, `
printer  is printer.mesh.internal, 10.11.0.77
asked as   its short name
owner      nibz
said by    nibz/hosts/printer in the store, signed by nibz
           revision 7, sequence 42 of 5 min ago
fresh      as last seen: the store began anew 2 min ago and does not have it until nibz publishes it again
claim      printer was claimed by nibz when the store began anew, 2 min ago, which does not have that yet
snapshot   says 10.11.0.77, made 3 min ago at revision 7: as it should
`},
		{"behind", whyAll{api.Why{Asked: "printer", Form: "short name", Host: printer, Source: "store", Store: api.Store{State: "unreachable", Since: min(1), Revision: 7, Error: "nobody answers"}}, programs{Created: min(3)}}, `
printer  is printer.mesh.internal, 10.11.0.77
asked as   its short name
owner      nibz
fresh      as of 1 min ago, at revision 7: the store is unreachable: nobody answers
snapshot   does not have it, made 3 min ago at revision 0: it is behind; if it stays so, ` + "`mesh doctor`" + ` says why
`},
		{"never", whyAll{api.Why{Asked: "wpad", Form: "none", Never: "reserved", Store: ok}, programs{Error: "no snapshot"}}, `
wpad  is no name of the mesh, and cannot be: reserved
snapshot   no snapshot
`},
		{"between", whyAll{api.Why{Asked: "srv.nibz", Form: "between", Store: ok}, programs{Created: min(3)}}, `
srv.nibz  is a name that has others below it: it exists, and has no address
snapshot   does not have it, made 3 min ago at revision 0: as it should
`},
	} {
		c.y.Now = now
		var b strings.Builder
		showWhy(&b, c.y, true)
		if got := "\n" + b.String(); got != c.want {
			t.Errorf("%s: got%s\nwant%s", c.name, got, c.want)
		}
	}
}

// TestAskAsProgram reads a snapshot and a hosts file as programs do.
func TestAskAsProgram(t *testing.T) {
	dir := t.TempDir()
	snapshot, hosts := filepath.Join(dir, "hosts.db"), filepath.Join(dir, "hosts")
	if p := askAsProgram(snapshot, hosts, "printer"); p.Error == "" || p.Name != "" {
		t.Errorf("no snapshot: %+v", p)
	}
	a := netip.MustParseAddr("10.11.0.77")
	if err := nss.WriteFile(snapshot, nss.Set{Hosts: []nss.Host{{Name: "printer.mesh.internal", Aliases: []string{"printer"}, Addrs: []netip.Addr{a}}}, Created: time.Now(), Revision: 3}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(hosts, []byte("192.0.2.1 x Scanner # printer\n10.11.0.77 old\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for asked, want := range map[string]string{"PRINTER.": "printer.mesh.internal", "10.11.0.77": "printer.mesh.internal old", "scanner": " 192.0.2.1", "nobody": ""} {
		p := askAsProgram(snapshot, hosts, asked)
		got := p.Name
		if len(p.File) > 0 {
			got += " " + strings.Join(p.File, " ")
		}
		if got != want || p.Error != "" || p.Revision != 3 {
			t.Errorf("%s: %q, want %q (%+v)", asked, got, want, p)
		}
	}
}
