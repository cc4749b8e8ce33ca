// SPDX-License-Identifier: MIT

// Netlab is the program behind make test-net: it runs the real meshd on hosts made of namespaces (package lab), behind
// every kind of NAT, and breaks what can break between them, while kernels ping and send TCP through the tunnels. It shows
// what came of each trial as a row of a table, and what is not as it must be.
//
// It takes meshd from the folder it is in. Nodes get their certificates from this program, as invitations would have given
// them, and know what they would know after joining at the public node. Every trial is a mesh of its own in a lab of its
// own; nothing of the machine is changed and nothing is left. The exit status is 1 if anything is not as it must be.
//
// It starts one goroutine for each trial that runs, and those that ping, send and watch in it; all end with the trial.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"mesh.internal/mesh/cmd/internal/lab"
)

// Limits of the whole and of one trial; on an idle machine they need a fraction.
const (
	suiteLimit = time.Hour
	trialLimit = 4 * time.Minute
)

// suite is what all trials share.
type suite struct {
	program string // meshd
	logs    string // folder for what daemons said; empty: nowhere
	seed    uint64
	level   string // of the daemons' logs
}

func main() {
	out := flag.String("o", "", "write the tables to `FILE`")
	only := flag.String("run", "", "run only the trials whose name matches `REGEXP`")
	parallel := flag.Int("p", 3, "run `N` trials at a time")
	s := suite{}
	flag.StringVar(&s.logs, "logs", "", "keep what the daemons said in `FOLDER`")
	flag.StringVar(&s.level, "level", "info", "of what they say")
	flag.Uint64Var(&s.seed, "seed", uint64(time.Now().UnixNano())&0xffffff, "of what is cut at random")
	list := flag.Bool("list", false, "print the names of the trials and end")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	ctx, cancel := context.WithTimeout(ctx, suiteLimit)
	err := s.run(ctx, *out, *only, *parallel, *list)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "netlab:", err)
		os.Exit(1)
	}
}

func (s *suite) run(ctx context.Context, out, only string, parallel int, list bool) error {
	begin := time.Now()
	match, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	var todo []*trial
	groups := s.groups()
	for _, g := range groups {
		for _, t := range g.trials {
			if t.name = g.name + "/" + t.name; match.MatchString(t.name) {
				t.ctx, t.suite, t.done = ctx, s, make(chan struct{})
				todo = append(todo, t)
			}
		}
	}
	if list {
		for _, t := range todo {
			fmt.Println(t.name)
		}
		return nil
	}
	if err := lab.Problem(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	s.program = filepath.Join(filepath.Dir(self), "meshd")
	if _, err := os.Stat(s.program); err != nil {
		return fmt.Errorf("%w: run make build", err)
	}
	if s.logs != "" {
		if err := os.MkdirAll(s.logs, 0o755); err != nil {
			return err
		}
	}

	slots := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	wg.Go(func() {
		for _, t := range todo {
			slots <- struct{}{}
			wg.Go(func() {
				t.run()
				close(t.done)
				<-slots
			})
		}
	})
	var problems []string
	for _, t := range todo {
		<-t.done
		fmt.Printf("%-44s %4.0f s  | %s |\n", t.name, t.took.Seconds(), strings.Join(t.row, " | "))
		for _, p := range t.problems {
			fmt.Printf("    %s\n", strings.ReplaceAll(p, "\n", "\n    "))
			first, _, _ := strings.Cut(p, "\n")
			problems = append(problems, t.name+": "+first)
		}
	}
	wg.Wait()
	if out != "" && only == "" {
		if err := os.WriteFile(out, document(groups), 0o644); err != nil {
			return err
		}
	}
	fmt.Printf("%d trials, %d problems, %d s\n", len(todo), len(problems), int(time.Since(begin).Seconds()))
	if len(problems) > 0 {
		return errors.New(strings.Join(problems, "\n\t"))
	}
	return ctx.Err()
}

// group is a table.
type group struct {
	name   string
	title  string
	text   string
	head   []string
	trials []*trial
}

// trial is one row: a mesh, and what is done to it.
type trial struct {
	name string
	do   func(t *trial)
	row  []string // what it was; do puts in the rest

	suite    *suite
	ctx      context.Context
	took     time.Duration
	problems []string
	done     chan struct{}
}

// stop is the panic by which a trial ends early.
type stop struct{ err error }

func (t *trial) run() {
	begin := time.Now()
	var cancel context.CancelFunc
	t.ctx, cancel = context.WithTimeout(t.ctx, trialLimit)
	defer cancel()
	defer func() {
		t.took = time.Since(begin)
		if r := recover(); r != nil {
			s, ok := r.(stop)
			if !ok {
				panic(r)
			}
			t.problem("%v", s.err)
		}
	}()
	t.do(t)
}

// must ends the trial where it cannot go on.
func (t *trial) must(err error) {
	if err != nil {
		panic(stop{err})
	}
}

// problem notes what is not as it must be.
func (t *trial) problem(format string, args ...any) {
	t.problems = append(t.problems, fmt.Sprintf(format, args...))
}

// tell adds cells to the row.
func (t *trial) tell(format string, args ...any) { t.row = append(t.row, fmt.Sprintf(format, args...)) }

// limit notes a time that must not be exceeded, and tells it.
func (t *trial) limit(what string, took, limit time.Duration) {
	text := seconds(took)
	if took > limit {
		t.problem("%s: %s, at most %s", what, text, seconds(limit))
		text = "**" + text + "**"
	}
	t.tell("%s", text)
}

// until polls until f holds, and reports whether it did within the limit.
func (t *trial) until(limit time.Duration, f func() bool) bool {
	ctx, cancel := context.WithTimeout(t.ctx, limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if f() {
			return true
		}
		select {
		case <-ctx.Done():
			t.must(t.ctx.Err())
			return false
		case <-tick.C:
		}
	}
}

// wait lets time pass.
func (t *trial) wait(d time.Duration) { t.until(d, func() bool { return false }) }

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", max(d, 0).Seconds()) }

// document is the tables as a page.
func document(groups []*group) []byte {
	var b bytes.Buffer
	var u unix.Utsname
	unix.Uname(&u)
	fmt.Fprintf(&b, "# Nodes in namespaces\n\nGenerated by `sudo make test-net` (cmd/internal/netlab): do not edit. %s, Linux %s, %s, %d processors.\n\n",
		runtime.Version(), unix.ByteSliceToString(u.Release[:]), runtime.GOARCH, runtime.NumCPU())
	fmt.Fprint(&b, "Real meshd, real kernels: each row is a mesh of its own. While it runs, one node pings another every 20 ms through the\n"+
		"tunnel. What is bold is not as it must be.\n")
	for _, g := range groups {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| %s |\n|%s\n", g.title, g.text, strings.Join(g.head, " | "), strings.Repeat("---|", len(g.head)))
		for _, t := range g.trials {
			row := t.row
			if len(row) < len(g.head) { // it ended early
				row = append(row, "**"+strings.ReplaceAll(t.problems[0], "\n", " ")+"**")
			}
			fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
		}
	}
	return b.Bytes()
}

func discard() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// groups are all trials.
func (s *suite) groups() []*group {
	return []*group{natGroup(), moreNATGroup(), breakGroup(), sizeGroup(), churnGroup(s.seed)}
}
