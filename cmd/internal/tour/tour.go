// SPDX-License-Identifier: MIT

// Package tour reads the console blocks of the documents, so that its test can run them: what README.md and docs show is
// typed into three hosts, and what these answer must have the form that is shown. It runs nothing itself.
package tour

import (
	"regexp"
	"strings"
)

// Block is a console block: lines of four spaces, or a fenced block without a language or with "console" or "sh".
type Block struct {
	Line   int    // of the first one in the document, from 1
	Reason string // why no test runs it, as the paragraph before it says: "(not run by a test: …)"
	Steps  []Step
}

// Step is a command with what the document shows of its output.
type Step struct {
	Line    int
	Host    string // where it is typed; empty where no prompt says so
	Command string
	Output  []string
}

var (
	prompt = regexp.MustCompile(`^([a-z][a-z0-9-]*)\$ +(.*)`)
	marked = regexp.MustCompile(`\(not run by a test: ([^)]+)\)`)
)

// Parse finds the console blocks of a document. In a block that has a prompt, what is not after one is output; in one
// without, every line is a command.
func Parse(text string) []Block {
	var blocks []Block
	var lines []string
	var paragraph strings.Builder // the last one
	start, fence, skipped, fresh := 0, false, false, true
	end := func() {
		for len(lines) > 0 && strings.TrimSpace(lines[len(lines)-1]) == "" {
			lines = lines[:len(lines)-1]
		}
		if len(lines) > 0 {
			b := Block{Line: start, Steps: steps(lines, start)}
			if m := marked.FindStringSubmatch(strings.ReplaceAll(paragraph.String(), "\n", " ")); m != nil {
				b.Reason = m[1]
			}
			blocks = append(blocks, b)
			paragraph.Reset() // what it says is about this block only
		}
		lines = nil
	}
	add := func(n int, line string) {
		if lines == nil {
			start = n
		}
		lines = append(lines, line)
	}
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimRight(line, "\r\n")
		blank := strings.TrimSpace(line) == ""
		if language, ok := strings.CutPrefix(line, "```"); ok {
			if fence {
				end()
			}
			fence = !fence
			skipped = fence && language != "" && language != "console" && language != "sh"
			continue
		}
		code, indented := strings.CutPrefix(line, "    ")
		switch {
		case fence && !skipped:
			add(n, line)
		case fence:
		case indented && !blank && (fresh || lines != nil):
			add(n, code)
		case blank && lines != nil:
			add(n, "")
		default:
			end()
			if fresh && !blank {
				paragraph.Reset()
			}
			paragraph.WriteString(line + "\n")
		}
		fresh = blank
	}
	end()
	return blocks
}

func steps(lines []string, start int) (out []Step) {
	prompted := false
	for _, l := range lines {
		prompted = prompted || prompt.MatchString(l)
	}
	for i, l := range lines {
		m := prompt.FindStringSubmatch(l)
		switch {
		case m != nil:
			out = append(out, Step{Line: start + i, Host: m[1], Command: m[2]})
		case prompted && len(out) > 0:
			last := &out[len(out)-1]
			last.Output = append(last.Output, l)
		case strings.TrimSpace(l) != "":
			out = append(out, Step{Line: start + i, Command: l})
		}
	}
	for i := range out {
		o := out[i].Output
		for len(o) > 0 && strings.TrimSpace(o[len(o)-1]) == "" {
			o = o[:len(o)-1]
		}
		out[i].Output = o
	}
	return out
}

// forms are what differs from one run to the next. IPv4 addresses and names do not.
var forms = []struct {
	is   *regexp.Regexp
	form string
}{
	{regexp.MustCompile(`mesh://\S+`), "mesh://TOKEN"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d`), "TIME"},
	{regexp.MustCompile(`[0-9a-f]*(:[0-9a-f]*){2,}`), "IPV6"},
	{regexp.MustCompile(`\d+(\.\d+)? (ms|s|min|h|B|KiB|MiB)\b`), "AMOUNT"},
	{regexp.MustCompile(`direct \S+:`), "direct ADDRESS:"}, // over IPv4 or IPv6
	{regexp.MustCompile(`\b(revision) \d+`), "$1 NUMBER"},
	{regexp.MustCompile(`\b\d+ (names)\b`), "NUMBER $1"},
	{regexp.MustCompile(`\s+`), " "},
}

// Form is what two runs of a command have in common of a line.
func Form(line string) string {
	for _, f := range forms {
		line = f.is.ReplaceAllString(line, f.form)
	}
	return strings.TrimSpace(line)
}

// Differs returns the first of the shown lines that the output does not have in the same place and form, and what it has
// there. The document need not show the end of an output.
func Differs(shown []string, output string) (want, got string, differs bool) {
	lines := strings.Split(output, "\n")
	for i, l := range shown {
		got = ""
		if i < len(lines) {
			got = lines[i]
		}
		if Form(l) != Form(got) {
			return l, got, true
		}
	}
	return "", "", false
}
