// SPDX-License-Identifier: MIT

//go:build linux

// Hazard is the program behind make test-nss: it runs everything that is known to break an NSS module in Go against three
// modules and prints what came of it as a table.
//
//   - naive: Go as one writes it at first (testdata/naive); it must break, or the test says nothing
//   - twin: C only, with the same file reads, written from docs/snapshot.md alone (libnss_mesh/reader.c); where it breaks
//     glibc is to blame
//   - ours: the libnss_mesh.so.2 that build.sh makes, as it is shipped
//
// Every test is a process of its own, with a time limit, in namespaces of its own inside a host of package lab, so nothing
// of the machine is changed. Debian packages that the machine lacks are unpacked and configured in that host only, where
// no service is started. The exit status is 1 if ours fails where the twin passes, if the twin fails, or if a hazard that
// must bite the naive module does not. What cannot be tested is in the table with the reason.
//
// It starts one goroutine for each processor and one more, which run tests; all have ended when it returns.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"mesh.internal/mesh/cmd/internal/lab"
)

const (
	suiteLimit = time.Hour
	testLimit  = 5 * time.Minute  // of the modules that must pass; on an idle machine they need seconds
	naiveLimit = 10 * time.Second // of the module whose tests end by hanging, unless a test says otherwise
)

func main() {
	out := flag.String("o", "", "write the table to `FILE`")
	only := flag.String("run", "", "run only the tests whose name matches `REGEXP`")
	damages := flag.Int("damages", 200_000, "damage snapshots `N` times and compare what ours and the twin answer")
	seed := flag.Int64("seed", 1, "of the damages")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	ctx, cancel := context.WithTimeout(ctx, suiteLimit)
	err := run(ctx, *out, *only, *damages, *seed)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "hazard:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out, only string, damages int, seed int64) (err error) {
	begin := time.Now()
	if err := lab.Problem(); err != nil {
		return err
	}
	match, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "mesh-hazard")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	l := lab.New(slog.New(slog.NewTextHandler(io.Discard, nil)))
	defer func() { err = errors.Join(err, l.Close()) }()
	h, err := l.Host("bkero")
	if err != nil {
		return err
	}
	s := &suite{ctx: ctx, host: h, work: work, missing: map[string]string{}}
	if err := s.prepare(); err != nil {
		return err
	}
	fmt.Printf("three modules and the host are ready after %d s\n", int(time.Since(begin).Seconds()))

	var todo []*hazard
	for i := range hazards {
		if match.MatchString(hazards[i].name) {
			todo = append(todo, &hazards[i])
		}
	}
	s.all(todo)
	var problems []string
	differ, err := s.differ(damages, seed)
	if err != nil {
		problems = append(problems, err.Error())
	}
	fmt.Println(differ)
	for _, h := range todo {
		problems = append(problems, h.problem()...)
	}
	if out != "" && only == "" {
		if err := os.WriteFile(out, []byte(s.document(todo, differ)), 0o644); err != nil {
			return err
		}
	}
	fmt.Printf("%d hazards, %d problems, %d s\n", len(todo), len(problems), int(time.Since(begin).Seconds()))
	if len(problems) > 0 {
		return errors.New(strings.Join(problems, "\n\t"))
	}
	return ctx.Err()
}

// all runs the tests, several at a time, and prints each as soon as it and those before it are done.
func (s *suite) all(todo []*hazard) {
	type job struct {
		h *hazard
		m int
	}
	jobs := make(chan job)
	var wg sync.WaitGroup
	var mu sync.Mutex // guards printed and the hazards' results
	printed := 0
	for range runtime.NumCPU() + 1 { // a test that hangs needs no processor
		wg.Go(func() {
			for j := range jobs {
				begin := time.Now()
				r := s.test(j.h, j.m)
				r.took = time.Since(begin)
				mu.Lock()
				j.h.result[j.m] = &r
				for ; printed < len(todo) && todo[printed].done(); printed++ {
					fmt.Println(todo[printed])
				}
				mu.Unlock()
			}
		})
	}
	for _, h := range todo {
		for m := range modules {
			jobs <- job{h, m}
		}
	}
	close(jobs)
	wg.Wait()
}

// modules are the three, in the order of the table's columns.
var modules = [...]string{"naive", "twin", "ours"}

const (
	naive = iota
	twin
	ours
)

// result is what came of one test with one module.
type result struct {
	good, skipped bool
	text          string
	took          time.Duration
}

func (h *hazard) done() bool {
	for _, r := range h.result {
		if r == nil {
			return false
		}
	}
	return true
}

// problem returns what is wrong with the results.
func (h *hazard) problem() (found []string) {
	n, t, o := h.result[naive], h.result[twin], h.result[ours]
	if !o.good && !o.skipped {
		found = append(found, fmt.Sprintf("%s: our module: %s", h.name, o.text))
	}
	if !t.good && !t.skipped {
		found = append(found, fmt.Sprintf("%s: the C module, so the test or glibc: %s", h.name, t.text))
	}
	if n.good && !n.skipped && h.survives == "" {
		found = append(found, fmt.Sprintf("%s: the naive module passes (%s), so the test does not bite", h.name, n.text))
	}
	return found
}

// String is a row of the table.
func (h *hazard) String() string {
	cells := []string{h.name, h.what}
	for m, r := range h.result {
		text := strings.Join(strings.Fields(strings.ReplaceAll(r.text, "|", "/")), " ")
		switch {
		case r.skipped:
			text = "skipped: " + text
		case !r.good && !strings.Contains(text, "**"):
			text = "**" + text + "**"
		case m == naive && r.good && h.survives != "":
			text += " (" + h.survives + ")"
		}
		cells = append(cells, text)
	}
	return "| " + strings.Join(cells, " | ") + " |"
}

// test runs one test with one module.
func (s *suite) test(h *hazard, m int) result {
	for _, n := range h.needs {
		if why := s.missing[n]; why != "" {
			return result{skipped: true, text: why}
		}
	}
	limit := testLimit
	if m == naive {
		limit = naiveLimit
		if h.limit > 0 {
			limit = h.limit
		}
	}
	stdout, stderr, err := s.in(limit, h, modules[m])
	last := lastLine(stdout)
	var exit *exec.ExitError
	switch {
	case s.ctx.Err() != nil:
		return result{text: "ended: " + s.ctx.Err().Error()}
	case errors.Is(err, context.DeadlineExceeded):
		return result{text: "**hangs**"}
	case errors.As(err, &exit):
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return result{text: "**" + unix.SignalName(status.Signal()) + "**" + reason(stderr)}
		}
		switch code := exit.ExitCode(); {
		case code == 77:
			return result{skipped: true, text: last}
		case strings.Contains(last, "**"):
			return result{text: last}
		case code > 128 && code < 165:
			return result{text: "**" + unix.SignalName(unix.Signal(code-128)) + "**" + reason(stderr)}
		case reason(stderr) != "":
			return result{text: fmt.Sprintf("**exit %d**%s", code, reason(stderr))}
		default:
			return result{text: strings.TrimSuffix(fmt.Sprintf("exit %d: %s", code, lastLine(stdout+"\n"+stderr)), ": ")}
		}
	case err != nil:
		return result{text: err.Error()}
	}
	if h.check != nil {
		if problem := h.check(stdout, stderr); problem != "" {
			return result{text: problem}
		}
	}
	if h.says != "" {
		last = h.says
	}
	if last == "" || len(last) > 60 {
		last = "ok"
	}
	return result{good: true, text: last}
}

var why = regexp.MustCompile(`(?m)^(?:.*(?:fatal error: |runtime: |runtime/cgo: |panic: |SIG[A-Z]+: ).*|.*(?:pthread_create failed|possibly lost).*)$`)

// reason finds in a program's standard error what a Go runtime says before it ends the program, or valgrind.
func reason(stderr string) string {
	if line := strings.TrimLeft(why.FindString(stderr), "=0123456789 "); line != "" {
		line, _, _ = strings.Cut(line, ";")
		return " " + line[:min(len(line), 70)]
	}
	return ""
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}
