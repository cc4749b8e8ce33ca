// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestMain makes the test program the benchmark's processes too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		if err := play(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Setenv("GORACE", "atexit_sleep_ms=0") // else each process, with the race detector, waits a second before it ends
	os.Exit(m.Run())
}

func needsTunnels(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("skipped: making network namespaces needs root")
	}
	if tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		t.Skipf("skipped: making tunnels needs TUN: %v", err)
	} else {
		tun.Close()
	}
}

// TestBench runs the benchmark as briefly as it can be.
func TestBench(t *testing.T) {
	needsTunnels(t)
	var out strings.Builder
	if err := bench(context.Background(), &out, options{rounds: 1, length: 50 * time.Millisecond, pings: 5, streams: []int{2}, both: true}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"mesh, MTU 1380", "wireguard-go, MTU 1420", "TCP x2 Mbit/s", "≥ 0.97", "≤ 0.30", "CPU us a packet"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table has no %q:\n%s", want, out.String())
		}
	}
}

// TestBenchFull runs everybody everywhere who is installed.
func TestBenchFull(t *testing.T) {
	needsTunnels(t)
	only := "mesh|wireguard-go"
	for _, k := range []kind{kindTinc, kindNebula} {
		if err := (contestant{direct, k, ourMTU}).missing(); err != nil {
			t.Log(err)
		} else if !testing.Short() {
			only += "|" + string(k)
		}
	}
	only = "^(direct|relayed)/(" + only + ")$|^cut/mesh$" // the others take a minute to find their way
	md := filepath.Join(t.TempDir(), "speed.md")
	o := options{full: true, only: regexp.MustCompile(only), rounds: 1, length: 50 * time.Millisecond, pings: 5, streams: []int{1}, gaps: 1, markdown: md}
	if err := bench(context.Background(), io.Discard, o); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(md)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"mesh, MTU 1380, relayed", "wireguard-go, MTU 1380, hub", "TCP x1 Mbit/s, relayed/mesh to direct/wireguard-go", "≥ 0.75", "seconds round a cut, mesh"} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page has no %q:\n%s", want, page)
		}
	}
}

// TestThroughTunnel checks that traffic beside the tunnel is not taken for traffic through it.
func TestThroughTunnel(t *testing.T) {
	const n = 1000
	for _, c := range []struct {
		name                        string
		in, sealed, arrived, opened uint64
		ok                          bool
	}{
		{"through the tunnel", n, n + 32, n + 32, n, true},
		{"beside it", 0, n, n, 0, false},
		{"not over the cable", n, 0, 0, n, false},
		{"in but not out", n, n, n, n - 1, false},
	} {
		before := []map[string]counter{{cable: {tx: 7}, tunnelName: {tx: 5}}, {cable: {rx: 3}, tunnelName: {rx: 2}}}
		after := []map[string]counter{{cable: {tx: 7 + c.sealed}, tunnelName: {tx: 5 + c.in}}, {cable: {rx: 3 + c.arrived}, tunnelName: {rx: 2 + c.opened}}}
		if err := throughTunnel(before, after, n); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	past := []map[string]counter{{cable: {tx: n}, tunnelName: {tx: n}}, {cable: {}}, {cable: {rx: n}, tunnelName: {rx: n}}}
	if throughTunnel(make([]map[string]counter, 3), past, n) == nil {
		t.Error("what went past the host between is taken for relayed")
	}
}

func TestTable(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   string
	}{
		{nil, "-"},
		{[]float64{2}, "2.0 [2.0-2.0]"},
		{[]float64{3, 1, 2}, "2.0 [1.0-3.0]"},
		{[]float64{4, 1, 2, 3}, "2.5 [1.0-4.0]"},
	} {
		if got := spread("%.1f", c.values); got != c.want {
			t.Errorf("spread of %v is %s, not %s", c.values, got, c.want)
		}
	}
	for _, c := range []struct {
		b      budget
		ratios []float64
		want   [3]string
	}{
		{budget{bound: 0.97}, []float64{0.98, 0.9, 1}, [3]string{"≥ 0.97", "ok", "2 of 3"}},
		{budget{bound: 0.97}, []float64{0.96, 0.9, 1}, [3]string{"≥ 0.97", "over", "2 of 3"}},
		{budget{bound: 0.3, atMost: true}, []float64{0.3}, [3]string{"≤ 0.30", "ok", "1 of 1"}},
		{budget{bound: 0.3, atMost: true}, []float64{0.4}, [3]string{"≤ 0.30", "over", "1 of 1"}},
	} {
		if bound, word, rounds := c.b.verdict(c.ratios); [3]string{bound, word, rounds} != c.want {
			t.Errorf("the verdict of %+v about %v is %s %s %s, not %q", c.b, c.ratios, bound, word, rounds, c.want)
		}
	}
	if got := quantile([]float64{1, 2, 3, 4}, 0.99); got != 4 {
		t.Errorf("p99 is %v, not 4", got)
	}
}
