// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
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
	os.Exit(m.Run())
}

// TestBench runs the benchmark as briefly as it can be.
func TestBench(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped: long")
	}
	if os.Geteuid() != 0 {
		t.Skip("skipped: making namespaces needs root")
	}
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("skipped: gcc is not installed, so the module cannot be built")
	}
	md := filepath.Join(t.TempDir(), "speed.md")
	var out strings.Builder
	o := options{Rounds: 1, Processes: 1, Sizes: []int{10, 300}, Lines: []int{10}, Writes: []int{300}, Markdown: md}
	if err := bench(context.Background(), &out, o); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(md)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"The module's own functions, steady", "Through libc, steady", "First look-up of a new process", "`_r` to C twin, reverse, 300 hosts", "C twin"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("there is no %q in:\n%s", want, out.String())
		}
		if !strings.Contains(string(page), want) {
			t.Errorf("there is no %q in the document:\n%s", want, page)
		}
	}
}

// TestWrongAnswer checks that the harness notices one.
func TestWrongAnswer(t *testing.T) {
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("skipped: gcc is not installed")
	}
	dir := t.TempDir()
	harness := filepath.Join(dir, "harness")
	if out, err := exec.Command("gcc", "-std=gnu11", "-O2", "-o", harness, "testdata/harness.c", "-lpthread", "-ldl").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, c := range []struct {
		question, want string // of what it says; empty: it is content
	}{
		{"name 127.0.0.1 127.0.0.1", ""}, // no source is asked for what is an address
		{"name 127.0.0.1 127.0.0.2", "is something else, not 127.0.0.2"},
		{"name 127.0.0.1 -", "is an address, not -"},
		{"name 127.0.0.1 x", "x: is no address"},
		{"", "has no question"},
	} {
		file := filepath.Join(dir, "questions")
		if err := os.WriteFile(file, []byte(c.question+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(harness, "count", file, "2", "libc").CombinedOutput()
		if (err == nil) != (c.want == "") || !strings.Contains(string(out), c.want) {
			t.Errorf("about %q the harness said %q, %v; want %q", c.question, out, err, c.want)
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
		values []float64
		word   string
		agree  int
	}{
		{[]float64{1, 1.05, 1.2}, "ok", 2},
		{[]float64{1, 1.2, 1.2}, "over", 2},
		{[]float64{1.1}, "ok", 1},
	} {
		if word, agree := (budget{values: c.values, atMost: 1.1}).verdict(); word != c.word || agree != c.agree {
			t.Errorf("the verdict on %v is %s, of %d", c.values, word, agree)
		}
	}
	for n, want := range map[int]string{7: "7", 1000: "1,000", 1_000_000: "1,000,000"} {
		if got := count(n); got != want {
			t.Errorf("%d is written %s", n, got)
		}
	}
}
