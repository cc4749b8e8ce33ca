// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// source is a line of nsswitch.conf and what is behind it.
type source struct {
	name  string
	line  string
	hosts int
	kinds []string // of questions that it is asked
	slow  bool     // milliseconds a look-up
}

// clock is the one for first look-ups, which are too short to be measured on a busy machine by the clock on the wall.
func (src source) clock() string {
	if src.line == "mesh" || src.line == "twin" || src.line == "files" {
		return "cpu"
	}
	return "wall" // somebody else answers
}

var allKinds = []string{"hit", "miss", "reverse"}

// threadsAtOnce is how many threads ask where it is more than one.
const threadsAtOnce = 8

// test is one question to one source, or to modules that take turns.
type test struct {
	source  source
	kind    string
	threads int
	entries []string
	lookups int         // in a batch
	rounds  [][]float64 // by entry, then round
	ratios  []float64   // of the first entry to the second, by round
	faults  [][]float64 // of a first look-up, by entry, then round
}

// batches is how many of one test are in a round: short ones of one thread, longer ones of several.
const batches, batchesOfThreads = 41, 9

// calibrate sets how many look-ups fill a batch; it stays the same from then on.
func (s *stage) calibrate(t *test) error {
	if t.source.slow {
		t.lookups = 1
		return nil
	}
	if err := s.set(t.source); err != nil {
		return err
	}
	got, err := s.harness("steady", s.questions(t.kind, t.source.hosts), strconv.Itoa(t.threads), "0", "1", t.entries[0])
	if err != nil {
		return err
	}
	t.lookups = max(1, int(got[0][0]))
	return nil
}

// steady asks for one round.
func (s *stage) steady(t *test) error {
	if err := s.set(t.source); err != nil {
		return err
	}
	n := batches
	switch {
	case t.source.slow:
		n = 2
	case t.threads > 1:
		n = batchesOfThreads
	}
	got, err := s.harness(append([]string{"steady", s.questions(t.kind, t.source.hosts), strconv.Itoa(t.threads), strconv.Itoa(t.lookups), strconv.Itoa(n)}, t.entries...)...)
	if err != nil {
		return fmt.Errorf("%s, %s: %w", t.source.name, t.kind, err)
	}
	t.add(got)
	return nil
}

// first asks new processes for one round.
func (s *stage) first(t *test, processes int) error {
	if err := s.set(t.source); err != nil {
		return err
	}
	if t.source.slow {
		processes = 2
	}
	got, err := s.harness(append([]string{"first", s.questions(t.kind, t.source.hosts), strconv.Itoa(processes), t.source.clock()}, t.entries...)...)
	if err != nil {
		return fmt.Errorf("%s, first look-up: %w", t.source.name, err)
	}
	n := len(t.entries)
	if len(got) != 2*n {
		return fmt.Errorf("the harness printed %d lines, not two for each of %d entries", len(got), n)
	}
	t.add(got[:n])
	if t.faults == nil {
		t.faults = make([][]float64, n)
	}
	for i, row := range got[n:] {
		t.faults[i] = append(t.faults[i], row...)
	}
	return nil
}

// add takes one round: of each entry the median of its batches, and of the ratios of batches that ran side by side.
func (t *test) add(got [][]float64) {
	if t.rounds == nil {
		t.rounds = make([][]float64, len(t.entries))
	}
	for i, row := range got {
		t.rounds[i] = append(t.rounds[i], median(slices.Sorted(slices.Values(row))))
	}
	if len(got) > 1 {
		t.ratios = append(t.ratios, median(slices.Sorted(slices.Values(ratios(got[0], got[1])))))
	}
}

// calls counts the system calls of a look-up: what more of them add to those of a process.
func (s *stage) calls(src source, kind, entry string) (string, error) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		return "-", nil // the head of the tables says so
	}
	if err := s.set(src); err != nil {
		return "", err
	}
	a, b := 10, 110 // libc looks for nscd again each 100 times
	switch {
	case src.slow:
		a, b = 1, 3
	case src.line == "files" && src.hosts > 100: // hundreds each
		a, b = 5, 15
	}
	total := func(n int) (float64, error) {
		file := filepath.Join(s.dir, "mem", "strace")
		cmd := exec.Command(strace, "-f", "-c", "-U", "calls,name", "-o", file, filepath.Join(s.dir, "harness"), "count", s.questions(kind, src.hosts), strconv.Itoa(n), entry)
		cmd.Env = []string{"PATH=/usr/bin:/bin"}
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("counting system calls: %w: %s", err, out)
		}
		last := lastLines(file).Error()
		last = last[strings.LastIndex(last, ";")+1:]
		number, name, _ := cutSpace(strings.TrimSpace(last))
		calls, err := strconv.ParseFloat(number, 64)
		if err != nil || name != "total" {
			return 0, fmt.Errorf("strace printed %q where its total should be", last)
		}
		return calls, nil
	}
	few, err := total(a)
	if err != nil {
		return "", err
	}
	many, err := total(b)
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", (many-few)/float64(b-a)), ".0"), nil
}

// plan is all tests, in the order in which they take turns.
type plan struct {
	functions    []*test // the modules' own functions
	libc         []*test // getaddrinfo and getnameinfo
	firstModules []*test
	firstLibc    []*test
	sources      []source // of the tests through libc
}

func (s *stage) plan(o options, rivals []source) *plan {
	p := &plan{}
	for _, n := range o.Sizes {
		src := source{name: "mesh", line: "mesh", hosts: n, kinds: allKinds}
		twin := src
		twin.name, twin.line = "C twin", "twin"
		modules := []string{s.module("mesh"), s.module("twin")}
		for _, kind := range allKinds {
			p.functions = append(p.functions, &test{source: src, kind: kind, threads: 1, entries: append(modules[:2:2], "reads="+strconv.Itoa(reads(n, kind)))})
		}
		p.functions = append(p.functions, &test{source: src, kind: "hit", threads: threadsAtOnce, entries: append(modules[:2:2], "reads="+strconv.Itoa(reads(n, "hit")))})
		p.firstModules = append(p.firstModules, &test{source: src, kind: "hit", threads: 1, entries: modules})
		p.sources = append(p.sources, src, twin)
	}
	for _, n := range o.Lines {
		p.sources = append(p.sources, source{name: "files", line: "files", hosts: n, kinds: allKinds})
	}
	p.sources = append(p.sources, rivals...)
	for _, src := range p.sources {
		for _, kind := range src.kinds {
			p.libc = append(p.libc, &test{source: src, kind: kind, threads: 1, entries: []string{"libc"}})
		}
		if slices.Contains(src.kinds, "hit") && !src.slow {
			p.libc = append(p.libc, &test{source: src, kind: "hit", threads: threadsAtOnce, entries: []string{"libc"}})
		}
		if slices.Contains(src.kinds, "hit") {
			p.firstLibc = append(p.firstLibc, &test{source: src, kind: "hit", threads: 1, entries: []string{"libc"}})
		}
	}
	return p
}

// reads is how many a look-up needs at best: a small mesh is in the first one.
func reads(hosts int, kind string) int {
	switch {
	case hosts <= 10:
		return 1
	case kind == "reverse":
		return 3
	}
	return 2
}

// find is the test through libc of a source.
func find(tests []*test, line string, hosts int, kind string, threads int) *test {
	for _, t := range tests {
		if t.source.line == line && t.source.hosts == hosts && t.kind == kind && t.threads == threads {
			return t
		}
	}
	return nil
}

// measure does everything and prints it.
func measure(p *page, s *stage, o options) error {
	budgets, err := s.writeAll(p, o)
	if err != nil {
		return err
	}
	for _, n := range slices.Concat(o.Sizes, o.Lines, []int{servedHosts, etcdHosts}) {
		if err := s.writeQuestions(n); err != nil {
			return err
		}
		if err := s.writeHosts(n); err != nil {
			return err
		}
	}
	var rivals []source
	if o.Full {
		rivals = s.startRivals(o.Missing)
	}
	pl := s.plan(o, rivals)
	all := slices.Concat(pl.functions, pl.libc)
	for _, t := range all {
		if err := s.calibrate(t); err != nil {
			return fmt.Errorf("%s with %s hosts, %s: %w", t.source.name, count(t.source.hosts), t.kind, err)
		}
	}
	news := slices.Concat(pl.firstModules, pl.firstLibc)
	for range o.Rounds {
		for _, t := range all {
			if err := s.steady(t); err != nil {
				return err
			}
		}
		for _, t := range news {
			if err := s.first(t, o.Processes); err != nil {
				return err
			}
		}
		slices.Reverse(all)
		slices.Reverse(news)
	}
	return s.report(p, o, pl, budgets)
}

func (s *stage) report(p *page, o options, pl *plan, budgets []budget) error {
	var found []budget
	t := table{title: "The module's own functions, steady",
		head: []string{"hosts", "question", "threads", "mesh ns", "C twin ns", "mesh to C twin", "open, reads, close alone ns", "system calls", "of C twin"},
		note: fmt.Sprintf("gethostbyname4_r and gethostbyaddr2_r through dlsym; batches of the three take turns in one process. With %d threads: wall time divided by all look-ups.", threadsAtOnce)}
	for _, f := range pl.functions {
		ours, err := s.calls(f.source, f.kind, f.entries[0])
		if err != nil {
			return err
		}
		twins, err := s.calls(f.source, f.kind, f.entries[1])
		if err != nil {
			return err
		}
		t.row(count(f.source.hosts), f.kind, strconv.Itoa(f.threads), spread("%.0f", f.rounds[0]), spread("%.0f", f.rounds[1]), spread("%.3f", f.ratios), spread("%.0f", f.rounds[2]), ours, twins)
		if f.threads == 1 {
			found = append(found, budget{fmt.Sprintf("`_r` to C twin, %s, %s hosts", f.kind, count(f.source.hosts)), "%.3f", f.ratios, 1.1})
		}
	}
	p.table(t)

	few := find(pl.libc, "files", o.Lines[0], "hit", 1)
	t = table{title: "Through libc, steady", head: []string{"source", "hosts", "getaddrinfo us", "to files " + count(o.Lines[0]), "a name of nobody's us", "getnameinfo us",
		fmt.Sprintf("getaddrinfo, %d threads, us", threadsAtOnce), "system calls", "of nobody's", "of getnameinfo"},
		note: "The hosts line of nsswitch.conf holds this source alone; a name of nobody's is wwwN.example.org, as a source finds it that stands before dns."}
	for _, src := range pl.sources {
		cells := []string{src.name, count(src.hosts)}
		cell := func(kind string, threads int) string {
			if f := find(pl.libc, src.line, src.hosts, kind, threads); f != nil && slices.Contains(src.kinds, kind) {
				return spread("%.2f", scaled(f.rounds[0], 1e-3))
			}
			return "-"
		}
		hit := find(pl.libc, src.line, src.hosts, "hit", 1)
		cells = append(cells, cell("hit", 1))
		if hit != nil && slices.Contains(src.kinds, "hit") {
			cells = append(cells, spread("%.3f", ratios(hit.rounds[0], few.rounds[0])))
		} else {
			cells = append(cells, "-")
		}
		miss := "miss"
		if slices.Contains(src.kinds, "local") {
			miss = "local"
		}
		cells = append(cells, cell(miss, 1), cell("reverse", 1), cell("hit", threadsAtOnce))
		for _, kind := range []string{"hit", miss, "reverse"} {
			n := "-"
			if slices.Contains(src.kinds, kind) {
				var err error
				if n, err = s.calls(src, kind, "libc"); err != nil {
					return err
				}
			}
			cells = append(cells, n)
		}
		t.row(cells...)
		if src.line == "mesh" {
			found = append(found, budget{fmt.Sprintf("getaddrinfo to files with %s lines, %s hosts", count(o.Lines[0]), count(src.hosts)), "%.3f", ratios(hit.rounds[0], few.rounds[0]), 1})
		}
	}
	p.table(t)

	smallest, largest := o.Sizes[0], o.Sizes[len(o.Sizes)-1]
	name := fmt.Sprintf("%s hosts to %s", count(largest), count(smallest))
	a, b := find(pl.functions, "mesh", largest, "hit", 1), find(pl.functions, "mesh", smallest, "hit", 1)
	found = append(found, budget{"`_r`, " + name, "%.3f", ratios(a.rounds[0], b.rounds[0]), flat})
	a, b = find(pl.libc, "mesh", largest, "hit", 1), find(pl.libc, "mesh", smallest, "hit", 1)
	found = append(found, budget{"getaddrinfo, " + name, "%.3f", ratios(a.rounds[0], b.rounds[0]), flat})

	t = table{title: "First look-up of a new process", head: []string{"source", "hosts", "dlopen and `_r` us", "to C twin", "page faults", "getaddrinfo us", "to C twin", "page faults"},
		note: "From before dlopen, or getaddrinfo, to the answer; the process's own start is not in it. CPU time where the process answers itself, which is never waiting, else wall time. Where a page fault is dear, so is everything here."}
	faults := func(f *test, entry int) string {
		return fmt.Sprintf("%.0f", median(slices.Sorted(slices.Values(f.faults[entry]))))
	}
	for _, f := range pl.firstLibc {
		cells := []string{f.source.name, count(f.source.hosts), "-", "-", "-", spread("%.0f", scaled(f.rounds[0], 1e-3)), "-", faults(f, 0)}
		own, twin := find(pl.firstModules, "mesh", f.source.hosts, "hit", 1), find(pl.firstLibc, "twin", f.source.hosts, "hit", 1)
		switch f.source.line {
		case "twin":
			cells[2], cells[4] = spread("%.0f", scaled(own.rounds[1], 1e-3)), faults(own, 1)
		case "mesh":
			r := ratios(f.rounds[0], twin.rounds[0])
			cells[2], cells[3], cells[4], cells[6] = spread("%.0f", scaled(own.rounds[0], 1e-3)), spread("%.2f", own.ratios), faults(own, 0), spread("%.2f", r)
			found = append(found, budget{fmt.Sprintf("first dlopen and `_r` to C twin, %s hosts", count(f.source.hosts)), "%.2f", own.ratios, 2},
				budget{fmt.Sprintf("first getaddrinfo to C twin, %s hosts", count(f.source.hosts)), "%.2f", r, 2})
		}
		t.row(cells...)
	}
	p.table(t)
	p.budgets(append(found, budgets...))
	p.missing(o.Missing)
	return nil
}

// flat is what a look-up in the largest mesh may cost, as a multiple of one in the smallest.
const flat = 1.5
