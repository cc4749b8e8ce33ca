// SPDX-License-Identifier: MIT

package main

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestManPage demands that the manual page has every command and flag, and that a formatter has nothing to complain of.
func TestManPage(t *testing.T) {
	var w strings.Builder
	root := command()
	if err := manPage(&w, root); err != nil {
		t.Fatal(err)
	}
	page := w.String()
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "completion" || c.Name() == "help" {
			return
		}
		if c.Runnable() && c.HasParent() && !strings.Contains(page, ".SS \""+roff(c.CommandPath())) {
			t.Errorf("%s is missing", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	for _, want := range []string{`\fB\-\-public\fR`, `\fB\-o\fR, \fB\-\-output\fR \fIfile\fR`, ".SH FILES"} {
		if !strings.Contains(page, want) {
			t.Errorf("%s is missing", want)
		}
	}
	mandoc, err := exec.LookPath("mandoc")
	if err != nil {
		t.Skip("mandoc is not installed: the page's form was not checked")
	}
	cmd := exec.Command(mandoc, "-T", "lint", "-W", "warning")
	cmd.Stdin = strings.NewReader(page)
	out, _ := cmd.CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if !strings.Contains(line, "missing date") { // the page has none, so that its bytes do not change from day to day
			t.Errorf("mandoc: %s", line)
		}
	}
}

func TestRoff(t *testing.T) {
	for in, want := range map[string]string{".x": `\&.x`, "a\n.b": "a\n\\&.b", `a\b`: `a\eb`, "a-b": `a\-b`, "'x": `\&'x`} {
		if got := roff(in); got != want {
			t.Errorf("roff(%q) = %q, want %q", in, got, want)
		}
	}
}
