// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mesh.internal/mesh/cmd/internal/lab"
)

func addrs(text ...string) (all []netip.Addr) {
	for _, t := range text {
		all = append(all, netip.MustParseAddr(t))
	}
	return all
}

const (
	digHead = `;; Got answer:
;; ->>HEADER<<- opcode: QUERY, status: %S, id: 4711
;; flags: qr %F; QUERY: 1, ANSWER: %N, AUTHORITY: %M, ADDITIONAL: 1

`
	digSOA = ";; AUTHORITY SECTION:\nmesh.internal.\t\t60\tIN\tSOA\tspencer.mesh.internal. hostmaster.mesh.internal. 3 3600 600 86400 60\n"
	digA   = ";; ANSWER SECTION:\nbkero.mesh.internal.\t60\tIN\tA\t10.11.0.2\n"
)

func dig(status, flags, answers, authority, body string) result {
	return result{out: strings.NewReplacer("%S", status, "%F", flags, "%N", answers, "%M", authority).Replace(digHead) + body}
}

// TestExpectations shows each expectation what it must accept and what it must not.
func TestExpectations(t *testing.T) {
	bkero := addrs("10.11.0.2", "fd5c::2")
	ping := result{out: "PING bkero (10.11.0.2) 56(84) bytes of data.\n64 bytes from bkero (10.11.0.2): icmp_seq=1 ttl=64 time=0.4 ms\n\n" +
		"--- bkero ping statistics ---\n1 packets transmitted, 1 received, 0% packet loss, time 0ms\n"}
	status := result{out: `{"self":{"name":"nibz","addrs":["10.11.0.3","fd5c::3"]},"peers":[{"name":"bkero","addrs":["10.11.0.2"],
		"endpoint":"198.18.2.2:7655","direct":true,"rtt_ms":0.4},{"name":"spencer","direct":false}],"store":{"state":"ok","revision":7}}`}
	for _, c := range []struct {
		name string
		want expectation
		r    result
		ok   bool
	}{
		{"success", succeeds, result{}, true},
		{"no success", succeeds, result{code: 1}, false},
		{"words", says("mesh", "dns"), result{out: "hosts: files mesh dns\n"}, true},
		{"part of a word", says("mesh"), result{out: "hosts: files meshes\n"}, false},
		{"words and no success", says("mesh"), result{out: "mesh", code: 1}, false},
		{"absent", lacks("mesh0"), result{out: "lo UNKNOWN\neth0@if2 UP\n"}, true},
		{"present", lacks("mesh0"), result{out: "lo UNKNOWN\nmesh0 UNKNOWN\n"}, false},
		{"absence without an answer", lacks("mesh0"), result{code: 1}, false},

		{"one address", resolvesOne("bkero", bkero), result{out: "fd5c::2         bkero.mesh.internal bkero\n"}, true},
		{"another address", resolvesOne("bkero", bkero), result{out: "10.11.0.3       bkero\n"}, false},
		{"all addresses", resolves("bkero", bkero...), result{out: "10.11.0.2 STREAM bkero\nfd5c::2 STREAM\n"}, true},
		{"an address short", resolves("bkero", bkero...), result{out: "10.11.0.2 STREAM bkero\n"}, false},
		{"another name", resolves("bkero", bkero[0]), result{out: "10.11.0.2 bkerox\n"}, false},
		{"everybody", everybody("spencer", "bkero"), result{out: "10.11.0.1 spencer.mesh.internal spencer\n10.11.0.2 bkero\n"}, true},
		{"not everybody", everybody("spencer", "bkero"), result{out: "10.11.0.1 spencer\n"}, false},
		{"nobody", unknown, result{code: 2}, true},
		{"somebody", unknown, result{out: "10.11.0.2 bkero\n"}, false},
		{"getent itself failed", unknown, result{code: 1}, false},

		{"a reply", answers(bkero), ping, true},
		{"a reply from elsewhere", answers(addrs("198.18.2.2")), ping, false},
		{"no reply", answers(bkero), result{out: strings.Replace(ping.out, " 1 received", " 0 received", 1), code: 1}, false},
		{"silence", silent, result{code: 1}, true},
		{"an unknown name is not silence", silent, result{code: 2}, false},

		{"an answer", dns("NOERROR", bkero[0]), dig("NOERROR", "aa rd", "1", "0", digA), true},
		{"the wrong answer", dns("NOERROR", addrs("10.11.0.9")...), dig("NOERROR", "aa rd", "1", "0", digA), false},
		{"an answer that is not authoritative", dns("NOERROR", bkero[0]), dig("NOERROR", "rd ra", "1", "0", digA), false},
		{"NODATA", dns("NOERROR"), dig("NOERROR", "aa rd", "0", "1", digSOA), true},
		{"NODATA without SOA", dns("NOERROR"), dig("NOERROR", "aa rd", "0", "0", ""), false},
		{"NXDOMAIN for NODATA", dns("NOERROR"), dig("NXDOMAIN", "aa rd", "0", "1", digSOA), false},
		{"NXDOMAIN", dns("NXDOMAIN"), dig("NXDOMAIN", "aa rd", "0", "1", digSOA), true},
		{"no server", dns("NXDOMAIN"), result{out: ";; no servers could be reached\n", code: 9}, false},

		{"a text and a status", prints(1, "HTTP CRITICAL"), result{out: "http  HTTP CRITICAL - no\n", code: 1}, true},
		{"a text and another status", prints(0, "HTTP"), result{out: "HTTP", code: 1}, false},
		{"no text", prints(0, "HTTP OK"), result{out: "HTTP\n"}, false},
		{"a text alone", without("→", prints(0, "passing")), result{out: "passing\n"}, true},
		{"a text with another", without("→", prints(0, "passing")), result{out: "passing → critical\n"}, false},

		{"on the LAN", onLAN(bkero[0]), result{out: "bkero 10.11.0.2 through the tunnel\n 1  1.2 ms  direct 10.11.0.2:7655\n"}, true},
		{"on the LAN by IPv6", onLAN(bkero[0]), result{out: " 1  1.2 ms  direct [fe80::1%eth0]:7655\n"}, true},
		{"not on the LAN", onLAN(bkero[0]), result{out: "bkero 10.11.0.2 through the tunnel\n 1  1.2 ms  direct 198.18.2.2:7655\n"}, false},

		{"an invitation", token, result{out: "mesh://abc\n", err: "send it to bkero\n"}, true},
		{"two lines", token, result{out: "mesh://abc\nmesh://def\n"}, false},
		{"no invitation", token, result{out: "send it to bkero\n"}, false},

		{"well", well("nibz"), status, true},
		{"a direct tunnel", well("nibz", "bkero"), status, true},
		{"a tunnel that is not direct", well("nibz", "spencer"), status, false},
		{"somebody else", well("bkero"), status, false},
		{"no store", well("nibz"), result{out: strings.Replace(status.out, `"ok"`, `"unreachable"`, 1)}, false},
		{"no daemon", well("nibz"), result{err: "mesh: error: meshd is not running\n", code: 1}, false},
	} {
		if err := c.want(c.r); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestShow(t *testing.T) {
	tell := func(terminal bool) string {
		var out bytes.Buffer
		s := &show{out: &out, terminal: terminal}
		s.title("Names")
		s.wait("ping bkero", time.Second)
		s.command("spencer", "mesh", "join", "mesh://"+strings.Repeat("x", 100))
		s.output("{\n \"a\": 1\n}\n")
		s.check("one", 2*time.Millisecond, nil)
		s.check("two", 1500*time.Millisecond, errors.New("no reply\nmeshd has ended"))
		s.result(62 * time.Second)
		return out.String()
	}
	want := "\nNames\nspencer$ mesh join mesh://" + strings.Repeat("x", 33) + "…\n{\"a\":1}\n" +
		"  ✓ one (2ms)\n  ✗ two (1.5s)\n    no reply\n    meshd has ended\n\nin 1m2s\n1 passed, 1 failed\n"
	if got := tell(false); got != want {
		t.Errorf("in a pipe:\n%s\nwant:\n%s", got, want)
	}
	got := tell(true)
	if !strings.Contains(got, green+"✓"+reset) || !strings.Contains(got, red+"✗"+reset) {
		t.Errorf("no colours on a terminal: %q", got)
	}
	if !strings.HasSuffix(got, "\n1 passed, 1 failed\n") {
		t.Errorf("the last line on a terminal: %q", got)
	}
}

func TestRoot(t *testing.T) {
	const shadow = "root:!locked:19000:0:99999:7:::\ndaemon:!:19000:0:99999:7:::\n"
	const want = "root:*:19000:0:99999:7:::\ndaemon:!:19000:0:99999:7:::\n"
	if got := string(root([]byte(shadow), map[int]string{1: "*", 9: "x"})); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := string(root([]byte("root:x:0:0:root:/root:/bin/bash\n"), map[int]string{5: "/run/login", 6: "/bin/sh"})); got != "root:x:0:0:root:/run/login:/bin/sh\n" {
		t.Errorf("got %q", got)
	}
}

// TestSilence measures gaps in what ping -D prints.
func TestSilence(t *testing.T) {
	const line = "64 bytes from krum.mesh.internal (fd5c::4): icmp_seq=1 ttl=64 time=0.4 ms\n"
	pings := "PING krum(krum.mesh.internal (fd5c::4)) 56 data bytes\n"
	for _, at := range []string{"99.000000", "99.990000", "100.010000", "100.030000", "100.530000", "100.550000"} {
		pings += "[" + at + "] " + line
	}
	pings += "[100.560000] From 10.11.0.5 icmp_seq=9 Destination Host Unreachable\n"
	at := func(ms int64) time.Time { return time.UnixMilli(ms) }
	for _, c := range []struct {
		since, now int64 // milliseconds
		want       time.Duration
		back       bool
	}{
		{100000, 100560, 500 * time.Millisecond, true},
		{100030, 100560, 500 * time.Millisecond, true},
		{99500, 100560, 500 * time.Millisecond, true},
		{100540, 100560, 10 * time.Millisecond, true},
		{100000, 103550, 3 * time.Second, false},
		{100560, 103560, 3 * time.Second, false},
	} {
		if got, back := silence(pings, at(c.since), at(c.now)); got != c.want || back != c.back {
			t.Errorf("from %d to %d: %v, %v", c.since, c.now, got, back)
		}
	}
}

// TestRecord writes what was shown as Markdown.
func TestRecord(t *testing.T) {
	dir := t.TempDir()
	s := &show{out: io.Discard, terminal: true}
	s.note("one")
	s.title("Part")
	s.command("spencer", "sed", "s/a b/c/", "$((n+=1))")
	s.picture("mesh.svg", []byte("<svg/>"))
	s.title("Part 2")
	s.check("right", time.Second, nil)
	s.result(time.Minute)
	if err := s.save(filepath.Join(dir, "demo.md"), story{title: "Title", made: "make x"}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "demo.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(got), "```\n")
	want := "one\n```\n\n## Part\n\n```\nspencer$ sed 's/a b/c/' $((n+=1))\n```\n\n![](mesh.svg)\n\n## Part 2\n\n```\n  ✓ right (1s)\n\nin 1m0s\n1 passed, 0 failed\n```\n"
	if text != want {
		t.Errorf("%q\nwant %q", text, want)
	}
	if svg, err := os.ReadFile(filepath.Join(dir, "mesh.svg")); err != nil || string(svg) != "<svg/>" {
		t.Errorf("the picture: %q, %v", svg, err)
	}
}

// TestShell types into a real shell, which dies.
func TestShell(t *testing.T) {
	lab.Require(t)
	l := lab.New(slog.New(slog.NewTextHandler(io.Discard, nil)))
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() {
		cancel()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	h, err := l.Host("krum")
	if err != nil {
		t.Fatal(err)
	}
	d := &demo{ctx: ctx, show: &show{out: io.Discard}, lab: l}
	open := func() *shell {
		s, err := d.newShell(&node{Host: h}, "sh")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	for n := range 3 {
		line, err := s.count(ctx, commandLimit)
		if err != nil || !strings.HasPrefix(line, fmt.Sprint(n+1, " krum ")) {
			t.Errorf("%q, %v", line, err)
		}
	}
	other := open()
	other.counted, other.pid = s.counted, s.pid
	if line, err := other.count(ctx, commandLimit); err == nil {
		t.Errorf("another shell passes for the same: %q", line)
	}
	if err := s.end(ctx); err != nil {
		t.Error(err)
	}
	if line, err := s.count(ctx, commandLimit); err == nil {
		t.Errorf("a shell that has ended says %q", line)
	}
	io.WriteString(other.in, "kill -KILL $$\n")
	if line, err := other.count(ctx, commandLimit); err == nil {
		t.Errorf("a shell that was killed says %q", line)
	}
}
