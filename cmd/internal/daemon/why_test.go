// SPDX-License-Identifier: MIT

package daemon

import (
	"testing"
	"testing/synctest"

	"mesh.internal/mesh/resolver"
	"mesh.internal/mesh/resolver/store/storetest"
)

// TestWhyAPI asks why of names of every kind.
func TestWhyAPI(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var st storetest.Memory
		d := names(t, dir, &st)
		synctest.Wait()
		d.names.AddHost(t.Context(), resolver.Host{Name: "printer", Addrs: as("10.11.0.77"), Aliases: []string{"laser"}})
		d.names.AddHost(t.Context(), resolver.Host{Name: "nas.srv.nibz", Addrs: as("10.11.0.80")})
		for asked, want := range map[string]string{
			"printer": "short name|printer|store", "PRINTER.mesh.internal.": "full name|printer|store", "laser": "alias|printer|store", "laser.mesh.internal": "full alias|printer|store",
			"10.11.0.77": "address|printer|store", "srv.nibz": "between||", "mesh.internal": "zone||", "nobody": "none||", "wpad": "none||", "10.11.0.99": "none||",
		} {
			y := d.explain(asked)
			got := y.Form + "|"
			if y.Host != nil {
				got += y.Host.Name
			}
			if got += "|" + y.Source; got != want {
				t.Errorf("%s: %q, want %q", asked, got, want)
			}
			if (y.Said != nil) != (y.Source == "store") || y.Said != nil && (y.Said.Owner != "nibz" || y.Said.Modified == 0 || y.Said.At.IsZero()) {
				t.Errorf("%s: said %+v", asked, y.Said)
			}
			if (y.Never != "") != (asked == "wpad") {
				t.Errorf("%s: never %q", asked, y.Never)
			}
		}
		y := d.explain("laser")
		if len(y.Claims) != 2 || y.Claims[0].What != "laser" || y.Claims[1].What != "printer" || y.Claims[0].Owner != "nibz" {
			t.Errorf("claims: %+v", y.Claims)
		}
	})
}
