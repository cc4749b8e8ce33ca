// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// page is where results go: to a person as they come, and to a Markdown document.
type page struct {
	out io.Writer
	md  io.Writer
}

type table struct {
	title, note string
	head        []string
	rows        [][]string
}

func (p *page) head(o options) {
	var u unix.Utsname
	unix.Uname(&u)
	load, _ := os.ReadFile("/proc/loadavg")
	now, _, _ := strings.Cut(string(load), " ")
	machine := fmt.Sprintf("%d cores of %s, Linux %s, %s, load %s", runtime.NumCPU(), field("/proc/cpuinfo", "model name"), unix.ByteSliceToString(u.Release[:]), runtime.Version(), now)
	way := fmt.Sprintf("%d (%d with 100,000 names and more), each in the reverse of the last one's order; medians [min-max] of rounds; a round has %d changes (20 with 100,000 names and more), one by one", o.Rounds, min(o.Rounds, o.Largest), o.Changes)
	fmt.Fprintf(p.out, "machine: %s\netcd:    %s\nrounds:  %s\n\n", machine, version("go.etcd.io/etcd/server/v3"), way)
	fmt.Fprintf(p.md, "# The store, measured\n\nWritten by `make bench-store`; do not edit. What is measured, and how, is in cmd/internal/storebench; the budgets are those the project set itself.\n\n"+
		"- Machine: %s.\n- etcd %s, with meshd-etcd's settings and mutual TLS; all processes on this one machine, over loopback.\n- Rounds: %s.\n", machine, version("go.etcd.io/etcd/server/v3"), way)
}

func version(module string) string {
	info, _ := debug.ReadBuildInfo()
	for _, d := range info.Deps {
		if d.Path == module {
			return d.Version
		}
	}
	return "of an unknown version"
}

func (p *page) table(t table) {
	w := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(p.out, t.title)
	for _, r := range append([][]string{t.head}, t.rows...) {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	w.Flush()
	fmt.Fprintln(p.out)
	fmt.Fprintf(p.md, "\n## %s\n\n%s\n\n| %s |\n|%s\n", t.title, t.note, strings.Join(t.head, " | "), strings.Repeat("---|", len(t.head)))
	for _, r := range t.rows {
		fmt.Fprintf(p.md, "| %s |\n", strings.Join(r, " | "))
	}
}

// results are tables of all runs.
func (p *page) results(all []result) {
	type kind struct{ names, members int }
	by := map[kind][]result{}
	for _, r := range all {
		by[kind{r.names, r.members}] = append(by[kind{r.names, r.members}], r)
	}
	var kinds []kind
	for k := range by {
		kinds = append(kinds, k)
	}
	slices.SortFunc(kinds, func(a, b kind) int { return cmp.Or(a.names-b.names, a.members-b.members) })
	change := table{title: "A change, from one node to getaddrinfo on another", head: []string{"names", "members", "p50 ms", "p99 ms", "until the store has it, p50 ms", "a snapshot's writing, ms"},
		note: "From the call of `mesh host add` on a to the return of getaddrinfo with the new name on b. The p99 of a round of so few changes is its slowest or nearly so."}
	load := table{title: "All names", head: []string{"names", "members", "put by their owner, s", "b from its start to a full snapshot, s", "a node's memory, MiB", "a member's memory, MiB", "database, MiB"},
		note: "Every name has three values in the store: the host, the claim on its name and that on its address. Memory is resident after all changes, in b, with nothing but names and the writer of snapshots in it, and in the first member."}
	said := table{title: "What is said and written", head: []string{"names", "members", "messages a change", "bytes a change", "on the wire a change", "syncs a change", "messages a minute, idle", "wire bytes a second, idle", "syncs a minute, idle", "CPU of b idle, %", "CPU of a member idle, %"},
		note: "Messages and bytes are those that members take from two nodes and give them, as etcd counts them; the wire is all that crosses loopback, TLS and TCP and what members say to each other included; syncs are of the log and of the database, in all members."}
	for _, k := range kinds {
		rs := by[k]
		is := []string{count(k.names), fmt.Sprint(k.members)}
		s := func(format string, f func(result) float64) string { return spread(format, values(rs, f)) }
		change.rows = append(change.rows, append(slices.Clone(is), s("%.1f", p50), s("%.1f", p99),
			s("%.1f", func(r result) float64 { return quantile(r.commits, 0.5) }), s("%.1f", func(r result) float64 { return r.write })))
		load.rows = append(load.rows, append(slices.Clone(is), s("%.2f", func(r result) float64 { return r.fill }), s("%.2f", func(r result) float64 { return r.load }),
			s("%.0f", func(r result) float64 { return r.node }), s("%.0f", func(r result) float64 { return r.member }), s("%.1f", func(r result) float64 { return r.database })))
		said.rows = append(said.rows, append(slices.Clone(is), s("%.1f", func(r result) float64 { return r.change.requests }), s("%.0f", func(r result) float64 { return r.change.told }),
			s("%.0f", func(r result) float64 { return r.change.wire }), s("%.1f", func(r result) float64 { return r.change.syncs }),
			s("%.1f", func(r result) float64 { return r.idle.requests * 60 }), s("%.0f", func(r result) float64 { return r.idle.wire }), s("%.1f", func(r result) float64 { return r.idle.syncs * 60 }),
			s("%.2f", func(r result) float64 { return r.nodeCPU }), s("%.2f", func(r result) float64 { return r.memberCPU })))
	}
	p.table(change)
	p.table(load)
	p.table(said)
	budgets := table{title: "Budgets", head: []string{"what", "measured", "at most", "", "rounds"},
		note: "The verdict is on the median, and the last column says how many rounds agree with it."}
	add := func(what, format string, v []float64, atMost float64) {
		if len(v) == 0 {
			return
		}
		word, agree := verdict(v, atMost)
		budgets.rows = append(budgets.rows, []string{what, spread(format, v), fmt.Sprintf("%.4g", atMost), word, fmt.Sprintf("%d of %d", agree, len(v))})
	}
	for _, m := range []int{1, 3} {
		add(fmt.Sprintf("change, 10,000 names, members: %d, p99 ms", m), "%.1f", values(by[kind{10_000, m}], p99), 50)
	}
	add("a member's memory in a small mesh, MiB", "%.0f", values(by[kind{100, 1}], func(r result) float64 { return r.member }), 40)
	add("a member's CPU idle in a small mesh, %", "%.2f", values(by[kind{100, 1}], func(r result) float64 { return r.memberCPU }), 1)
	add("a node's CPU idle, 10,000 names, %", "%.2f", values(by[kind{10_000, 1}], func(r result) float64 { return r.nodeCPU }), 0.2)
	p.table(budgets)
}

func p50(r result) float64 { return quantile(r.changes, 0.5) }
func p99(r result) float64 { return quantile(r.changes, 0.99) }

func values(rs []result, f func(result) float64) (out []float64) {
	for _, r := range rs {
		out = append(out, f(r))
	}
	return out
}

// verdict says whether the median keeps a budget, and in how many rounds that was so.
func verdict(v []float64, atMost float64) (word string, agree int) {
	ok := quantile(v, 0.5) <= atMost
	for _, x := range v {
		if x <= atMost == ok {
			agree++
		}
	}
	if ok {
		return "ok", agree
	}
	return "over", agree
}

// spread is "median [min-max]" of values in any order.
func spread(format string, v []float64) string {
	s := slices.Sorted(slices.Values(v))
	return fmt.Sprintf(format+" ["+format+"-"+format+"]", quantile(s, 0.5), s[0], s[len(s)-1])
}

// quantile is the value that a share q of all does not exceed; the median of an even number is between two.
func quantile(v []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	if n == 0 {
		return 0
	}
	if q == 0.5 {
		return (s[(n-1)/2] + s[n/2]) / 2
	}
	return s[min(n-1, int(q*float64(n)))]
}

// count writes a number as people do.
func count(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// field returns the first value of a name in a file of "name : value" lines.
func field(file, name string) string {
	b, _ := os.ReadFile(file)
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return "an unnamed kind"
}
