// SPDX-License-Identifier: MIT

package main

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/resolver/health"
)

func TestParseCheck(t *testing.T) {
	for _, c := range []struct {
		text string
		want health.Check
		err  string // part of it
	}{
		{"tcp", health.Check{TCP: "bkero:80"}, ""},
		{"http", health.Check{HTTP: "http://bkero:80/"}, ""},
		{"tcp:printer:631", health.Check{TCP: "printer:631"}, ""},
		{"tcp:[fd5c::2]:631", health.Check{TCP: "[fd5c::2]:631"}, ""},
		{"http://bkero:8080/health?a=b:c", health.Check{HTTP: "http://bkero:8080/health?a=b:c"}, ""},
		{"https://bkero/", health.Check{HTTP: "https://bkero/"}, ""},
		{"dns:example.org@10.11.0.1:53", health.Check{DNS: "example.org@10.11.0.1:53"}, ""},
		{"ping:printer", health.Check{Ping: "printer"}, ""},
		{"ttl:1m30s", health.Check{TTL: health.Duration(90 * time.Second)}, ""},
		{"ttl:soon", health.Check{}, `"soon" is not a time`},
		{"ttl", health.Check{}, "is not a time"},
		{"/usr/lib/nagios/plugins/check_http -H bkero -s 'hello world'", health.Check{Script: []string{"/usr/lib/nagios/plugins/check_http", "-H", "bkero", "-s", "hello world"}}, ""},
		{"/bin/sh -c 'true", health.Check{}, "a ' is not closed"},
		{"check_http -H bkero", health.Check{}, "a program by its whole path"},
		{"", health.Check{}, "a program by its whole path"},
		{"udp:bkero:53", health.Check{}, "want tcp, http"},
	} {
		got, err := parseCheck(c.text, "bkero", 80)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q: error %v, want %q", c.text, err, c.err)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: %+v %v, want %+v", c.text, got, err, c.want)
		}
		if err := got.Validate(); err != nil {
			t.Errorf("%q: %v", c.text, err)
		}
	}
}

func TestSplitCommand(t *testing.T) {
	for text, want := range map[string][]string{
		"":                  nil,
		" \t ":              nil,
		"/a":                {"/a"},
		" /a  b\tc ":        {"/a", "b", "c"},
		"/a 'b c'":          {"/a", "b c"},
		`/a "b 'c'" 'd "e'`: {"/a", "b 'c'", `d "e`},
		"/a ''":             {"/a", ""},
		"/a b'c d'e":        {"/a", "bc de"},
		`/a \n $HOME *;`:    {"/a", `\n`, "$HOME", "*;"}, // no shell
	} {
		if got, err := splitCommand(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q %v, want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"/a 'b", `/a "b'`, "'"} {
		if got, err := splitCommand(text); err == nil {
			t.Errorf("%q: %q, want an error", text, got)
		}
	}
}

func TestShowServices(t *testing.T) {
	now := time.Now()
	since := now.Add(-90 * time.Second)
	rtt := 2.41
	services := api.Services{Services: []api.Service{
		{Name: "http", Type: "http", Proto: "tcp", Port: 80, Host: "bkero", Owner: "bkero", Tags: []string{"blog", "v1"}, State: "passing", Output: "HTTP OK", Since: &since, RTT: &rtt},
		{Name: "admin", Type: "http", Proto: "tcp", Port: 8080, Host: "bkero", Owner: "bkero", State: "critical", Output: "refused", Since: &since, RTT: &rtt},
		{Name: "ipp", Type: "ipp", Proto: "tcp", Port: 631, Host: "printer", Owner: "nibz", State: "offline", Output: "nibz is not heard of"},
		{Name: "wg", Type: "wg", Proto: "udp", Port: 51820, Host: "spencer", Owner: "spencer", Tags: []string{"x"}, State: "passing", Waiting: "the store does not answer"},
	}}
	const want = `
SERVICE       HOST     PORT       STATE     FOR    RTT     TAGS AND OUTPUT
http          bkero    80/tcp     passing   1 min  2.4 ms  blog,v1  HTTP OK
http (admin)  bkero    8080/tcp   critical  1 min  2.4 ms  refused
ipp           printer  631/tcp    offline                  nibz is not heard of
wg            spencer  51820/udp  waiting                  x  the store does not answer
`
	var b strings.Builder
	showServices(&b, services, now)
	if got := "\n" + b.String(); got != want {
		t.Errorf("got%s\nwant%s", got, want)
	}
	b.Reset()
	showServices(&b, api.Services{}, now)
	if !strings.HasPrefix(b.String(), "no services yet") {
		t.Errorf("without any: %q", b.String())
	}
}

func TestShowChecks(t *testing.T) {
	now := time.Now()
	check := func(service, name string, s health.Status) health.CheckStatus {
		return health.CheckStatus{Service: service, Check: health.Check{Name: name}, Status: s}
	}
	ago := func(s int) time.Time { return now.Add(-time.Duration(s) * time.Second) }
	checks := []health.CheckStatus{
		check("backup", "ttl", health.Status{State: health.Critical, Output: "not checked yet", Since: ago(3)}),
		check("http", "http", health.Status{State: health.Passing, Result: health.Critical, Output: "503 Service Unavailable\nsecond line", Since: ago(40), Last: ago(1), Took: health.Duration(12345 * time.Microsecond)}),
		check("http", "script", health.Status{State: health.Warning, Result: health.Warning, Output: "slow", Since: ago(40), Last: ago(5), Took: health.Duration(2 * time.Second)}),
	}
	const want = `
SERVICE  CHECK   STATE               FOR   LAST     TOOK  OUTPUT
backup   ttl     critical            3 s   never          not checked yet
http     http    passing → critical  40 s  1 s ago  12ms  503 Service Unavailable …
http     script  warning             40 s  5 s ago  2s    slow
`
	var b strings.Builder
	showChecks(&b, checks, now)
	if got := "\n" + b.String(); got != want {
		t.Errorf("got%s\nwant%s", got, want)
	}
	b.Reset()
	showChecks(&b, nil, now)
	if !strings.HasPrefix(b.String(), "nothing is checked") {
		t.Errorf("without any: %q", b.String())
	}
}

func TestShowHistory(t *testing.T) {
	at := time.Date(2026, 12, 1, 9, 30, 0, 0, time.Local)
	var b strings.Builder
	showHistory(&b, []health.Change{{Service: "http", Check: "tcp", To: health.Passing, Output: "open\nmore", At: at},
		{Service: "http", Check: "tcp", From: health.Passing, To: health.Critical, Output: "refused", At: at.Add(time.Minute)}})
	const want = `
WHEN                 CHECK     CHANGE              OUTPUT
2026-12-01 09:30:00  http/tcp  (new) → passing     open
2026-12-01 09:31:00  http/tcp  passing → critical  refused
`
	if got := "\n" + b.String(); got != want {
		t.Errorf("got%s\nwant%s", got, want)
	}
}
