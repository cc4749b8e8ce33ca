// SPDX-License-Identifier: MIT

package health

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxRead   = 16 << 10 // bytes of a program's output that are looked at; the rest is read and dropped
	maxOutput = 4096     // bytes of Status.Output, as Consul and Nagios keep
	maxPerf   = 4096     // bytes of Status.Perf
)

// parseOutput reads what a plugin writes: text, "|" and performance data in the first line; more text in the lines
// below, and after a "|" there more performance data to the end (Monitoring Plugins Development Guidelines, "Plugin
// Output for Nagios"; Nagios Core, "Plugin API"). It takes any bytes. Lines of text are joined by "; ".
func parseOutput(b []byte) (output, perf string) {
	var texts, perfs []string
	inPerf := false
	for i, line := range strings.Split(string(b), "\n") {
		text, data := line, ""
		if inPerf {
			text, data = "", line
		} else if t, d, ok := strings.Cut(line, "|"); ok {
			text, data, inPerf = t, d, i > 0
		}
		if text = clean(text); text != "" {
			texts = append(texts, text)
		}
		if data = clean(data); data != "" {
			perfs = append(perfs, data)
		}
	}
	return head(strings.Join(texts, "; "), maxOutput), head(strings.Join(perfs, " "), maxPerf)
}

// clean makes text fit for a terminal, a log and JSON: valid UTF-8 in one line, without what moves a cursor or the
// direction of writing.
func clean(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == '\n' || unicode.Is(unicode.Zs, r):
			return ' '
		case r == utf8.RuneError, !unicode.IsPrint(r) && r != '\u200d': // a joiner within words
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "")))
}

// head is the beginning of s, at most n bytes, cut between characters.
func head(s string, n int) string {
	if len(s) <= n {
		return s
	}
	const mark = "…"
	n -= len(mark)
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + mark
}

// sink keeps the beginning of what is written to it.
type sink struct {
	b   []byte
	all int
}

func (s *sink) Write(b []byte) (int, error) {
	s.b = append(s.b, b[:min(len(b), maxRead-len(s.b))]...)
	s.all += len(b)
	return len(b), nil
}
