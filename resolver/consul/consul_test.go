// SPDX-License-Identifier: MIT

package consul

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mesh.internal/mesh/resolver"
)

var prefixes = []netip.Prefix{netip.MustParsePrefix("10.11.0.0/16"), netip.MustParsePrefix("fd00:1::/48")}

// view has http on bkero in a state, and elsewhere.
func view(state resolver.State, at int64) *resolver.View {
	a := netip.MustParseAddr
	p := resolver.Parts{Zone: "mesh.internal", Prefixes: prefixes, Built: time.UnixMilli(at), Nodes: []resolver.Node{
		{Name: "bkero", Addrs: []netip.Addr{a("10.11.0.2"), a("fd00:1::2")}}, {Name: "nibz", Addrs: []netip.Addr{a("10.11.0.3")}}, {Name: "gone", Addrs: []netip.Addr{a("10.11.0.4")}}}}
	p.Hosts = []resolver.Static{{Host: resolver.Host{Name: "printer", Owner: "nibz", Addrs: []netip.Addr{a("10.11.0.77")}, Meta: map[string]string{"floor": "2"}}}}
	for _, s := range []resolver.Service{
		{Name: "http", Type: "http", Proto: "tcp", Port: 80, Owner: "bkero", Host: "bkero", Tags: []string{"blog"}, Meta: map[string]string{"path": "/"}, Health: resolver.Health{State: state, Output: "it says so"}},
		{Name: "http", Type: "http", Proto: "tcp", Port: 8080, Owner: "nibz", Host: "nibz", Health: resolver.Health{State: resolver.Warning}},
		{Name: "http", Type: "http", Proto: "tcp", Port: 80, Owner: "gone", Host: "gone", Health: resolver.Health{State: resolver.Offline}},
		{Name: "ipp", Type: "ipp", Proto: "tcp", Port: 631, Owner: "nibz", Host: "printer", Health: resolver.Health{State: resolver.Unknown}},
	} {
		p.Services = append(p.Services, resolver.StaticService{Service: s})
	}
	return resolver.Build(p)
}

func server(v *resolver.View) *Server {
	return New(Config{Self: "bkero", View: func() *resolver.View { return v }, Changed: func() <-chan struct{} { return nil }, Log: slog.New(slog.DiscardHandler),
		Near: func(node string) time.Duration { return map[string]time.Duration{"bkero": 9, "nibz": 3}[node] }})
}

func ask(s http.Handler, method, path string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://127.0.0.1:8500"+path, nil)
	r.RemoteAddr = "127.0.0.1:9"
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

const (
	bkero = `{"ID":"877cf623-c968-756a-8adc-bc8ae0317379","Node":"bkero","Address":"10.11.0.2","Datacenter":"mesh","TaggedAddresses":{"lan":"10.11.0.2","lan_ipv4":"10.11.0.2","lan_ipv6":"fd00:1::2","wan":"10.11.0.2"},"Meta":{}}`
	web   = `{"ID":"http","Service":"http","Tags":["blog"],"Address":"10.11.0.2","Meta":{"path":"/"},"Port":80,"Weights":{"Passing":1,"Warning":1}}`
	well  = `{"Node":"bkero","CheckID":"service:http","Name":"Service 'http' check","Status":"passing","Notes":"","Output":"it says so","ServiceID":"http","ServiceName":"http","ServiceTags":["blog"]}`
)

func TestAnswers(t *testing.T) {
	s := server(view(resolver.Passing, 7))
	for path, want := range map[string]string{
		"/v1/catalog/datacenters":                    `["mesh"]`,
		"/v1/catalog/services":                       `{"http":["blog"],"ipp":[]}`,
		"/v1/catalog/services?node-meta=floor:2":     `{"ipp":[]}`,
		"/v1/catalog/service/nothing":                `[]`,
		"/v1/health/service/http?passing":            `[{"Node":` + bkero + `,"Service":` + web + `,"Checks":[` + well + `]}]`,
		"/v1/health/service/HTTP?passing=1&tag=blog": `[{"Node":` + bkero + `,"Service":` + web + `,"Checks":[` + well + `]}]`,
		"/v1/health/service/http?tag=blog&tag=v2":    `[]`,
		"/v1/health/checks/http?tag=blog":            `[` + well + `]`,
		"/v1/health/state/passing":                   `[` + well + `]`,
		"/v1/health/node/bkero":                      `[` + well + `]`,
		"/v1/catalog/node/bkero":                     `{"Node":` + bkero + `,"Services":{"http":` + web + `}}`,
		"/v1/catalog/node/nobody":                    `null`,
		"/v1/agent/services":                         `{"http":` + web + `}`,
		"/v1/status/leader":                          `"10.11.0.2:8300"`,
	} {
		w := ask(s, "GET", path)
		if got := strings.TrimSpace(w.Body.String()); w.Code != 200 || got != want || w.Header().Get("X-Consul-Index") != "7" {
			t.Errorf("%s: %d %s %v, want\n%s", path, w.Code, got, w.Header(), want)
		}
	}
	for path, want := range map[string][]string{
		"/v1/catalog/service/http":             {"bkero", "nibz"},
		"/v1/catalog/service/http?near=_agent": {"nibz", "bkero"},
		"/v1/health/service/ipp":               {"printer"},
		"/v1/health/service/ipp?passing":       {},
		"/v1/catalog/nodes":                    {"bkero", "gone", "nibz", "printer"},
		"/v1/health/state/critical":            {"printer"},
		"/v1/health/state/any":                 {"bkero", "nibz", "printer"},
	} {
		var got []struct {
			Node json.RawMessage
		}
		if err := json.Unmarshal(ask(s, "GET", path).Body.Bytes(), &got); err != nil || len(got) != len(want) {
			t.Errorf("%s: %v, %v; want %v", path, got, err, want)
			continue
		}
		for i, g := range got {
			if !strings.Contains(string(g.Node), `"`+want[i]+`"`) {
				t.Errorf("%s: %d is %s, want %s", path, i, g.Node, want[i])
			}
		}
	}
	// Farther than 32 bits hold in nanoseconds, and not known: make cross builds for such processors.
	s.cfg.Near = func(node string) time.Duration {
		return map[string]time.Duration{"bkero": 2200 * time.Millisecond, "nibz": time.Millisecond}[node]
	}
	if b := ask(s, "GET", "/v1/catalog/service/http?near=_agent").Body.String(); strings.Index(b, `"Node":"nibz"`) > strings.Index(b, `"Node":"bkero"`) {
		t.Errorf("what is 2.2 s away is before what is 1 ms away: %s", b)
	}
	for path, code := range map[string]int{"/v1/kv/a": 404, "/v1/health/state/fine": 400, "/v1/catalog/nodes?index=x": 400, "/v1/catalog/nodes?wait=x": 400,
		"/v1/catalog/nodes?filter=x": 400, "/v1/catalog/nodes?dc=other": 500, "/v1/catalog/nodes?near=nibz": 400} {
		if w := ask(s, "GET", path); w.Code != code {
			t.Errorf("%s: %d %s, want %d", path, w.Code, w.Body, code)
		}
	}
}

// TestWhoMayAsk is about strangers, and browsers that a foreign name has led here.
func TestWhoMayAsk(t *testing.T) {
	s := server(view(resolver.Passing, 7))
	for _, c := range []struct {
		from, host string
		code       int
	}{{"127.0.0.1:1", "127.0.0.1:8500", 200}, {"[::1]:1", "localhost", 200}, {"10.11.0.3:1", "bkero.mesh.internal:8500", 200}, {"10.11.0.3:1", "bkero", 200}, {"[fd00:1::3]:1", "[fd00:1::2]:8500", 200},
		{"192.0.2.1:1", "127.0.0.1", 403}, {"127.0.0.1:1", "evil.example:8500", 403}, {"127.0.0.1:1", "", 403}} {
		r := httptest.NewRequest("GET", "/v1/status/leader", nil)
		r.RemoteAddr, r.Host = c.from, c.host
		w := httptest.NewRecorder()
		if s.ServeHTTP(w, r); w.Code != c.code {
			t.Errorf("%s asks %q: %d, want %d", c.from, c.host, w.Code, c.code)
		}
	}
}

func TestReports(t *testing.T) {
	s := server(view(resolver.Passing, 7))
	if w := ask(s, "PUT", "/v1/agent/check/pass/service:http"); w.Code != 403 || !strings.Contains(w.Body.String(), "consul_reports") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	var got []string
	s = New(Config{Self: "bkero", View: s.cfg.View, Changed: s.cfg.Changed, Log: s.cfg.Log, Report: func(check, state, output string) error {
		if check == "none" {
			return errors.New("there is none")
		}
		got = append(got, check+" "+state+" "+output)
		return nil
	}})
	if w := ask(s, "GET", "/v1/agent/check/pass/http"); w.Code != 405 {
		t.Errorf("a report by GET: %d", w.Code)
	}
	if w := ask(s, "PUT", "/v1/agent/check/pass/none"); w.Code != 404 {
		t.Errorf("a report of nothing: %d", w.Code)
	}
	for _, path := range []string{"pass/service:http?note=fine", "warn/http", "fail/backup/ttl"} {
		if w := ask(s, "PUT", "/v1/agent/check/"+path); w.Code != 200 {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	r := httptest.NewRequest("PUT", "http://localhost/v1/agent/check/update/http", strings.NewReader(`{"Status":"critical","Output":"bad"}`))
	r.RemoteAddr = "127.0.0.1:1"
	s.ServeHTTP(httptest.NewRecorder(), r)
	if want := "http passing fine,http warning ,backup/ttl critical ,http critical bad"; strings.Join(got, ",") != want {
		t.Errorf("reports %q, want %q", strings.Join(got, ","), want)
	}
}

// TestBlocking is a client that waits: it hears of what changes its answer, at once, and of nothing else.
func TestBlocking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now atomic.Pointer[resolver.View]
		now.Store(view(resolver.Passing, 7))
		var changed atomic.Pointer[chan struct{}]
		changed.Store(new(make(chan struct{})))
		s := New(Config{Self: "bkero", View: now.Load, Changed: func() <-chan struct{} { return *changed.Load() }, Log: slog.New(slog.DiscardHandler)})
		show := func(v *resolver.View) {
			now.Store(v)
			close(*changed.Swap(new(make(chan struct{}))))
			synctest.Wait()
		}
		done := make(chan *httptest.ResponseRecorder, 1)
		wait := func(path string) {
			go func() { done <- ask(s, "GET", path) }()
			synctest.Wait()
		}
		answered := func(want bool) *httptest.ResponseRecorder {
			t.Helper()
			select {
			case w := <-done:
				if !want {
					t.Fatalf("answered: %s", w.Body)
				}
				return w
			default:
				if want {
					t.Fatal("no answer")
				}
				return nil
			}
		}
		wait("/v1/health/service/http?index=3")
		answered(true)
		wait("/v1/health/service/http?index=7")
		show(view(resolver.Passing, 8))
		answered(false)
		show(view(resolver.Critical, 9))
		if w := answered(true); w.Header().Get("X-Consul-Index") != "9" || !strings.Contains(w.Body.String(), `"critical"`) {
			t.Errorf("%v %s", w.Header(), w.Body)
		}
		wait("/v1/health/service/http?index=9&wait=10s")
		begin := time.Now()
		if w := <-done; w.Code != 200 || time.Since(begin) < 10*time.Second || time.Since(begin) > 11*time.Second {
			t.Errorf("after %s: %d", time.Since(begin), w.Code)
		}
		wait("/v1/health/service/http?index=9&wait=0s") // as if it said nothing: who asks so in a loop must not spin
		begin = time.Now()
		if w := <-done; w.Code != 200 || time.Since(begin) < 5*time.Minute {
			t.Errorf("wait=0s: after %s: %d", time.Since(begin), w.Code)
		}
	})
}

// TestEnd is clients that wait while Run ends: they get what there is, not an empty answer, which a script would take for no
// services.
func TestEnd(t *testing.T) {
	const clients = 50
	asked := make(chan struct{}, clients)
	s := server(view(resolver.Passing, 7))
	s.cfg.Changed = func() <-chan struct{} { asked <- struct{}{}; return nil }
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + l.Addr().String() + "/v1/catalog/services?index=7"
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.serve(ctx, []net.Listener{l}) }()
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			r, err := c.Get(url)
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Body.Close()
			b, err := io.ReadAll(r.Body)
			if want := `{"http":["blog"],"ipp":[]}`; err != nil || strings.TrimSpace(string(b)) != want || r.Header.Get("X-Consul-Index") != "7" {
				t.Errorf("%s %q (%v), want %s", r.Status, b, err, want)
			}
		})
	}
	for range clients {
		<-asked
	}
	cancel()
	wg.Wait()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestPortInUse is an address that cannot be had: the others are answered at.
func TestPortInUse(t *testing.T) {
	used, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer used.Close()
	inUse := used.Addr().(*net.TCPAddr).AddrPort()
	s := server(view(resolver.Passing, 7))
	var missing []netip.AddrPort
	s.cfg.Problem = func(a netip.AddrPort, _ error) { missing = append(missing, a) }
	s.cfg.Addrs = []netip.AddrPort{inUse, netip.MustParseAddrPort("127.0.0.1:0")}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil || !slices.Equal(missing, s.cfg.Addrs[:1]) {
		t.Errorf("one of two: %v, missing %v", err, missing)
	}
	s.cfg.Addrs = s.cfg.Addrs[:1]
	if err := s.Run(ctx); err == nil {
		t.Error("none can be had, and Run says nothing")
	}
}

// FuzzRequest: whatever is asked or reported, the answer is JSON with an index, or an error's status.
func FuzzRequest(f *testing.F) {
	s := server(view(resolver.Passing, 7))
	s.cfg.Report = func(check, _, _ string) error {
		if check != "http" {
			return errors.New("there is none")
		}
		return nil
	}
	for _, p := range []string{"/v1/catalog/nodes", "/v1/health/service/http?passing&near=_agent&index=3&wait=1ms", "/v1/health/state/any?index=07", "/v1/catalog/node/printer?node-meta=a:b"} {
		f.Add(false, p, "")
	}
	f.Add(true, "/v1/agent/check/update/service:http", `{"Status":"warning","Output":"slow"}`)
	f.Add(true, "/v1/agent/check/fail/http?note=%00", "")
	gone, cancel := context.WithCancel(context.Background()) // so that nobody waits
	cancel()
	f.Fuzz(func(t *testing.T, put bool, path, body string) {
		method := "GET"
		if put {
			method = "PUT"
		}
		r, err := http.NewRequestWithContext(gone, method, "http://localhost/"+strings.TrimPrefix(path, "/"), strings.NewReader(body))
		if err != nil {
			return
		}
		r.RemoteAddr = "127.0.0.1:1"
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code == 200 && !put && (!json.Valid(w.Body.Bytes()) || w.Header().Get("X-Consul-Index") != "7") {
			t.Errorf("%s: %v %s", path, w.Header(), w.Body)
		}
	})
}
