// SPDX-License-Identifier: MIT

package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/resolver"
	"mesh.internal/mesh/resolver/store/storetest"
)

// plain signs as nibz and takes everybody's word.
type plain struct{}

func (plain) Name() string                        { return "nibz" }
func (plain) Sign([]byte) ([]byte, error)         { return []byte{1}, nil }
func (plain) Verify(string, []byte, []byte) error { return nil }

// TestGroupAPI plays a client: names in any case, with and without zone and "@", and what is to be said of mistakes.
func TestGroupAPI(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := config.Default()
		d := &daemon{names: resolver.New(resolver.Config{Zone: c.Domain, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.11.0.0/16")},
			Signer: plain{}, Verifier: plain{}, StateDir: dir, Log: slog.New(slog.DiscardHandler), Store: &storetest.Memory{}})}
		d.cfg.Store(&c)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { d.names.Run(ctx); close(ended) }()
		defer func() { cancel(); <-ended }()
		d.names.SetNodes([]resolver.Node{{Name: "nibz", Addrs: []netip.Addr{netip.MustParseAddr("10.11.0.3")}}})
		synctest.Wait()

		put := func(name string, members ...string) *http.Request {
			b, err := json.Marshal(api.Group{Name: name, Members: members})
			if err != nil {
				t.Fatal(err)
			}
			return httptest.NewRequest("PUT", "/v1/groups", bytes.NewReader(b))
		}
		remove := func(name string, members ...string) *http.Request {
			r := httptest.NewRequest("DELETE", "/v1/groups/x?"+url.Values{"member": members}.Encode(), nil)
			r.SetPathValue("name", name)
			return r
		}
		for _, s := range []struct {
			name string
			f    func(*http.Request) (any, error)
			r    *http.Request
			err  string // part of it
			want string // of the group friends: its members, then hosts, then unknown
		}{
			{"add", d.addGroup, put("@Friends", "NIBZ.mesh.internal.", "@Others", "printer"), "", "nibz @others printer|nibz.mesh.internal|@others printer"},
			{"add again", d.addGroup, put("friends", "nibz"), "", "nibz @others printer|nibz.mesh.internal|@others printer"},
			{"a name of the world", d.addGroup, put("friends", "google.com."), "", "nibz @others printer google.com|nibz.mesh.internal|@others google.com printer"},
			{"no name", d.addGroup, put("friends", "a b"), "a-z", "nibz @others printer google.com|nibz.mesh.internal|@others google.com printer"},
			{"a bad request", d.addGroup, httptest.NewRequest("PUT", "/v1/groups", strings.NewReader("{")), "malformed", "nibz @others printer google.com|nibz.mesh.internal|@others google.com printer"},
			{"remove", d.removeGroup, remove("@friends", "@OTHERS", "Printer", "google.com"), "", "nibz|nibz.mesh.internal|"},
			{"remove nobody's", d.removeGroup, remove("enemies"), "no group @enemies", "nibz|nibz.mesh.internal|"},
			{"remove all", d.removeGroup, remove("friends"), "", "none"},
		} {
			v, err := s.f(s.r)
			if s.err == "" && (err != nil || !v.(api.Change).Landed) || s.err != "" && (err == nil || !strings.Contains(err.Error(), s.err)) {
				t.Errorf("%s: %v %v, want error %q", s.name, v, err, s.err)
			}
			got := "none"
			for _, g := range d.groups().Groups {
				got = strings.Join(g.Members, " ") + "|" + strings.Join(g.Hosts, " ") + "|" + strings.Join(g.Unknown, " ")
			}
			if got != s.want {
				t.Errorf("%s: friends are %q, want %q", s.name, got, s.want)
			}
		}
	})
}
