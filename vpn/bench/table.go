// SPDX-License-Identifier: MIT

//go:build linux

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

// results are what was measured.
type results struct {
	options options
	runs    map[contestant][]run // by round
	gaps    map[contestant][]time.Duration
}

// quantity is something measured in every run.
type quantity struct {
	name   string
	format string // of a value
	of     func(run) float64
	alone  bool // is not compared
}

// topic is quantities that stand in one table.
type topic struct {
	title, note string
	quantities  []quantity
}

func (o options) topics() []topic {
	idle := func(q float64) func(run) float64 { return func(r run) float64 { return quantile(r.idle, q) } }
	bulk := topic{title: "Bulk", note: "CPU of all tunnel processes; of the one between alone, where there is one."}
	trips := topic{title: "Round trips", note: fmt.Sprintf("Of %d bytes of UDP, on the idle tunnel and while TCP sends.", pingSize), quantities: []quantity{
		{name: "idle p50 us", format: "%.0f", of: idle(0.5)}, {name: "idle p99 us", format: "%.0f", of: idle(0.99)}}}
	for i, n := range o.streams {
		loaded := func(q float64) func(run) float64 {
			return func(r run) float64 { return quantile(r.loads[i].trips, q) / 1000 }
		}
		bulk.quantities = append(bulk.quantities,
			quantity{name: tcp(n), format: "%.0f", of: func(r run) float64 { return r.loads[i].mbits }},
			quantity{name: fmt.Sprintf("x%d CPU s/GiB", n), format: "%.2f", of: func(r run) float64 { return r.loads[i].cpu }})
		if o.full {
			bulk.quantities = append(bulk.quantities,
				quantity{name: fmt.Sprintf("x%d of it between", n), format: "%.2f", of: func(r run) float64 { return r.loads[i].middle }, alone: true})
		}
		trips.quantities = append(trips.quantities,
			quantity{name: loadedP50(n), format: "%.2f", of: loaded(0.5)},
			quantity{name: fmt.Sprintf("x%d loaded p99 ms", n), format: "%.2f", of: loaded(0.99)})
	}
	return []topic{bulk, trips, {title: "Small packets, and memory", note: "The most that one of the tunnel processes had resident.", quantities: []quantity{
		{name: fmt.Sprintf("packets/s of %d B", pingSize), format: "%.0f", of: func(r run) float64 { return r.rate }},
		{name: "CPU us a packet", format: "%.2f", of: func(r run) float64 { return r.packet }},
		{name: "peak RSS MiB", format: "%.0f", of: func(r run) float64 { return r.memory }}}}}
}

func tcp(streams int) string       { return fmt.Sprintf("TCP x%d Mbit/s", streams) }
func loadedP50(streams int) string { return fmt.Sprintf("x%d loaded p50 ms", streams) }

// budget is what the project asked of itself: a bound of the ratio between two contestants.
type budget struct {
	quantity string
	of, to   contestant
	bound    float64
	atMost   bool // else at least
}

// gapBudget is for a cut.
const gapBudget = time.Second

func (o options) budgets() (all []budget) {
	for _, n := range o.streams {
		all = append(all, budget{tcp(n), ours, yardstick, 0.97, false})
	}
	for _, n := range o.streams {
		all = append(all, budget{tcp(n), contestant{relayed, kindMesh, ourMTU}, yardstick, 0.75, false})
	}
	for _, n := range o.streams {
		all = append(all, budget{loadedP50(n), ours, yardstick, 0.3, true})
	}
	first := tcp(o.streams[0])
	return append(all, budget{first, ours, contestant{direct, kindTinc, ourMTU}, 2.5, false},
		budget{first, ours, contestant{direct, kindNebula, ourMTU}, 2, false})
}

// quantile returns the value that the part q of sorted values does not exceed.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// spread is "median [min-max]" of values in any order; "-" of none.
func spread(format string, values []float64) string {
	if len(values) == 0 || slices.Max(values) == 0 {
		return "-"
	}
	v := slices.Sorted(slices.Values(values))
	return fmt.Sprintf(format+" ["+format+"-"+format+"]", median(v), v[0], v[len(v)-1])
}

func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// head is what there is to know about the tables.
func (r *results) head() (lines [][2]string) {
	var u unix.Utsname
	unix.Uname(&u)
	o := r.options
	var versions []string
	for _, c := range o.contestants() {
		v := ""
		switch c.kind {
		case kindPlain:
			v = fmt.Sprintf("wireguard-go %s, of the same build", version("golang.zx2c4.com/wireguard"))
		case kindTinc, kindNebula:
			v = fmt.Sprintf("%s (%s)", c.kind, rivalVersion(c.kind))
		}
		if v != "" && !slices.Contains(versions, v) {
			versions = append(versions, v)
		}
	}
	return [][2]string{
		{"machine", fmt.Sprintf("%d cores of %s, Linux %s, %s, load %s, %.1f us a page fault", runtime.NumCPU(), field("/proc/cpuinfo", "model name"),
			unix.ByteSliceToString(u.Release[:]), runtime.Version(), loadAverage(), pageFault())},
		{"rivals", strings.Join(versions, ", ")},
		{"a run", fmt.Sprintf("new processes, %v of warm-up, %d round trips of %d bytes on the idle tunnel, %s (%s) for %v with a round trip each %v, small packets for %v",
			warmUp, o.pings, pingSize, o.load(), congestion, o.length, loadedGap, o.length/2)},
		{"rounds", fmt.Sprintf("%d, each in the reverse of the last one's order; medians [min-max]; a ratio is of two runs of one round; CPU is of all tunnel processes", o.rounds)},
	}
}

func (r *results) printHead(out io.Writer) {
	for _, l := range r.head() {
		fmt.Fprintf(out, "%-9s%s\n", l[0]+":", l[1])
	}
	fmt.Fprintln(out)
}

// load says what TCP does.
func (o options) load() string {
	var s []string
	for _, n := range o.streams {
		s = append(s, fmt.Sprintf("TCP x%d", n))
	}
	if o.both {
		s = append(s, "in both directions")
	}
	return strings.Join(s, " ")
}

// table is rows of cells.
type table struct {
	title, note string
	head        []string
	rows        [][]string
}

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) text(out io.Writer) {
	fmt.Fprintf(out, "%s\n", t.title)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, cells := range append([][]string{t.head}, t.rows...) {
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	w.Flush()
	fmt.Fprintln(out)
}

func (t *table) markdown(out io.Writer) {
	fmt.Fprintf(out, "\n## %s\n\n", t.title)
	if t.note != "" {
		fmt.Fprintf(out, "%s\n\n", t.note)
	}
	fmt.Fprintf(out, "| %s |\n|%s\n", strings.Join(t.head, " | "), strings.Repeat("---|", len(t.head)))
	for _, cells := range t.rows {
		fmt.Fprintf(out, "| %s |\n", strings.Join(cells, " | "))
	}
}

// print prints what was measured.
func (r *results) print(out io.Writer, all []contestant) error {
	if !r.options.full {
		r.brief(all).text(out)
		return nil
	}
	var tables []*table
	for _, t := range r.options.topics() {
		tables = append(tables, r.topic(t, all))
	}
	tables = append(tables, r.cuts(all), r.verdicts())
	tables = slices.DeleteFunc(tables, func(t *table) bool { return len(t.rows) == 0 })
	for _, t := range tables {
		t.text(out)
	}
	if r.options.markdown == "" {
		return nil
	}
	var page strings.Builder
	fmt.Fprintf(&page, "# Tunnels, measured\n\nWritten by `make bench-net`; do not edit. What is compared, and how, is in vpn/bench; the budgets are those the project set itself.\n\n")
	for _, l := range r.head() {
		fmt.Fprintf(&page, "- %s%s: %s.\n", strings.ToUpper(l[0][:1]), l[0][1:], l[1])
	}
	fmt.Fprintf(&page, "- A ratio without a name beside it is to %s, direct.\n", yardstick.title())
	for _, t := range tables {
		t.markdown(&page)
	}
	if err := os.WriteFile(r.options.markdown, []byte(page.String()), 0o644); err != nil {
		return fmt.Errorf("writing the tables: %w", err)
	}
	return nil
}

// brief has the first contestant beside each other one.
func (r *results) brief(all []contestant) *table {
	t := &table{head: []string{"", all[0].title()}}
	for _, c := range all[1:] {
		t.head = append(t.head, c.title(), "ratio")
	}
	t.head = append(t.head, "budget, same MTU")
	for _, topic := range r.options.topics() {
		for _, q := range topic.quantities {
			cells := []string{q.name, spread(q.format, values(r.runs[all[0]], q.of))}
			for _, c := range all[1:] {
				cells = append(cells, spread(q.format, values(r.runs[c], q.of)), spread("%.3f", ratios(r.runs[all[0]], r.runs[c], q.of)))
			}
			verdict := ""
			for _, b := range r.options.budgets() {
				if rs := ratios(r.runs[b.of], r.runs[b.to], q.of); b.quantity == q.name && len(rs) > 0 {
					bound, word, rounds := b.verdict(rs)
					verdict = fmt.Sprintf("%s %s, in %s rounds", bound, word, rounds)
				}
			}
			t.row(append(cells, verdict)...)
		}
	}
	return t
}

// topic has everybody beside the yardstick.
func (r *results) topic(topic topic, all []contestant) *table {
	t := &table{title: topic.title, note: topic.note, head: []string{""}}
	for _, q := range topic.quantities {
		if t.head = append(t.head, q.name); !q.alone {
			t.head = append(t.head, "ratio")
		}
	}
	for _, c := range all {
		runs := r.runs[c]
		if len(runs) == 0 {
			continue
		}
		cells := []string{c.title()}
		for _, q := range topic.quantities {
			if cells = append(cells, spread(q.format, values(runs, q.of))); !q.alone {
				cells = append(cells, spread("%.2f", ratios(runs, r.runs[yardstick], q.of)))
			}
		}
		t.row(cells...)
	}
	return t
}

// cuts has the gaps.
func (r *results) cuts(all []contestant) *table {
	t := &table{title: "Round a cut", head: []string{"", "seconds until packets flow again", "cuts"},
		note: fmt.Sprintf("Three hosts at a switch, each connected to each, default timers; a packet every %v. From the cut between two of them until what was sent after it comes back through the third; %.0f s are waited for that. tinc asks once a minute whether a node is there, so the cuts come at different times after it began.", beatGap, gapLimit.Seconds())}
	for _, c := range all {
		if gaps := r.gaps[c]; len(gaps) > 0 {
			t.row(c.title(), strings.ReplaceAll(spread("%.2f", seconds(gaps)), fmt.Sprintf("%.2f", gapLimit.Seconds()), "more"), fmt.Sprint(len(gaps)))
		}
	}
	return t
}

func seconds(ds []time.Duration) (s []float64) {
	for _, d := range ds {
		s = append(s, d.Seconds())
	}
	return s
}

// verdicts has the budgets.
func (r *results) verdicts() *table {
	t := &table{title: "Budgets", head: []string{"what", "measured", "budget", "", "rounds"},
		note: "The verdict is on the median, and the last column says how many rounds agree with it: where not all do, the machine is too noisy to tell."}
	for _, b := range r.options.budgets() {
		for _, topic := range r.options.topics() {
			for _, q := range topic.quantities {
				if rs := ratios(r.runs[b.of], r.runs[b.to], q.of); b.quantity == q.name && len(rs) > 0 {
					bound, word, rounds := b.verdict(rs)
					t.row(fmt.Sprintf("%s, %s to %s", q.name, b.of, b.to), spread("%.2f", rs), bound, word, rounds)
				}
			}
		}
	}
	if gaps := r.gaps[contestant{cut, kindMesh, ourMTU}]; len(gaps) > 0 {
		b := budget{bound: gapBudget.Seconds(), atMost: true}
		bound, word, rounds := b.verdict(seconds(gaps))
		t.row("seconds round a cut, mesh", spread("%.2f", seconds(gaps)), bound, word, rounds)
	}
	return t
}

// verdict says whether the median of ratios keeps the budget, and in how many rounds that was so.
func (b budget) verdict(ratios []float64) (bound, word, rounds string) {
	kept := func(ratio float64) bool {
		if b.atMost {
			return ratio <= b.bound
		}
		return ratio >= b.bound
	}
	sign, word, n := "≥", "over", 0
	if b.atMost {
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
	return fmt.Sprintf("%s %.2f", sign, b.bound), word, fmt.Sprintf("%d of %d", n, len(ratios))
}

func values(runs []run, of func(run) float64) (out []float64) {
	for _, r := range runs {
		out = append(out, of(r))
	}
	return out
}

// ratios compares runs of the same round; of what is nothing in one of them there are none.
func ratios(a, b []run, of func(run) float64) (out []float64) {
	for i := range min(len(a), len(b)) {
		if x, y := of(a[i]), of(b[i]); x > 0 && y > 0 {
			out = append(out, x/y)
		}
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

func loadAverage() string {
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
