// SPDX-License-Identifier: MIT

//go:build linux

// Dnsbench measures the DNS server (resolver/dnsd) beside BIND, dnsmasq and systemd-resolved, as Debian has them: queries a second,
// the time of one query, and memory, with the same names.
//
// All servers run at a time, each on a loopback address of its own, in one test host (cmd/internal/lab); who is not asked sleeps. dnsperf
// asks for throughput, with 100 queries under way from 8 sockets; for the time of one query a client of our own sends the next one
// when it has the answer, and looks at every answer. They take turns, each round in the reverse of the last one's order, and the
// clients run on the same processors as the servers. BIND has the names in a zone, dnsmasq and resolved in a hosts file.
//
// It needs root. systemd-resolved is not installed, which would change /etc/resolv.conf: its package is downloaded and unpacked. Of
// the machine nothing changes, and all that is started ends with it. A slow machine is no failure.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"mesh.internal/mesh/cmd/internal/lab"
)

// options is what a person may choose.
type options struct {
	Rounds   int
	Names    []int
	For      time.Duration // of one run of dnsperf
	Queries  int           // one after the other, in a round
	Markdown string
	Only     string
}

func main() {
	if len(os.Args) == 4 && os.Args[1] == "serve" {
		n, _ := strconv.Atoi(os.Args[3])
		if err := serve(os.Args[2], n); err != nil {
			slog.Error("our server has ended", "err", err)
			os.Exit(1)
		}
		return
	}
	var o options
	names := flag.String("names", "100,100000", "how many `names`, with commas between")
	flag.IntVar(&o.Rounds, "rounds", 6, "how often each is measured; an even number puts each as often first as last")
	flag.DurationVar(&o.For, "for", 2*time.Second, "how `long` dnsperf asks one server in a round")
	flag.IntVar(&o.Queries, "queries", 5000, "queries one after the other in a round")
	flag.StringVar(&o.Markdown, "markdown", "", "`file` to write the tables to, too")
	flag.StringVar(&o.Only, "only", "", "measure this `server` alone")
	flag.Parse()
	for f := range strings.SplitSeq(*names, ",") {
		n, err := strconv.Atoi(f)
		if err != nil || n < 1 || n > 1_000_000 {
			fmt.Fprintf(os.Stderr, "%q is not a number of names\n", f)
			os.Exit(2)
		}
		o.Names = append(o.Names, n)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	err := bench(ctx, os.Stdout, o)
	stop()
	if err != nil {
		slog.Error("DNS servers were not measured", "err", err)
		os.Exit(1)
	}
}

// result is what was measured of one server in one workload, by round.
type result struct {
	qps, p50, p99 []float64 // queries a second; microseconds
	lost          float64   // queries without an answer
}

// workload is a kind of question.
type workload struct {
	title string
	rcode byte
	name  func(i int) string // of n names
}

var workloads = []workload{
	{"Addresses of names that there are", 0, hostName},
	{"Names that there are not", 3, func(i int) string { return "nobody" + strconv.Itoa(i) + "." + zone }},
}

// bench measures everything and writes it down.
func bench(ctx context.Context, out io.Writer, o options) error {
	if err := lab.Problem(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "dns-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p := newPage(out, o)
	for _, n := range o.Names {
		if err := measure(ctx, p, o, filepath.Join(dir, strconv.Itoa(n)), n); err != nil {
			return err
		}
	}
	if o.Markdown == "" {
		return nil
	}
	return os.WriteFile(o.Markdown, []byte(p.md.String()), 0o644)
}

// measure measures all servers with n names.
func measure(ctx context.Context, p *page, o options, dir string, n int) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	l := lab.New(slog.New(slog.DiscardHandler))
	defer func() { err = errors.Join(err, l.Close()) }()
	h, err := l.Host("dns")
	if err != nil {
		return err
	}
	running, missing := start(ctx, h, dir, n, o.Only)
	if len(running) == 0 {
		return fmt.Errorf("no server runs: %v", missing)
	}
	order := rand.New(rand.NewPCG(1, uint64(n))).Perm(n)
	results := make([]map[string]*result, len(workloads))
	for i, w := range workloads {
		var b strings.Builder
		for _, k := range order {
			fmt.Fprintf(&b, "%s A\n", w.name(k))
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("queries", i)), []byte(b.String()), 0o644); err != nil {
			return err
		}
		results[i] = map[string]*result{}
	}
	for round := range o.Rounds {
		for i, w := range workloads {
			turn := slices.Clone(running)
			if round%2 == 1 {
				slices.Reverse(turn)
			}
			for _, s := range turn {
				if w.rcode != 0 && s.name == resolved {
					continue // it says SERVFAIL: it has nobody to ask
				}
				r := results[i][s.name]
				if r == nil {
					r = &result{}
					results[i][s.name] = r
				}
				if err := r.throughput(ctx, h, s, filepath.Join(dir, fmt.Sprint("queries", i)), o.For); err != nil {
					return err
				}
				if err := r.latency(h, s, w, order, o.Queries); err != nil {
					return fmt.Errorf("%s, %s: %w", s.name, w.title, err)
				}
			}
		}
		fmt.Fprintf(p.out, "%d names, round %d of %d\n", n, round+1, o.Rounds)
	}
	for _, s := range running {
		s.rss = memory(s.process)
	}
	p.report(n, running, results, missing)
	return nil
}
