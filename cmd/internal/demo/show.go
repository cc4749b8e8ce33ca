// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"
)

// The colours of a terminal.
const (
	bold   = "\x1b[1m"
	dim    = "\x1b[2m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	reset  = "\x1b[0m"
	erase  = "\r\x1b[K"
)

// show writes what happens and counts what was right.
type show struct {
	out      io.Writer
	terminal bool // colours and a line that changes; a pipe gets neither

	record   strings.Builder // all of it as Markdown
	pictures map[string][]byte

	passed, failed int
	waiting        bool // a line that will be erased is on the terminal
}

func (s *show) paint(colour, text string) string {
	if !s.terminal {
		return text
	}
	return colour + text + reset
}

// tell writes to the terminal only.
func (s *show) tell(text string) {
	if s.waiting {
		io.WriteString(s.out, erase)
		s.waiting = false
	}
	io.WriteString(s.out, text)
}

func (s *show) printf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.tell(text)
	s.record.WriteString(colours.ReplaceAllString(text, ""))
}

var colours = regexp.MustCompile("\x1b\\[[0-9]*m")

// title begins a part of the story.
func (s *show) title(text string) {
	s.tell("\n" + s.paint(bold, text) + "\n")
	s.record.WriteString("```\n\n## " + text + "\n\n```\n")
}

// note says something beside the commands.
func (s *show) note(format string, args ...any) {
	s.printf("%s\n", s.paint(dim, fmt.Sprintf(format, args...)))
}

// command shows what is typed where. A very long argument, which the reader has seen before, is cut short; one with a
// space is quoted.
func (s *show) command(host string, args ...string) {
	const longest = 60
	shown := make([]string, len(args))
	for i, arg := range args {
		if utf8.RuneCountInString(arg) > longest {
			arg = string([]rune(arg)[:longest-20]) + "…"
		}
		if strings.Contains(arg, " ") {
			arg = "'" + arg + "'"
		}
		shown[i] = arg
	}
	s.printf("%s %s\n", s.paint(yellow, host+"$"), strings.Join(shown, " "))
}

// output shows what a command printed: of JSON, which programs read, the beginning on one line.
func (s *show) output(text string) {
	var line bytes.Buffer
	if strings.HasPrefix(text, "{") && json.Compact(&line, []byte(text)) == nil {
		const most = 240
		text = line.String()
		if utf8.RuneCountInString(text) > most {
			text = string([]rune(text)[:most]) + "…"
		}
	}
	if text = strings.TrimRight(text, "\n"); text != "" {
		s.printf("%s\n", text)
	}
}

// wait shows on a terminal that something is being waited for.
func (s *show) wait(what string, since time.Duration) {
	if !s.terminal {
		return
	}
	fmt.Fprintf(s.out, "%s%s", erase, s.paint(dim, fmt.Sprintf("  … %s %.1f s", what, since.Seconds())))
	s.waiting = true
}

// check says whether what was claimed is so, and if not, why.
func (s *show) check(claim string, took time.Duration, err error) {
	if err == nil {
		s.passed++
		s.printf("  %s %s%s\n", s.paint(green, "✓"), claim, s.paint(dim, fmt.Sprintf(" (%s)", round(took))))
		return
	}
	s.failed++
	s.printf("  %s %s%s\n", s.paint(red, "✗"), claim, s.paint(dim, fmt.Sprintf(" (%s)", round(took))))
	for line := range strings.Lines(err.Error()) {
		s.printf("    %s\n", s.paint(red, strings.TrimRight(line, "\n")))
	}
}

// result ends the story: its last line is for programs that read it.
func (s *show) result(took time.Duration) {
	s.printf("\n%s\n", s.paint(dim, fmt.Sprintf("in %s", round(took))))
	s.printf("%d passed, %d failed\n", s.passed, s.failed)
}

// picture keeps a picture under the name of its file.
func (s *show) picture(name string, data []byte) {
	if s.pictures == nil {
		s.pictures = map[string][]byte{}
	}
	s.pictures[name] = data
	s.record.WriteString("```\n\n![](" + name + ")\n\n```\n")
}

// round drops the digits nobody reads.
func round(d time.Duration) time.Duration {
	switch {
	case d > 10*time.Second:
		return d.Round(time.Second)
	case d > time.Second:
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Millisecond)
}
