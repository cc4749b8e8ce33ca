// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"mesh.internal/mesh/cmd/internal/lab"
)

var (
	perSecond = regexp.MustCompile(`Queries per second:\s+([0-9.]+)`)
	lostPart  = regexp.MustCompile(`Queries lost:\s+[0-9]+ \(([0-9.]+)%\)`)
)

// throughput has dnsperf ask as fast as it gets answers.
func (r *result) throughput(ctx context.Context, h *lab.Host, s *server, queries string, d time.Duration) error {
	out, err := h.Run(ctx, "dnsperf", "-s", s.addr, "-d", queries, "-l", strconv.FormatFloat(d.Seconds(), 'f', -1, 64), "-c", "8", "-T", "2", "-q", "100")
	if err != nil {
		return err
	}
	q, l := perSecond.FindStringSubmatch(out), lostPart.FindStringSubmatch(out)
	if q == nil || l == nil {
		return fmt.Errorf("dnsperf said %q", out)
	}
	qps, _ := strconv.ParseFloat(q[1], 64)
	lost, _ := strconv.ParseFloat(l[1], 64)
	r.qps = append(r.qps, qps)
	r.lost = max(r.lost, lost)
	return nil
}

// latency asks one after the other.
func (r *result) latency(h *lab.Host, s *server, w workload, order []int, n int) error {
	return h.Do(func() error {
		c, err := net.Dial("udp", s.addr+":53")
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Minute))
		took := make([]float64, n)
		for i := range n {
			q := pack(w.name(order[i%len(order)]), uint16(i))
			begin := time.Now()
			if _, err := ask(c, q, w.rcode); err != nil {
				return err
			}
			took[i] = float64(time.Since(begin).Nanoseconds()) / 1e3
		}
		slices.Sort(took)
		r.p50 = append(r.p50, took[n/2])
		r.p99 = append(r.p99, took[n*99/100])
		return nil
	})
}

// pack is a query for an address.
func pack(name string, id uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, id)
	b = append(b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0)
	for l := range strings.SplitSeq(name, ".") {
		b = append(append(b, byte(len(l))), l...)
	}
	return append(b, 0, 0, 1, 0, 1)
}

// ask sends a query and takes the answer, which must have this code, and a record where it is 0.
func ask(c net.Conn, query []byte, rcode byte) ([]byte, error) {
	if _, err := c.Write(query); err != nil {
		return nil, err
	}
	var buf [1500]byte
	for {
		n, err := c.Read(buf[:])
		if err != nil {
			return nil, err
		}
		if n < 12 || buf[0] != query[0] || buf[1] != query[1] {
			continue
		}
		if buf[3]&15 != rcode || rcode == 0 && binary.BigEndian.Uint16(buf[6:]) == 0 {
			return nil, fmt.Errorf("a wrong answer: code %d, %d records", buf[3]&15, binary.BigEndian.Uint16(buf[6:]))
		}
		return buf[:n], nil
	}
}

// memory is the resident memory of a process in MiB.
func memory(p *lab.Process) float64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.MachinePID()))
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			kb, _ := strconv.ParseFloat(f[1], 64)
			return kb / 1024
		}
	}
	return 0
}

// page is where results go: to a person, and to a Markdown document.
type page struct {
	out io.Writer
	md  strings.Builder
}

func newPage(out io.Writer, o options) *page {
	p := &page{out: out}
	var u unix.Utsname
	unix.Uname(&u)
	load, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(load), " ")
	perf, _ := exec.Command("dpkg-query", "-W", "-f", "${Version}", "dnsperf").Output()
	model := "an unnamed kind"
	cpu, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(cpu)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			model = strings.TrimSpace(v)
			break
		}
	}
	fmt.Fprintf(&p.md, "# DNS servers, measured\n\nWritten by `make bench-dns`; do not edit. What is compared, and how, is in cmd/internal/dnsbench.\n\n"+
		"- Machine: %d cores of %s, Linux %s, %s, load %s; clients and servers share it.\n"+
		"- Rounds: %d, each in the reverse of the last one's order; medians [min-max] of rounds. A ratio is the median of the rounds' own ratios, ours to theirs.\n"+
		"- Queries a second: dnsperf %s, 2 threads, 8 sockets, 100 queries under way, for %v a round. One query: %d a round, one after the other.\n",
		runtime.NumCPU(), model, unix.ByteSliceToString(u.Release[:]), runtime.Version(), first, o.Rounds, perf, o.For, o.Queries)
	return p
}

// report writes the tables of one number of names.
func (p *page) report(n int, running []*server, results []map[string]*result, missing map[string]string) {
	for i, w := range workloads {
		rows := [][]string{{"server", "queries/s", "ours is, times", "one query, p50 us", "p99 us", "not answered"}}
		ours := results[i]["ours"]
		for _, s := range running {
			r := results[i][s.name]
			if r == nil {
				continue
			}
			ratio := ""
			if ours != nil && r != ours {
				ratio = spread("%.2f", ratios(ours.qps, r.qps))
			}
			rows = append(rows, []string{strings.TrimSpace(s.name + " " + s.version), spread("%.0f", r.qps), ratio, spread("%.1f", r.p50), spread("%.1f", r.p99), fmt.Sprintf("%.2f %%", r.lost)})
		}
		p.table(fmt.Sprintf("%s, %d", w.title, n), rows)
	}
	rows := [][]string{{"server", "MiB"}}
	for _, s := range running {
		rows = append(rows, []string{strings.TrimSpace(s.name + " " + s.version), fmt.Sprintf("%.0f", s.rss)})
	}
	p.table(fmt.Sprintf("Memory after that, %d names (resident)", n), rows)
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		reason := strings.Join(strings.Fields(missing[name]), " ")
		fmt.Fprintf(p.out, "not measured: %s: %s\n", name, reason)
		fmt.Fprintf(&p.md, "\nNot measured: %s: %s\n", name, reason[:min(len(reason), 300)])
	}
}

func (p *page) table(title string, rows [][]string) {
	w := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(p.out, "\n%s\n", title)
	fmt.Fprintf(&p.md, "\n## %s\n\n", title)
	for i, r := range rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
		fmt.Fprintf(&p.md, "| %s |\n", strings.Join(r, " | "))
		if i == 0 {
			fmt.Fprintf(&p.md, "|%s\n", strings.Repeat("---|", len(r)))
		}
	}
	w.Flush()
}

// spread is "median [min-max]" of values in any order.
func spread(format string, values []float64) string {
	if len(values) == 0 {
		return "-"
	}
	v := slices.Sorted(slices.Values(values))
	return fmt.Sprintf(format+" ["+format+"-"+format+"]", (v[(len(v)-1)/2]+v[len(v)/2])/2, v[0], v[len(v)-1])
}

func ratios(a, b []float64) (out []float64) {
	for i := range min(len(a), len(b)) {
		out = append(out, a[i]/b[i])
	}
	return out
}
