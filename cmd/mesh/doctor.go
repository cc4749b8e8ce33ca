// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"mesh.internal/mesh/cmd/internal/doctor"
)

// errFound ends the program with status 1 where a problem was found and shown.
var errFound = errors.New("problems were found")

// checkup is one of doctor's subcommands.
type checkup struct {
	name, short string
	of          func(*doctor.Machine) []doctor.Finding
}

var checkups = []checkup{
	{"nss", "find out why programs do not see mesh names", doctor.NSS},
	{"dns", "find out whether programs that speak DNS see mesh names", doctor.Asking},
}

// report is what a checkup found, as JSON.
type report struct {
	Check    string           `json:"check"`
	Findings []doctor.Finding `json:"findings"`
	Programs []doctor.Program `json:"programs"` // that run and cannot see mesh names
}

func (a *app) doctorCommand() *cobra.Command {
	var asJSON bool
	run := func(list []checkup) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, _ []string) error {
			m := doctor.System{Root: "/", Paths: a.paths, Version: version}.Gather(cmd.Context())
			var reports []report
			var worst doctor.Severity
			for _, c := range list {
				r := report{Check: c.name, Findings: c.of(m), Programs: append([]doctor.Program{}, m.Programs...)}
				for _, f := range r.Findings {
					worst = max(worst, f.Severity)
				}
				reports = append(reports, r)
			}
			w := cmd.OutOrStdout()
			if asJSON {
				if err := writeJSON(w, reports); err != nil {
					return err
				}
			} else {
				showReports(w, reports, width(w))
			}
			if worst == doctor.Problem {
				return errFound
			}
			return nil
		}
	}
	cmd := &cobra.Command{
		Use: "doctor", Short: "find out what is wrong on this machine, and what to do", Args: cobra.NoArgs,
		Long: "Finds out what is wrong on this machine, and says what to do; it changes nothing. Without a subcommand it looks at everything. The exit status is 1 if there is a problem. As root it sees the programs of all users.",
		RunE: run(checkups),
	}
	for _, c := range checkups {
		cmd.AddCommand(&cobra.Command{Use: c.name, Short: c.short, Args: cobra.NoArgs, RunE: run([]checkup{c})})
	}
	cmd.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// width is how many columns there are to write in.
func width(w io.Writer) int {
	if f, ok := w.(*os.File); ok {
		if n, _, err := term.GetSize(int(f.Fd())); err == nil {
			return min(max(n, 60), 110)
		}
	}
	return 100
}

func showReports(w io.Writer, reports []report, columns int) {
	p := paint(w)
	marks := map[doctor.Severity]struct{ mark, colour string }{doctor.OK: {"✓", green}, doctor.Warning: {"!", yellow}, doctor.Problem: {"✗", red}}
	subject := 0
	for _, r := range reports {
		for _, f := range r.Findings {
			subject = max(subject, utf8.RuneCountInString(f.Subject))
		}
	}
	indent := strings.Repeat(" ", subject+6)
	var problems, warnings int
	for _, r := range reports {
		fmt.Fprintln(w, p(bold, "mesh doctor "+r.Check))
		fmt.Fprintln(w)
		last := ""
		for i, f := range r.Findings {
			if i > 0 && (f.Severity != doctor.OK || r.Findings[i-1].Severity != doctor.OK) {
				fmt.Fprintln(w) // what is as it should be stands close together
			}
			name := f.Subject
			if name == last {
				name = ""
			}
			last = f.Subject
			m := marks[f.Severity]
			what := lines(f.What, columns-len(indent))
			colour := func(s string) string { return s }
			if f.Severity != doctor.OK {
				colour = func(s string) string { return p(bold, s) }
			}
			fmt.Fprintf(w, "  %s %s  %s\n", p(m.colour, m.mark), p(dim, fmt.Sprintf("%-*s", subject, name)), colour(what[0]))
			for _, l := range what[1:] {
				fmt.Fprintln(w, indent+colour(l))
			}
			for _, l := range f.Detail {
				fmt.Fprintln(w, indent+p(dim, strings.TrimPrefix(l, "  ")))
			}
			if f.Remedy != "" {
				arrow, remedy := "→ ", f.Remedy
				if i > 0 && remedy == r.Findings[i-1].Remedy {
					remedy = "as above"
				}
				for _, l := range lines(remedy, columns-len(indent)-2) {
					fmt.Fprintln(w, indent+p(m.colour, arrow)+typed(l, p))
					arrow = "  "
				}
			}
			switch f.Severity {
			case doctor.Problem:
				problems++
			case doctor.Warning:
				warnings++
			}
		}
		fmt.Fprintln(w)
	}
	switch {
	case problems > 0:
		fmt.Fprintln(w, p(red, strings.TrimSuffix(plural(problems, "problem")+", "+plural(warnings, "warning"), ", no warnings")))
	case warnings > 0:
		fmt.Fprintf(w, "%s, no problems\n", p(yellow, plural(warnings, "warning")))
	default:
		fmt.Fprintln(w, p(green, "nothing to do"))
	}
}

func plural(n int, what string) string {
	switch n {
	case 0:
		return "no " + what + "s"
	case 1:
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// lines breaks text into lines of at most columns, where it can. A line that begins with four spaces, and what is in
// backquotes, stays whole.
func lines(text string, columns int) []string {
	var out []string
	for _, l := range strings.Split(text, "\n") {
		if strings.HasPrefix(l, "    ") {
			out = append(out, l)
			continue
		}
		line := ""
		for _, word := range words(l) {
			if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > columns {
				out, line = append(out, line), ""
			}
			if line != "" {
				line += " "
			}
			line += word
		}
		out = append(out, line)
	}
	return out
}

// words splits at spaces that are not in backquotes.
func words(s string) []string {
	quoted := false
	return strings.FieldsFunc(s, func(r rune) bool {
		if r == '`' {
			quoted = !quoted
		}
		return r == ' ' && !quoted
	})
}

// typed sets apart on a terminal what is to be typed: lines that stand for themselves, and what is in backquotes.
func typed(line string, p func(colour, s string) string) string {
	if strings.HasPrefix(line, "    ") {
		return "  " + p(bold, strings.TrimSpace(line))
	}
	if p(bold, "") == "" {
		return line
	}
	parts := strings.Split(line, "`")
	for i := 1; i < len(parts); i += 2 {
		parts[i] = p(bold, parts[i])
	}
	return strings.Join(parts, "")
}
