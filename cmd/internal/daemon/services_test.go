// SPDX-License-Identifier: MIT

package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/resolver/health"
	"mesh.internal/mesh/resolver/store/storetest"
	"mesh.internal/mesh/vpn/identity"
)

// offering is a daemon that has names and services only: nibz's.
func offering(t *testing.T, st *storetest.Memory) *daemon {
	dir := t.TempDir()
	d := names(t, filepath.Join(dir, "resolver"), st)
	d.opts.Paths = config.Paths{Config: filepath.Join(dir, "mesh.toml"), State: dir}
	d.id = &identity.Identity{}
	d.id.Node.Name = "nibz"
	d.log = slog.New(slog.DiscardHandler)
	d.warnings = map[string]string{}
	d.offers.checks = d.newChecks()
	if err := os.Mkdir(d.opts.Paths.ServiceDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *daemon) writeServices(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(d.opts.Paths.ServiceDir(), name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// listed lists a daemon's services as "name port/proto".
func listed(d *daemon) string {
	var all []string
	for _, s := range d.offers.now() {
		all = append(all, s.Name+" "+s.Port)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// asked is a request of a client that may be root.
func asked(t *testing.T, method string, body any, root bool) *http.Request {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(method, "/v1/services", bytes.NewReader(b))
	return r.WithContext(context.WithValue(t.Context(), peerKey{}, root))
}

// TestServiceFiles has files of services appear, change, be wrong, and go.
func TestServiceFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := offering(t, new(storetest.Memory))
		synctest.Wait()
		for _, s := range []struct {
			what, file, text string
			want             string
			warn             []string // in the warning; none: there is none
		}{
			{"a file appears", "http.toml", "[[service]]\ntype = \"http\"\nport = \"80/tcp\"\n", "http 80/tcp", nil},
			{"another", "a.toml", "[[service]]\ntype = \"ssh\"\nport = \"22\"\n", "http 80/tcp, ssh 22", nil},
			{"what does not end in .toml", "b.toml~", "nonsense", "http 80/tcp, ssh 22", nil},
			{"one that is malformed", "bad.toml", "[[service]\n", "http 80/tcp, ssh 22", []string{"bad.toml:1"}},
			{"an unknown key", "bad.toml", "[[service]]\ntype = \"ftp\"\nport = \"21\"\ncolour = 1\n", "http 80/tcp, ssh 22", []string{"bad.toml:4", "colour"}},
			{"a port that is none", "bad.toml", "[[service]]\ntype = \"ftp\"\nport = \"x\"\n", "http 80/tcp, ssh 22", []string{"bad.toml", `service "ftp"`, `port "x"`}},
			{"a check that is none", "bad.toml", "[[service]]\ntype = \"ftp\"\nport = \"21\"\n[[service.check]]\n", "http 80/tcp, ssh 22", []string{"bad.toml", "check 1", "exactly one"}},
			{"a type that is none", "bad.toml", "[[service]]\ntype = \"F T P\"\nport = \"21\"\n", "http 80/tcp, ssh 22", []string{"bad.toml", "no type of services"}},
			{"the name of another", "bad.toml", "[[service]]\ntype = \"ssh\"\nport = \"2222\"\n", "http 80/tcp, ssh 22", []string{"bad.toml", "left out", "a.toml"}},
			{"it is repaired", "bad.toml", "[[service]]\ntype = \"ftp\"\nport = \"21\"\n", "ftp 21, http 80/tcp, ssh 22", nil},
			{"it breaks again", "bad.toml", "[[service]\n", "ftp 21, http 80/tcp, ssh 22", []string{"bad.toml:1", "what it said before holds"}},
			{"in another way", "bad.toml", "[[service]]\ntype = \"ftp\"\nport = \"2121\"\nttl = \"99h\"\n", "ftp 21, http 80/tcp, ssh 22", []string{"bad.toml", "ttl"}},
			{"it is repaired again", "bad.toml", "[[service]]\ntype = \"ftp\"\nport = \"21\"\n", "ftp 21, http 80/tcp, ssh 22", nil},
			{"a change", "http.toml", "[[service]]\ntype = \"http\"\nport = \"8080/tcp\"\n", "ftp 21, http 8080/tcp, ssh 22", nil},
		} {
			d.writeServices(t, s.file, s.text)
			d.readServices(t.Context())
			if got := listed(d); got != s.want {
				t.Errorf("%s: %q, want %q", s.what, got, s.want)
			}
			warning := d.warnings["services"]
			for _, w := range s.warn {
				if !strings.Contains(warning, w) {
					t.Errorf("%s: %q is not in the warning %q", s.what, w, warning)
				}
			}
			if s.warn == nil && warning != "" {
				t.Errorf("%s: warning %q", s.what, warning)
			}
		}
		synctest.Wait()
		if h, _ := d.names.View().Lookup("ftp"); h == nil || !h.Service {
			t.Errorf("the name ftp leads to %+v", h)
		}
		if err := os.Remove(filepath.Join(d.opts.Paths.ServiceDir(), "bad.toml")); err != nil {
			t.Fatal(err)
		}
		d.readServices(t.Context())
		synctest.Wait()
		if h, _ := d.names.View().Lookup("ftp"); h != nil || listed(d) != "http 8080/tcp, ssh 22" {
			t.Errorf("without the file there are %q, and ftp leads to %+v", listed(d), h)
		}
	})
}

// TestServiceAPI plays a client that adds and removes services, beside a file.
func TestServiceAPI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := offering(t, new(storetest.Memory))
		synctest.Wait()
		d.writeServices(t, "http.toml", "[[service]]\ntype = \"http\"\nport = \"80/tcp\"\n")
		d.readServices(t.Context())
		script := []health.Check{{Script: []string{"/bin/true"}}}
		hook := []health.Check{{TCP: "nibz:22", OnChange: []string{"/bin/true"}}}
		for _, s := range []struct {
			what string
			add  config.Service // or, without a type, the name is removed
			root bool
			err  string // part of it
			want string
		}{
			{"one", config.Service{Type: "ssh", Port: "22"}, false, "", "http 80/tcp, ssh 22"},
			{"again, with another port", config.Service{Type: "ssh", Port: "2222", Tags: []string{"x"}}, false, "", "http 80/tcp, ssh 2222"},
			{"a second of a type", config.Service{Type: "ssh", Port: "22", Name: "admin"}, false, "", "admin 22, http 80/tcp, ssh 2222"},
			{"what a file has", config.Service{Type: "http", Port: "81"}, false, "change it there", "admin 22, http 80/tcp, ssh 2222"},
			{"no port", config.Service{Type: "x"}, false, "is not a number", "admin 22, http 80/tcp, ssh 2222"},
			{"no type", config.Service{Type: "-", Port: "1"}, false, "no type of services", "admin 22, http 80/tcp, ssh 2222"},
			{"a program, not by root", config.Service{Type: "x", Port: "1", Checks: script}, false, "only root", "admin 22, http 80/tcp, ssh 2222"},
			{"a program after a change, not by root", config.Service{Type: "x", Port: "1", Checks: hook}, false, "only root", "admin 22, http 80/tcp, ssh 2222"},
			{"a program, by root", config.Service{Type: "x", Port: "1", Checks: script}, true, "", "admin 22, http 80/tcp, ssh 2222, x 1"},
			{"a check that is none", config.Service{Type: "x", Port: "2", Checks: []health.Check{{}}}, true, "exactly one", "admin 22, http 80/tcp, ssh 2222, x 1"},
			{"remove", config.Service{Name: "admin"}, false, "", "http 80/tcp, ssh 2222, x 1"},
			{"remove what is not there", config.Service{Name: "admin"}, false, "offers no service", "http 80/tcp, ssh 2222, x 1"},
			{"remove what a file has", config.Service{Name: "http"}, true, "change it there", "http 80/tcp, ssh 2222, x 1"},
		} {
			var v any
			var err error
			r := asked(t, "PUT", s.add, s.root)
			if s.add.Type == "" {
				r.SetPathValue("name", s.add.Name)
				v, err = d.removeService(r)
			} else {
				v, err = d.addService(r)
			}
			if s.err == "" && (err != nil || !v.(api.Change).Landed) || s.err != "" && (err == nil || !strings.Contains(err.Error(), s.err)) {
				t.Errorf("%s: %v %v, want error %q", s.what, v, err, s.err)
			}
			if got := listed(d); got != s.want {
				t.Errorf("%s: %q, want %q", s.what, got, s.want)
			}
		}
		before := listed(d)
		d.offers.list.Store(nil)
		d.readServices(t.Context()) // as after a restart
		if got := listed(d); got != before || d.warnings["services"] != "" {
			t.Errorf("after a restart: %q, want %q, warning %q", got, before, d.warnings["services"])
		}
	})
}

// TestServiceWaits has a service that is added while the store is away.
func TestServiceWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var st storetest.Memory
		d := offering(t, &st)
		synctest.Wait()
		st.SetDown(true)
		<-time.After(5 * time.Second)
		synctest.Wait()
		v, err := d.addService(asked(t, "PUT", config.Service{Type: "ssh", Port: "22"}, false))
		if err != nil || v.(api.Change).Landed {
			t.Fatalf("while the store is away: %v %v", v, err)
		}
		st.SetDown(false)
		<-time.After(time.Minute)
		synctest.Wait()
		if s := d.names.View().ServicesOf("ssh"); len(s) != 1 || s[0].Owner != "nibz" {
			t.Errorf("when it is back there are %v", s)
		}
	})
}
