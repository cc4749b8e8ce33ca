// SPDX-License-Identifier: MIT

//go:build linux

// Bench measures look-ups: libnss_mesh.so.2 as it is shipped beside a C module that does the same reads (testdata/twin.c),
// beside the files source of glibc, and, with -full, beside dnsmasq, systemd-resolved, mdns4_minimal and a module that
// runs etcdctl. It also measures what writing a snapshot costs.
//
// The measuring loops are C (testdata/harness.c), ask through getaddrinfo or call the module's own functions, and check
// every answer. The contestants take turns, each round in the reverse of the last one's order; between two of them only
// the hosts line of nsswitch.conf and the file with the names are another. All that is asked, and everything that runs
// for it, is in a mount, network, process and host name namespace of its own, with copies of /etc and of the library
// folder in memory: of the machine nothing changes, no service starts, no packet leaves, and nothing stays. There is no
// nscd. Each host has two names, a short one, which is asked for, and a long one, and one IPv4 address: where a host has
// both families getaddrinfo sorts them, which costs more than any look-up and is not the module's.
//
// It needs root, gcc and what builds the module. With -full it needs Debian packages too, which it downloads and unpacks
// beside the machine's own, for some of them change nsswitch.conf or start a service where they are installed; what
// cannot be had is skipped and named. A slow machine is no failure: it measures and prints, and its exit status is 1 only
// if something does not work, a wrong answer included.
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
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// options is what a person may choose, and where the rest was found or made.
type options struct {
	Full      bool
	Rounds    int
	Processes int    // for first look-ups, in a round
	Markdown  string // file for the tables
	Sizes     []int  // hosts of a snapshot
	Lines     []int  // hosts of /etc/hosts
	Writes    []int  // hosts of snapshots whose writing is measured

	Dir      string            // of this run, removed after it
	Unpacked string            // packages; empty: none
	Missing  map[string]string // what could not be had, and why
}

func main() {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		if err := play(os.Args[1:]); err != nil {
			slog.Error(os.Args[1], "err", err)
			os.Exit(1)
		}
		return
	}
	o := options{Processes: 6, Sizes: []int{10, 100_000}, Lines: []int{10, 10_000}, Writes: []int{10_000, 100_000}}
	flag.BoolVar(&o.Full, "full", false, "every size and every rival")
	flag.IntVar(&o.Rounds, "rounds", 0, "how often each contestant runs; an even number puts each as often first as last (4, with -full 6)")
	flag.StringVar(&o.Markdown, "markdown", "", "`file` to write the tables to, too")
	flag.Parse()
	if o.Full {
		o.Sizes, o.Lines, o.Processes = []int{10, 1000, 100_000, 1_000_000}, []int{10, 1000, 10_000}, 10
		o.Writes = append(o.Writes, 1_000_000)
	}
	if o.Rounds == 0 {
		o.Rounds = 4
		if o.Full {
			o.Rounds = 6
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	err := bench(ctx, os.Stdout, o)
	stop()
	if err != nil {
		slog.Error("look-ups were not measured", "err", err)
		os.Exit(1)
	}
}

// play is what a process of the benchmark does.
func play(args []string) error {
	switch {
	case args[0] == "inside" && len(args) == 1:
		return playInside(os.Stdin, os.Stdout)
	case args[0] == "write" && len(args) == 3:
		return playWrite(args[1], args[2], os.Stdout)
	}
	return errors.New("this is not for people: run it without arguments, or with -help")
}

// bench builds what is measured and measures it in a process of its own, the first of its namespaces: when that ends,
// so does all that it started.
func bench(ctx context.Context, out io.Writer, o options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("making namespaces needs root: sudo make bench")
	}
	if o.Rounds < 1 || o.Processes < 1 {
		return errors.New("nothing to measure: -rounds must be positive")
	}
	if o.Dir, err = os.MkdirTemp("", "nss-bench"); err != nil {
		return err
	}
	defer os.RemoveAll(o.Dir)
	if err := build(ctx, o.Dir); err != nil {
		return err
	}
	if o.Full {
		o.Unpacked, o.Missing = unpack(ctx, o.Dir)
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
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS, Setpgid: true}
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
	s, err := openStage(o)
	if err != nil {
		return err
	}
	var md strings.Builder
	page := &page{out: out, md: &md}
	page.head(o)
	if err := measure(page, s, o); err != nil {
		return err
	}
	if o.Markdown == "" {
		return nil
	}
	if err := os.WriteFile(o.Markdown, []byte(md.String()), 0o644); err != nil {
		return fmt.Errorf("writing the tables: %w", err)
	}
	return nil
}

// count writes a number of hosts as people do.
func count(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
