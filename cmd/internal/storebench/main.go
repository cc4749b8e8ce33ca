// SPDX-License-Identifier: MIT

//go:build linux

// Storebench measures the book of names: how long after a change on one node a program on another sees it through
// getaddrinfo, and what names cost in time, memory, messages and writes.
//
//	node a ── commit ──▶ etcd, 1 or 3 members ── watch ──▶ node b ── hosts.db ──▶ getaddrinfo
//
// All is as on a mesh: members are etcd with meshd-etcd's settings and mutual TLS, each in a process of its own; a node is
// a process with a resolver and meshd's writer of snapshots, which go to a tmpfs as on /run; who asks is a C program with libnss_mesh.so.2. What is not
// there is the network between them: all are on the loopback interface of a network namespace. a writes no snapshot, for
// on a mesh that is another machine's work. Changes come one by one, each after the last one's work is done.
//
// Runs of all sizes take turns, each round in the reverse of the last one's order; for each run processes and files are
// new. It needs root, gcc and what builds the module. Of the machine it changes nothing, and all it starts ends with it. A
// slow machine is no failure: it measures and prints.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// options is what a person may choose.
type options struct {
	Rounds   int
	Largest  int // rounds of sizes of 100,000 names and more
	Sizes    []int
	Members  []int
	Changes  int           // in a run
	Idle     time.Duration // of the measure of what is said without a change
	Markdown string        // file for the tables
	Dir      string        // of this run, removed after it
}

func main() {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		if err := play(os.Args[1]); err != nil {
			slog.Error(os.Args[1], "err", err)
			os.Exit(1)
		}
		return
	}
	var o options
	sizes := flag.String("sizes", "100,10000,100000", "how many `names`, with commas between")
	members := flag.String("members", "1,3", "how many `members`, with commas between")
	flag.IntVar(&o.Rounds, "rounds", 4, "how often each is measured; an even number puts each as often first as last")
	flag.IntVar(&o.Largest, "largest", 2, "rounds with 100,000 names and more")
	flag.IntVar(&o.Changes, "changes", 50, "changes in a run")
	flag.DurationVar(&o.Idle, "idle", 10*time.Second, "how `long` nothing is changed")
	flag.StringVar(&o.Markdown, "markdown", "", "`file` to write the tables to, too")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	var err1, err2 error
	o.Sizes, err1 = numbers(*sizes)
	o.Members, err2 = numbers(*members)
	err := errors.Join(err1, err2)
	if err == nil {
		err = bench(ctx, os.Stdout, o)
	}
	stop()
	if err != nil {
		slog.Error("the store was not measured", "err", err)
		os.Exit(1)
	}
}

func numbers(s string) (out []int, err error) {
	for f := range strings.SplitSeq(s, ",") {
		n, err := strconv.Atoi(f)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%q is no number from 1 on", f)
		}
		out = append(out, n)
	}
	return out, nil
}

// play is what a process of the benchmark does.
func play(role string) error {
	switch role {
	case "inside":
		return playInside(os.Stdin, os.Stdout)
	case "member":
		return playMember(os.Stdin, os.Stdout)
	case "node":
		return playNode(os.Stdin, os.Stdout)
	case "fill":
		return playFill(os.Stdin, os.Stdout)
	}
	return errors.New("this is not for people: run it without arguments, or with -help")
}

// bench measures in a process that is the first of its namespaces: when it ends, so does all that it started.
func bench(ctx context.Context, out io.Writer, o options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("making namespaces needs root: sudo make bench-store")
	}
	if o.Dir, err = os.MkdirTemp("", "store-bench"); err != nil {
		return err
	}
	defer os.RemoveAll(o.Dir)
	if err := build(ctx, o.Dir); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	in, err := json.Marshal(o)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, "inside")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(string(in)), out, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID, Setpgid: true}
	if err := cmd.Run(); err != nil {
		return errors.Join(context.Cause(ctx), fmt.Errorf("measuring, see above: %w", err))
	}
	return nil
}

// playInside is that process.
func playInside(in io.Reader, out io.Writer) error {
	var o options
	if err := json.NewDecoder(in).Decode(&o); err != nil {
		return fmt.Errorf("reading what to measure: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	run := filepath.Dir(snapshot(o.Dir))
	err := os.Mkdir(run, 0o755)
	if err == nil {
		err = unix.Mount("tmpfs", run, "tmpfs", 0, "")
	}
	if err != nil {
		return fmt.Errorf("mounting a tmpfs for the snapshot: %w", err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link set lo up: %w: %s", err, out)
	}
	var md strings.Builder
	p := &page{out: out, md: &md}
	p.head(o)
	results, err := measureAll(out, o)
	if err != nil {
		return err
	}
	p.results(results)
	if o.Markdown == "" {
		return nil
	}
	if err := os.WriteFile(o.Markdown, []byte(md.String()), 0o644); err != nil {
		return fmt.Errorf("writing the tables: %w", err)
	}
	return nil
}
