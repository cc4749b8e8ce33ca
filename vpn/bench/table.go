// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// quantity is something measured in every run.
type quantity struct {
	name   string
	format string // of a value
	of     func(run) float64
	budget float64 // of our ratio to plain wireguard-go; 0: none
	atMost bool    // the budget is a bound from above
}

func quantities() []quantity {
	idle := func(q float64) func(run) float64 { return func(r run) float64 { return quantile(r.idle, q) } }
	loaded := func(q float64) func(run) float64 { return func(r run) float64 { return quantile(r.loaded, q) / 1000 } }
	return []quantity{
		{name: "TCP Mbit/s", format: "%.0f", of: func(r run) float64 { return r.mbits }, budget: 0.97},
		{name: "CPU s/GiB", format: "%.2f", of: func(r run) float64 { return r.cpu }},
		{name: "peak RSS MiB", format: "%.0f", of: func(r run) float64 { return r.memory }},
		{name: "idle p50 us", format: "%.0f", of: idle(0.5)},
		{name: "idle p99 us", format: "%.0f", of: idle(0.99)},
		{name: "loaded p50 ms", format: "%.2f", of: loaded(0.5), budget: 0.3, atMost: true},
		{name: "loaded p99 ms", format: "%.2f", of: loaded(0.99)},
		{name: fmt.Sprintf("packets/s of %d B", pingSize), format: "%.0f", of: func(r run) float64 { return r.rate }},
		{name: "CPU us a packet", format: "%.2f", of: func(r run) float64 { return r.packet }},
	}
}

// quantile returns the value that the part q of sorted values does not exceed.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
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

func printHead(out io.Writer, o options) {
	var u unix.Utsname
	unix.Uname(&u)
	fmt.Fprintf(out, "machine: %d cores of %s, Linux %s, %s, load %s, %.1f us a page fault\n", runtime.NumCPU(), field("/proc/cpuinfo", "model name"),
		unix.ByteSliceToString(u.Release[:]), runtime.Version(), load(), pageFault())
	fmt.Fprintf(out, "rival:   wireguard-go %s, of the same build\n", version("golang.zx2c4.com/wireguard"))
	fmt.Fprintf(out, "a run:   new processes, %v of warm-up, %d round trips of %d bytes on the idle tunnel, %s (%s) for %v with a round trip each %v, small packets for %v\n",
		warmUp, o.pings, pingSize, o.load(), congestion, o.length, loadedGap, o.length/2)
	fmt.Fprintf(out, "rounds:  %d, each in the reverse of the last one's order; medians [min-max]; a ratio is of two runs of one round; CPU is of both tunnel processes\n\n", o.rounds)
}

// load says what TCP does.
func (o options) load() string {
	if o.both {
		return fmt.Sprintf("TCP x%d in both directions", o.streams)
	}
	return fmt.Sprintf("TCP x%d", o.streams)
}

// printTable prints what was measured; runs are by contestant, then round. The first contestant is ours, the second its
// rival.
func printTable(out io.Writer, all []contestant, runs [][]run) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { fmt.Fprintln(w, strings.Join(cells, "\t")) }
	head := []string{"", all[0].String()}
	for _, c := range all[1:] {
		head = append(head, c.String(), "ratio")
	}
	row(append(head, "budget, same MTU")...)
	for _, q := range quantities() {
		cells := []string{q.name, spread(q.format, values(runs[0], q.of))}
		for _, r := range runs[1:] {
			cells = append(cells, spread(q.format, values(r, q.of)), spread("%.3f", ratios(runs[0], r, q.of)))
		}
		row(append(cells, q.verdict(ratios(runs[0], runs[1], q.of)))...)
	}
	w.Flush()

	fmt.Fprintf(out, "\nratios of %s to %s, by round\n", all[0], all[1])
	for _, q := range quantities() {
		cells := []string{q.name}
		for _, r := range ratios(runs[0], runs[1], q.of) {
			cells = append(cells, fmt.Sprintf("%.2f", r))
		}
		row(cells...)
	}
	w.Flush()
}

// verdict says whether the median of ratios keeps the budget, and in how many rounds that was so: where rounds differ,
// the machine is too noisy to tell.
func (q quantity) verdict(ratios []float64) string {
	if q.budget == 0 {
		return ""
	}
	kept := func(ratio float64) bool {
		if q.atMost {
			return ratio <= q.budget
		}
		return ratio >= q.budget
	}
	sign, word, n := "≥", "over", 0
	if q.atMost {
		sign = "≤"
	}
	verdict := kept(median(slices.Sorted(slices.Values(ratios))))
	if verdict {
		word = "ok"
	}
	for _, r := range ratios {
		if kept(r) == verdict {
			n++
		}
	}
	return fmt.Sprintf("%s %.2f %s, in %d of %d rounds", sign, q.budget, word, n, len(ratios))
}

func values(runs []run, of func(run) float64) (out []float64) {
	for _, r := range runs {
		out = append(out, of(r))
	}
	return out
}

// ratios compares runs of the same round.
func ratios(a, b []run, of func(run) float64) (out []float64) {
	for i := range a {
		out = append(out, of(a[i])/of(b[i]))
	}
	return out
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

func load() string {
	b, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

// pageFault returns the microseconds that the first touch of a page costs here: tunnels that have just been started still
// touch new memory, and some virtual machines take many times what others take for it.
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

// version is that of a module in this program.
func version(module string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == module {
				return m.Version
			}
		}
	}
	return "of an unknown version"
}
