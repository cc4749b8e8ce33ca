// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"strings"
	"testing"
)

func TestQuantile(t *testing.T) {
	v := []float64{4, 1, 3, 2}
	for q, want := range map[float64]float64{0: 1, 0.5: 2.5, 0.99: 4, 1: 4} {
		if got := quantile(v, q); got != want {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if s := spread("%.1f", v); s != "2.5 [1.0-4.0]" {
		t.Error(s)
	}
	if word, n := verdict(v, 3); word != "ok" || n != 3 {
		t.Error(word, n)
	}
	if word, n := verdict(v, 2); word != "over" || n != 2 {
		t.Error(word, n)
	}
}

func TestHostsDiffer(t *testing.T) {
	seen := map[string]bool{}
	for i := range 100_000 {
		name, addr := hostAt(i)
		if !prefix.Contains(addr) || seen[name] || seen[addr.String()] {
			t.Fatal(name, addr)
		}
		seen[name], seen[addr.String()] = true, true
	}
}

func TestTables(t *testing.T) {
	var out, md strings.Builder
	p := &page{out: &out, md: &md}
	p.head(options{Rounds: 2, Largest: 1})
	p.results([]result{{members: 1, names: 10_000, changes: []float64{10, 60}}, {members: 1, names: 10_000, changes: []float64{10, 20}}, {members: 3, names: 10_000, changes: []float64{90}}})
	for _, want := range []string{"| 10,000 | 1 |", "| change, 10,000 names, members: 1, p99 ms | 40.0 [20.0-60.0] | 50 | ok | 1 of 2 |", "members: 3, p99 ms | 90.0 [90.0-90.0] | 50 | over | 1 of 1 |"} {
		if !strings.Contains(md.String(), want) {
			t.Errorf("%q is missing in\n%s", want, md.String())
		}
	}
}
