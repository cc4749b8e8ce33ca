// SPDX-License-Identifier: MIT

// Package doctor finds out why programs on this machine do not see the mesh's names, and says what to do.
//
// Gather reads the machine into a Machine and changes nothing; NSS, Asking and DNS are pure functions of that, so that any machine there
// is can be a row of a test. Every finding that is not good has its remedy. The package prints nothing, and starts
// no goroutine that outlives a call.
package doctor

import "fmt"

// Severity says how bad a finding is.
type Severity int

const (
	OK      Severity = iota // as it should be
	Warning                 // works, but not for all, not always, or not as fast as it could
	Problem                 // programs do not see the mesh's names
)

// String is the word for it, as in JSON.
func (s Severity) String() string { return [...]string{"ok", "warning", "problem"}[s] }

// MarshalText implements encoding.TextMarshaler.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Finding is one thing that was found. In its texts a line that begins with four spaces is to be shown as it is, and
// what stands in backquotes is to be typed.
type Finding struct {
	Severity Severity `json:"severity"`
	Subject  string   `json:"subject"` // what it is about, in a word: "module", "hosts", "snapshot"
	What     string   `json:"what"`
	Detail   []string `json:"detail,omitempty"` // lines
	Remedy   string   `json:"remedy,omitempty"` // never empty unless OK
}

// findings are collected in the order in which a look-up goes.
type findings []Finding

func (f *findings) ok(subject, format string, args ...any) {
	*f = append(*f, Finding{Severity: OK, Subject: subject, What: fmt.Sprintf(format, args...)})
}

func (f *findings) warning(subject, remedy, format string, args ...any) {
	*f = append(*f, Finding{Severity: Warning, Subject: subject, What: fmt.Sprintf(format, args...), Remedy: remedy})
}

func (f *findings) problem(subject, remedy, format string, args ...any) {
	*f = append(*f, Finding{Severity: Problem, Subject: subject, What: fmt.Sprintf(format, args...), Remedy: remedy})
}

// detail adds lines to the last finding.
func (f findings) detail(lines ...string) {
	last := &f[len(f)-1]
	last.Detail = append(last.Detail, lines...)
}
