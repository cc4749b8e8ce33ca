// SPDX-License-Identifier: MIT

package health

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// find runs a check once.
func find(t *testing.T, r *Runner, c Check) result {
	t.Helper()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	c = c.withDefaults()
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(c.Timeout))
	defer cancel()
	return r.probe(ctx, "web", c)
}

func expect(t *testing.T, what string, res result, state State, output string) {
	t.Helper()
	if res.state != state || !strings.Contains(res.output, output) {
		t.Errorf("%s: %s, %q, want %s, %q", what, res.state, res.output, state, output)
	}
}

func TestHTTP(t *testing.T) {
	handler := func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/slow":
			<-req.Context().Done()
		case "/echo":
			fmt.Fprintf(w, "%s %s %s", req.Method, req.Host, req.Header.Get("X-Key"))
		case "/moved":
			http.Redirect(w, req, "/200", http.StatusFound)
		default:
			var code int
			fmt.Sscanf(req.URL.Path, "/%d", &code)
			w.WriteHeader(code)
			fmt.Fprintf(w, "this is\x1b %d", code)
		}
	}
	plain, secure := httptest.NewServer(http.HandlerFunc(handler)), httptest.NewTLSServer(http.HandlerFunc(handler))
	defer plain.Close()
	defer secure.Close()
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	t.Setenv("HTTP_PROXY", "http://192.0.2.1:1") // which is not asked
	r := New(Config{Log: slog.New(slog.DiscardHandler), Lookup: func(host string) []netip.Addr {
		if host == "bkero.mesh.internal" {
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}
		}
		return nil
	}})
	for _, c := range []struct {
		check  Check
		state  State
		output string
	}{
		{Check{HTTP: plain.URL + "/200"}, Passing, "HTTP 200 OK"},
		{Check{HTTP: plain.URL + "/204"}, Passing, "HTTP 204"},
		{Check{HTTP: plain.URL + "/moved"}, Passing, "HTTP 200 OK"},
		{Check{HTTP: plain.URL + "/429"}, Warning, "HTTP 429"},
		{Check{HTTP: plain.URL + "/404"}, Critical, "HTTP 404 Not Found: this is 404"},
		{Check{HTTP: plain.URL + "/503"}, Critical, "HTTP 503"},
		{Check{HTTP: plain.URL + "/200", Expect: "^this is"}, Passing, "HTTP 200"},
		{Check{HTTP: plain.URL + "/200", Expect: "that"}, Critical, "matches that"},
		{Check{HTTP: plain.URL + "/echo", Method: "POST", Header: map[string]string{"host": "www.example", "X-Key": "k"}, Expect: "^POST www.example k$"}, Passing, "HTTP 200"},
		{Check{HTTP: strings.Replace(plain.URL, "127.0.0.1", "bkero.mesh.internal", 1) + "/200"}, Passing, "HTTP 200"},
		{Check{HTTP: plain.URL + "/slow", Timeout: Duration(50 * time.Millisecond)}, Critical, "no answer within 50ms"},
		{Check{HTTP: secure.URL + "/200"}, Critical, "certificate"},
		{Check{HTTP: secure.URL + "/200", Insecure: true}, Passing, "HTTP 200"},
		{Check{HTTP: "http://127.0.0.1:1/"}, Critical, "refused"},
	} {
		expect(t, c.check.HTTP, find(t, r, c.check), c.state, c.output)
	}
}

func TestTCPAndPing(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := New(Config{})
	expect(t, "tcp", find(t, r, Check{TCP: l.Addr().String()}), Passing, "connected to 127.0.0.1")
	l.Close()
	expect(t, "tcp to nobody", find(t, r, Check{TCP: l.Addr().String()}), Critical, "refused")

	res := find(t, r, Check{Ping: "127.0.0.1"})
	if res.state == Unknown && strings.Contains(res.output, "ping_group_range") {
		t.Skip(res.output)
	}
	expect(t, "ping", res, Passing, "127.0.0.1 answers after")
	expect(t, "ping by a name of ours", find(t, New(Config{Lookup: func(string) []netip.Addr { return []netip.Addr{netip.IPv6Loopback()} }}), Check{Ping: "bkero"}), Passing, "::1 answers")
}

func TestDNS(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	go func() { // knows www.example. only
		b := make([]byte, 1500)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) != nil {
				continue
			}
			m.Response, m.Additionals = true, nil
			if q := m.Questions[0]; q.Name.String() != "www.example." {
				m.RCode = dnsmessage.RCodeNameError
			} else if q.Type == dnsmessage.TypeA {
				m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}, Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, 7}}}}
			}
			if out, err := m.Pack(); err == nil {
				_, _ = pc.WriteTo(out, from)
			}
		}
	}()
	r := New(Config{})
	at := "@" + pc.LocalAddr().String()
	expect(t, "a name", find(t, r, Check{DNS: "www.example" + at}), Passing, "www.example has address 192.0.2.7")
	expect(t, "no name", find(t, r, Check{DNS: "gone.example" + at}), Critical, "no such host")
}
