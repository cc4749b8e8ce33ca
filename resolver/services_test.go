// SPDX-License-Identifier: MIT

package resolver

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mesh.internal/mesh/resolver/store"
	"mesh.internal/mesh/resolver/store/storetest"
)

func service(typ string, port uint16) Service {
	return Service{Name: typ, Type: typ, Proto: "tcp", Port: port}
}

// states are the services of a View as "name on host: state", sorted as it has them.
func states(v *View) string {
	var out []string
	for _, s := range v.Services() {
		out = append(out, fmt.Sprintf("%s on %s: %s", s.Name, s.Host, s.Health.State))
	}
	return strings.Join(out, ", ")
}

func wantStates(t *testing.T, r *Resolver, want string) {
	t.Helper()
	if got := states(r.View()); got != want {
		t.Errorf("%s sees %q, want %q", r.cfg.Signer.Name(), got, want)
	}
}

func TestServices(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		a, stopA := start(t, dir("a"), "bkero", &st)
		b, stopB := start(t, dir("b"), "spencer", &st)
		defer stopB()
		defer stopA()
		settle()

		web := service("http", 80)
		web.Tags, web.Meta = []string{"v2", "blog"}, map[string]string{"path": "/"}
		admin := service("http", 8080)
		admin.Name, admin.Host = "Büro", "nas.bkero"
		if landed, err := a.AddHost(t.Context(), host("nas.bkero", "10.11.0.80")); !landed || err != nil {
			t.Fatal(landed, err)
		}
		if landed, err := a.SetServices(t.Context(), []Service{web, admin}); !landed || err != nil {
			t.Fatal(landed, err)
		}
		settle()
		wantStates(t, b, "http on bkero: unknown, Büro on nas.bkero: unknown")
		wantAddr(t, b, "http", "")
		if _, known := b.View().Lookup("http.mesh.internal"); !known {
			t.Error("a service that nobody can use has no name")
		}

		a.SetHealth(map[string]Health{"http": {State: Passing}, "Büro": {State: Critical, Output: "no\nanswer"}})
		settle()
		wantStates(t, b, "http on bkero: passing, Büro on nas.bkero: critical")
		wantStates(t, a, "http on bkero: passing, Büro on nas.bkero: critical")
		for name, addr := range map[string]string{"http": "10.11.0.2", "HTTP.service.mesh.internal.": "10.11.0.2", "blog.http.service": "10.11.0.2", "v1.http.service": ""} {
			wantAddr(t, b, name, addr)
		}
		if s := b.View().ServicesOf("HTTP"); len(s) != 2 || s[1].Health.Output != "no" || s[1].Instance() != "Büro @ nas.bkero" || s[0].Instance() != "bkero" || s[0].Meta["path"] != "/" {
			t.Errorf("services %+v", s)
		}

		// What somebody else deletes comes back.
		for _, key := range []string{store.HealthKey("bkero"), store.ServiceKey("bkero", "http")} {
			if _, err := st.Commit(t.Context(), nil, []store.Op{{Key: key}}); err != nil {
				t.Fatal(err)
			}
		}
		settle()
		wantStates(t, b, "http on bkero: passing, Büro on nas.bkero: critical")

		// The owner goes, and its services with it; what it offers is known until it comes back.
		stopA()
		settle()
		wantStates(t, b, "http on bkero: offline, Büro on nas.bkero: offline")
		wantAddr(t, b, "http", "")
		a, _ = start(t, dir("a"), "bkero", &st)
		settle()
		wantStates(t, b, "http on bkero: offline, Büro on nas.bkero: offline") // nobody has said yet what there should be
		a.SetHealth(map[string]Health{"http": {State: Warning}})
		if landed, err := a.SetServices(t.Context(), []Service{web}); !landed || err != nil {
			t.Fatal(landed, err)
		}
		settle()
		wantStates(t, b, "http on bkero: warning")
		wantAddr(t, b, "http", "10.11.0.2")

		// The store goes: what was seen last stays, and the owner knows its own.
		st.SetDown(true)
		settle()
		a.SetHealth(map[string]Health{"http": {State: Critical}})
		settle()
		wantStates(t, b, "http on bkero: warning")
		wantStates(t, a, "http on bkero: critical")
		st.SetDown(false)
		settle()
		wantStates(t, b, "http on bkero: critical")

		if landed, err := a.SetServices(t.Context(), nil); !landed || err != nil {
			t.Fatal(landed, err)
		}
		settle()
		wantStates(t, b, "")
		if kv, _ := st.Get(t.Context(), store.HealthKey("bkero")); kv.Modified != 0 {
			t.Error("a node without services keeps a lease")
		}
	})
}

// TestServicesOfOthers is a member that offers what it may not.
func TestServicesOfOthers(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		b, stopB := start(t, dir("b"), "spencer", &st)
		defer stopB()
		put := func(key string, v store.Value, by string) {
			t.Helper()
			v.Seq = uint64(time.Now().UnixMilli())
			x, err := store.Seal(key, v, member(by))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := st.Commit(t.Context(), nil, []store.Op{{Key: key, Value: x}}); err != nil {
				t.Fatal(err)
			}
		}
		value := func(name, typ, host string) store.Value {
			return store.Value{Name: name, Service: &store.Service{Type: typ, Proto: "tcp", Port: 1, Host: host}}
		}
		put(store.HealthKey("nibz"), store.Value{Health: map[string]store.Health{"good": {State: "passing", Output: "\x1b[31mred"}, "odd": {State: "fine"}, "x": {State: "passing"}, "git": {State: "passing"}}}, "nibz")
		put(store.ServiceKey("nibz", "good"), value("good", "ssh", ""), "nibz")
		put(store.ServiceKey("nibz", "odd"), value("odd", "ssh", "nibz"), "nibz")
		put(store.ServiceKey("nibz", "x"), value("x", "ssh", "bkero"), "nibz") // another's host
		put(store.ServiceKey("nibz", "y"), value("y", "SSH", ""), "nibz")      // no type
		put(store.ServiceKey("bkero", "z"), value("z", "ssh", ""), "nibz")     // another's name
		put(store.ServiceKey("nibz", "w"), value("v", "ssh", ""), "nibz")      // under another name
		put(store.HealthKey("bkero"), store.Value{Health: map[string]store.Health{"git": {State: "critical"}}}, "bkero")
		put(store.ServiceKey("bkero", "git"), value("git", "git", ""), "bkero")
		put(store.ServiceKey("nibz", "git"), value("git", "git", ""), "nibz")
		settle()
		wantStates(t, b, "git on bkero: critical, git on nibz: passing, good on nibz: passing, odd on nibz: unknown")
		if got := b.View().ServicesOf("ssh")[0].Health.Output; got != "[31mred" {
			t.Errorf("output %q", got)
		}
		wantAddr(t, b, "git", "10.11.0.3")
		// Who has claimed a name is the only one to be found by it.
		put(store.NameClaimKey("git"), store.Value{Name: "git"}, "bkero")
		settle()
		wantAddr(t, b, "git", "")
		wantAddr(t, b, "git.service", "10.11.0.3")
		// A host of that name comes first.
		if _, err := b.AddHost(t.Context(), host("ssh", "10.11.0.90")); err != nil {
			t.Fatal(err)
		}
		settle()
		wantAddr(t, b, "ssh", "10.11.0.90")
		wantAddr(t, b, "ssh.service", "10.11.0.3")
		if !slices.ContainsFunc(b.View().Conflicts, func(c Conflict) bool { return c.Name == "ssh" && strings.Contains(c.Reason, "found as ssh.service") }) {
			t.Errorf("conflicts %v", b.View().Conflicts)
		}
	})
}

func TestLastResort(t *testing.T) {
	p := Parts{Zone: "mesh.internal", Prefixes: prefixes, Nodes: nodes(everybody...), LastResort: true}
	for i, s := range []State{Critical, Unknown, Offline} {
		x := service("http", 80)
		x.Owner, x.Host, x.Health.State = everybody[i], everybody[i], s
		p.Services = append(p.Services, StaticService{Service: x})
	}
	h, _ := Build(p).Lookup("http")
	if h == nil || !slices.Equal(h.Addrs, []netip.Addr{netip.MustParseAddr("10.11.0.1"), netip.MustParseAddr("10.11.0.2")}) {
		t.Errorf("with none that is usable: %+v", h)
	}
	p.Services[1].Health.State = Warning
	if h, _ := Build(p).Lookup("http"); h == nil || len(h.Addrs) != 1 {
		t.Errorf("with one that is usable: %+v", h)
	}
}

func TestCheckService(t *testing.T) {
	good := Service{Name: "Café 2", Type: "http", Proto: "tcp", Port: 80, Owner: "bkero", Host: "nas.bkero", Tags: []string{"a-b"}}
	if err := CheckService(good); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(s *Service){
		"1 to 40 bytes":     func(s *Service) { s.Name = "a/b" },
		"one line":          func(s *Service) { s.Name = "a\nb" },
		"no type":           func(s *Service) { s.Type = "_http" },
		"with a letter":     func(s *Service) { s.Type = "80" },
		"tcp or udp":        func(s *Service) { s.Proto = "sctp" },
		"1 to 65535":        func(s *Service) { s.Port = 0 },
		"16":                func(s *Service) { s.Tags = strings.Split(strings.Repeat("a", 17), "") },
		"tag \"A\"":         func(s *Service) { s.Tags = []string{"A"} },
		"whole seconds":     func(s *Service) { s.TTL = time.Millisecond },
		"room for 63":       func(s *Service) { s.Host = strings.Repeat("a", 60) + ".bkero" },
		"neither a single":  func(s *Service) { s.Host = "nas.nibz" },
		"metadata key \"\"": func(s *Service) { s.Meta = map[string]string{"": "x"} },
	} {
		s := good
		change(&s)
		if err := CheckService(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want one with %q", s, err, want)
		}
	}
	many := make([]Service, MaxServices+1)
	synctest.Test(t, func(t *testing.T) {
		r, stop := start(t, "", "bkero", nil)
		defer stop()
		for want, list := range map[string][]Service{"at most 64": many, "two services": {good, good}, "1 to 40": {{}}} {
			if _, err := r.SetServices(context.Background(), list); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%d services: %v, want one with %q", len(list), err, want)
			}
		}
	})
}

// TestHostileHealth is a member that writes over what another has signed about its services: it can withhold, and it can show
// what was signed last after the owner is gone, but neither change it nor bring back what was before.
func TestHostileHealth(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var st storetest.Memory
		a, stopA := start(t, dir("a"), "bkero", &st)
		b, stopB := start(t, dir("b"), "spencer", &st)
		defer stopB()
		defer stopA()
		settle()
		if landed, err := a.SetServices(t.Context(), []Service{service("http", 80)}); !landed || err != nil {
			t.Fatal(landed, err)
		}
		key := store.HealthKey("bkero")
		said := func(s State) []byte {
			t.Helper()
			a.SetHealth(map[string]Health{"http": {State: s}})
			settle()
			kv, err := st.Get(t.Context(), key)
			if err != nil || kv.Modified == 0 {
				t.Fatal(kv, err)
			}
			return slices.Clone(kv.Value)
		}
		put := func(value []byte) { // nil deletes
			t.Helper()
			if _, err := st.Commit(t.Context(), nil, []store.Op{{Key: key, Value: value}}); err != nil {
				t.Fatal(err)
			}
		}
		seal := func(by string) []byte {
			x, err := store.Seal(key, store.Value{Seq: uint64(time.Now().Add(time.Hour).UnixMilli()), Health: map[string]store.Health{"http": {State: "passing"}}}, member(by))
			if err != nil {
				t.Fatal(err)
			}
			return x
		}
		passing, critical := said(Passing), said(Critical)
		wantStates(t, b, "http on bkero: critical")
		for what, value := range map[string][]byte{"its own word": seal("nibz"), "what was before": passing, "nothing": nil, "noise": []byte("{}")} {
			put(value)
			settle()
			wantStates(t, b, "http on bkero: critical")
			if t.Failed() {
				t.Fatal(what)
			}
		}
		passing = said(Passing)
		stopA()
		settle()
		wantStates(t, b, "http on bkero: offline")
		put(critical)
		settle()
		wantStates(t, b, "http on bkero: offline") // older than what was seen
		put(seal("nibz"))
		settle()
		wantStates(t, b, "http on bkero: offline")
		put(passing) // what the owner has said last, for as long as the member goes on
		settle()
		wantStates(t, b, "http on bkero: passing")
		put(nil)
		settle()
		wantStates(t, b, "http on bkero: offline")
	})
}
