// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

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

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

// budget is a bound from above on values by round.
type budget struct {
	name   string
	format string
	values []float64
	atMost float64
}

func (p *page) head(o options) {
	var u unix.Utsname
	unix.Uname(&u)
	libc, _ := exec.Command("getconf", "GNU_LIBC_VERSION").Output()
	command := "make bench-nss"
	if !o.Full {
		command = "go run ./libnss_mesh/bench -markdown FILE"
	}
	strace := ""
	if _, err := exec.LookPath("strace"); err != nil {
		strace = " System calls were not counted: strace is not installed."
	}
	load, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(load), " ")
	machine := fmt.Sprintf("%d cores of %s, Linux %s, %s, %s, load %s, %.1f us a page fault", runtime.NumCPU(), field("/proc/cpuinfo", "model name"),
		unix.ByteSliceToString(u.Release[:]), strings.TrimSpace(string(libc)), runtime.Version(), first, pageFault())
	way := fmt.Sprintf("%d, each in the reverse of the last one's order; medians [min-max] of rounds; a round is the median of %d batches of 0.3 ms (several threads: %d of 2 ms) or of %d new processes; a ratio is of one round",
		o.Rounds, batches, batchesOfThreads, o.Processes)
	fmt.Fprintf(p.out, "machine: %s\nrounds:  %s.%s\n\n", machine, way, strace)
	fmt.Fprintf(p.md, "# Look-ups, measured\n\nWritten by `%s`; do not edit. What is compared, and how, is in libnss_mesh/bench; the budgets are those the project set itself.\n\n"+
		"- Machine: %s.\n- Rounds: %s.%s\n", command, machine, way, strace)
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

func (p *page) budgets(all []budget) {
	t := table{title: "Budgets", head: []string{"what", "measured", "at most", "", "rounds"},
		note: "The verdict is on the median, and the last column says how many rounds agree with it: where not all do, the machine is too noisy to tell. The largest mesh beside the smallest should cost the same; that it costs at most 1.5 times as much is taken for that, as one more read is inevitable."}
	for _, b := range all {
		word, n := b.verdict()
		t.row(b.name, spread(b.format, b.values), fmt.Sprintf("%.4g", b.atMost), word, fmt.Sprintf("%d of %d", n, len(b.values)))
	}
	p.table(t)
}

// verdict says whether the median keeps the budget, and in how many rounds that was so.
func (b budget) verdict() (word string, agree int) {
	ok := median(slices.Sorted(slices.Values(b.values))) <= b.atMost
	for _, v := range b.values {
		if v <= b.atMost == ok {
			agree++
		}
	}
	if ok {
		return "ok", agree
	}
	return "over", agree
}

// missing names the sources that were not measured.
func (p *page) missing(why map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(why)) {
		reason := strings.Join(strings.Fields(why[name]), " ")
		if len(reason) > 400 {
			reason = reason[:400] + "…"
		}
		fmt.Fprintf(p.out, "not measured: %s: %s\n", name, reason)
		fmt.Fprintf(p.md, "\nNot measured: %s: %s\n", name, reason)
	}
}

// spread is "median [min-max]" of values in any order.
func spread(format string, values []float64) string {
	v := slices.Sorted(slices.Values(values))
	return fmt.Sprintf(format+" ["+format+"-"+format+"]", median(v), v[0], v[len(v)-1])
}

func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// ratios compares values of the same round or batch.
func ratios(a, b []float64) (out []float64) {
	for i := range a {
		out = append(out, a[i]/b[i])
	}
	return out
}

func scaled(v []float64, by float64) (out []float64) {
	for _, x := range v {
		out = append(out, x*by)
	}
	return out
}

// pageFault returns the microseconds that the first touch of a page costs here: what a new process does is mostly that,
// and some virtual machines take many times what others take for it.
func pageFault() float64 {
	const pages = 2000
	b, err := unix.Mmap(-1, 0, pages*os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return 0
	}
	defer unix.Munmap(b)
	begin := time.Now()
	for i := 0; i < len(b); i += os.Getpagesize() {
		b[i] = 1
	}
	return float64(time.Since(begin).Nanoseconds()) / 1e3 / pages
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

// cutSpace cuts at the first white space.
func cutSpace(s string) (before, after string, found bool) {
	if i := strings.IndexAny(s, " \t"); i >= 0 {
		return s[:i], strings.TrimSpace(s[i:]), true
	}
	return s, "", false
}
