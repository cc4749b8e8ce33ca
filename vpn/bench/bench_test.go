// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"
	"os"
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

// TestBench runs the benchmark as briefly as it can be.
func TestBench(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("skipped: making network namespaces needs root")
	}
	if tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		t.Skipf("skipped: making tunnels needs TUN: %v", err)
	} else {
		tun.Close()
	}
	var out strings.Builder
	if err := bench(context.Background(), &out, options{rounds: 1, length: 50 * time.Millisecond, pings: 5, streams: 2, both: true}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"mesh, MTU 1380", "wireguard-go, MTU 1420", "TCP Mbit/s", "≥ 0.97", "≤ 0.30", "CPU us a packet"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table has no %q:\n%s", want, out.String())
		}
	}
}

// TestThroughTunnel checks that traffic beside the tunnel is not taken for traffic through it.
func TestThroughTunnel(t *testing.T) {
	a := &arena{ends: [2]*end{{Interface: "t"}, {Interface: "t"}}}
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
		before := [2]map[string]counter{{cable: {tx: 7}, "t": {tx: 5}}, {cable: {rx: 3}, "t": {rx: 2}}}
		after := [2]map[string]counter{{cable: {tx: 7 + c.sealed}, "t": {tx: 5 + c.in}}, {cable: {rx: 3 + c.arrived}, "t": {rx: 2 + c.opened}}}
		if err := a.throughTunnel(before, after, n); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestTable(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   string
	}{
		{[]float64{2}, "2.0 [2.0-2.0]"},
		{[]float64{3, 1, 2}, "2.0 [1.0-3.0]"},
		{[]float64{4, 1, 2, 3}, "2.5 [1.0-4.0]"},
	} {
		if got := spread("%.1f", c.values); got != c.want {
			t.Errorf("spread of %v is %s, not %s", c.values, got, c.want)
		}
	}
	for _, c := range []struct {
		q      quantity
		ratios []float64
		want   string
	}{
		{quantity{budget: 0.97}, []float64{0.98, 0.9, 1}, "≥ 0.97 ok, in 2 of 3 rounds"},
		{quantity{budget: 0.97}, []float64{0.96, 0.9, 1}, "≥ 0.97 over, in 2 of 3 rounds"},
		{quantity{budget: 0.3, atMost: true}, []float64{0.3}, "≤ 0.30 ok, in 1 of 1 rounds"},
		{quantity{budget: 0.3, atMost: true}, []float64{0.4}, "≤ 0.30 over, in 1 of 1 rounds"},
		{quantity{}, []float64{0.4}, ""},
	} {
		if got := c.q.verdict(c.ratios); got != c.want {
			t.Errorf("the verdict of %+v about %v is %q, not %q", c.q, c.ratios, got, c.want)
		}
	}
	if got := quantile([]float64{1, 2, 3, 4}, 0.99); got != 4 {
		t.Errorf("p99 is %v, not 4", got)
	}
}
