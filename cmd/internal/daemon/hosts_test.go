// SPDX-License-Identifier: MIT

package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/resolver"
	"mesh.internal/mesh/resolver/store/storetest"
)

// names is a daemon that has names only: nibz's, on a mesh with bkero.
func names(t *testing.T, dir string, st *storetest.Memory) *daemon {
	c := config.Default()
	d := &daemon{names: resolver.New(resolver.Config{Zone: c.Domain, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.11.0.0/16")},
		Signer: plain{}, Verifier: plain{}, StateDir: dir, Log: slog.New(slog.DiscardHandler), Store: st})}
	d.cfg.Store(&c)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { d.names.Run(ctx); close(ended) }()
	t.Cleanup(func() { cancel(); <-ended })
	d.names.SetNodes([]resolver.Node{{Name: "nibz", Addrs: []netip.Addr{netip.MustParseAddr("10.11.0.3")}}, {Name: "bkero", Addrs: []netip.Addr{netip.MustParseAddr("10.11.0.2")}}})
	return d
}

func as(all ...string) (out []netip.Addr) {
	for _, s := range all {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// TestHostAPI plays a client that changes a host part by part.
func TestHostAPI(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d := names(t, dir, new(storetest.Memory))
		synctest.Wait()
		for _, s := range []struct {
			what   string
			name   string
			change api.HostChange
			err    string // part of it
			want   string // of printer
		}{
			{"none yet", "printer", api.HostChange{Add: api.HostParts{Aliases: []string{"x"}}}, "no host printer was added here", ""},
			{"without an address", "printer", api.HostChange{Create: true, Meta: map[string]string{"a": "b"}}, "needs an address", ""},
			{"make", "Printer.mesh.internal.", api.HostChange{Create: true, Add: api.HostParts{Addrs: as("10.11.0.77"), Aliases: []string{"LASER", "printer", "laser.mesh.internal"}}}, "", "10.11.0.77 laser"},
			{"add more", "printer", api.HostChange{Create: true, Add: api.HostParts{Addrs: as("10.11.0.77", "10.11.0.78"), Aliases: []string{"ink"}}, Meta: map[string]string{"location": "cellar", "role": "print"}},
				"", "10.11.0.77 10.11.0.78 laser ink location=cellar role=print"},
			{"metadata alone", "printer", api.HostChange{Meta: map[string]string{"location": "", "role": "copy"}}, "", "10.11.0.77 10.11.0.78 laser ink role=copy"},
			{"remove an alias", "printer", api.HostChange{Remove: api.HostParts{Aliases: []string{"Laser"}}}, "", "10.11.0.77 10.11.0.78 ink role=copy"},
			{"remove another's alias", "printer", api.HostChange{Remove: api.HostParts{Aliases: []string{"laser"}}}, "does not have the alias laser", "10.11.0.77 10.11.0.78 ink role=copy"},
			{"remove an address", "printer", api.HostChange{Remove: api.HostParts{Addrs: as("10.11.0.77")}}, "", "10.11.0.78 ink role=copy"},
			{"remove the last", "printer", api.HostChange{Remove: api.HostParts{Addrs: as("10.11.0.78")}}, "mesh host rm printer", "10.11.0.78 ink role=copy"},
			{"set", "printer", api.HostChange{Set: api.HostSet{Addrs: as("10.11.0.79"), Aliases: &[]string{}}}, "", "10.11.0.79 role=copy"},
			{"by an alias", "ink", api.HostChange{Add: api.HostParts{Aliases: []string{"x"}}}, "no host ink", "10.11.0.79 role=copy"},
			{"a node", "bkero", api.HostChange{Add: api.HostParts{Aliases: []string{"x"}}}, "is a node", "10.11.0.79 role=copy"},
			{"another's address", "printer", api.HostChange{Add: api.HostParts{Addrs: as("10.11.0.2")}}, "belongs to bkero", "10.11.0.79 role=copy"},
			{"no metadata", "printer", api.HostChange{Meta: map[string]string{"A": "b"}}, "metadata key", "10.11.0.79 role=copy"},
		} {
			b, err := json.Marshal(s.change)
			if err != nil {
				t.Fatal(err)
			}
			r := httptest.NewRequest("PATCH", "/v1/hosts/x", bytes.NewReader(b))
			r.SetPathValue("name", s.name)
			v, err := d.changeHost(r)
			if s.err == "" && (err != nil || !v.(api.Change).Landed) || s.err != "" && (err == nil || !strings.Contains(err.Error(), s.err)) {
				t.Errorf("%s: %v %v, want error %q", s.what, v, err, s.err)
			}
			got := ""
			if h, err := show(d, "printer"); err == nil {
				var all []string
				for _, a := range h.Addrs {
					all = append(all, a.String())
				}
				all = append(all, h.Aliases...)
				for _, k := range []string{"location", "role"} {
					if h.Meta[k] != "" {
						all = append(all, k+"="+h.Meta[k])
					}
				}
				got = strings.Join(all, " ")
			}
			if got != s.want {
				t.Errorf("%s: printer is %q, want %q", s.what, got, s.want)
			}
		}
	})
}

func show(d *daemon, name string) (api.HostShown, error) {
	r := httptest.NewRequest("GET", "/v1/hosts/x", nil)
	r.SetPathValue("name", name)
	v, err := d.showHost(r)
	if err != nil {
		return api.HostShown{}, err
	}
	return v.(api.HostShown), nil
}

// TestHostShown asks for a host by its forms, in groups, and for one that waits.
func TestHostShown(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var st storetest.Memory
		d := names(t, dir, &st)
		synctest.Wait()
		d.names.AddHost(t.Context(), resolver.Host{Name: "printer", Addrs: as("10.11.0.77"), Aliases: []string{"laser"}})
		d.names.AddGroup(t.Context(), "office", "laser", "bkero")
		for _, asked := range []string{"laser", "PRINTER.mesh.internal."} {
			h, err := show(d, asked)
			if err != nil || h.Name != "printer" || !slices.Equal(h.Groups, []string{"office"}) || h.Waiting != "" || !slices.Contains(h.Names, "laser") {
				t.Errorf("%s: %+v %v", asked, h, err)
			}
		}
		st.SetDown(true)
		<-time.After(5 * time.Second)
		synctest.Wait()
		d.names.AddHost(t.Context(), resolver.Host{Name: "scanner", Addrs: as("10.11.0.78")})
		if h, err := show(d, "scanner"); err != nil || h.Waiting == "" || h.FQDN != "scanner.mesh.internal" || len(h.Addrs) != 1 {
			t.Errorf("waiting: %+v %v", h, err)
		}
		if _, err := show(d, "nobody"); err == nil {
			t.Error("a host that is not there was shown")
		}
	})
}
