// SPDX-License-Identifier: MIT

//go:build linux

// Bench measures tunnels: the node of this repository (package vpn on a real TUN interface and real UDP sockets) beside
// plain wireguard-go of the module's own version, between network namespaces of this machine.
//
//	namespace 0                                     namespace 1
//	ping, send ─▶ TUN ─▶ tunnel ─▶ eth0 ═══ veth ═══ eth0 ─▶ tunnel ─▶ TUN ─▶ sink
//
// With -full tinc and nebula, as Debian has them, are measured too, and all also where a third host stands between two
// that have no cable to each other; wireguard-go then is a hub that opens each packet and seals it again. And three hosts
// are put at a switch, which after some time carries nothing more between two of them, while their interfaces stay up:
// how long is it until packets come through the third?
//
// The contestants take turns, each round in the reverse of the last one's order. For each run namespaces, interfaces and
// processes are new, so that neither luck nor memory of one run is the next one's. After a warm-up small UDP packets go
// to and fro, then one TCP connection (cubic) or several send as fast as they can, perhaps in both directions, and last
// small UDP packets as fast as they can. What arrived is counted by the receiver, and the interfaces' counters must agree
// that it went through the tunnel and, sealed, over the cable. The CPU time is that of all tunnel processes. Ours and
// wireguard-go are young processes that still touch new memory, which the absolute figures contain and the ratios
// compare: where a page fault is dear, so is every packet, and a difference looks smaller. Gaps are timers that run out,
// so they are waited for all at once.
//
// It needs root and installs nothing. Of the machine it changes nothing: what it makes ends with it, and within seconds
// where it is killed. Its processes are its own program, told by arguments what to be, and the rivals' as their children.
// A slow machine is no failure: it measures and prints, and its exit status is 1 only if something does not work at all.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// options is what a person may choose.
type options struct {
	full     bool
	only     *regexp.Regexp // which contestants; nil: all
	rounds   int
	length   time.Duration // of a run
	streams  []int         // TCP connections at once; each is a run
	both     bool          // in both directions at once
	pings    int           // on the idle tunnel, in a run
	gaps     int           // how often each contestant's cable is cut
	settling time.Duration // of tinc: it measures the path's MTU once a second and sends by TCP until then; and before a cut
	profile  string        // folder for CPU profiles of the tunnel processes
	markdown string        // file for the tables
}

// contestants are those that run.
func (o options) contestants() (all []contestant) {
	all = briefly()
	if o.full {
		all = fully()
	}
	return slices.DeleteFunc(all, func(c contestant) bool { return o.only != nil && !o.only.MatchString(c.String()) })
}

func main() {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		if err := play(os.Args[1:]); err != nil {
			slog.Error(strings.Join(os.Args[1:], " "), "err", err)
			os.Exit(1)
		}
		return
	}
	o := options{settling: 4 * time.Second}
	flag.BoolVar(&o.full, "full", false, "every rival, through a third node too, and round a cut")
	flag.Func("run", "`regexp` of the contestants, as relayed/mesh: "+names(fully()), func(s string) (err error) {
		o.only, err = regexp.Compile(s)
		return err
	})
	flag.IntVar(&o.rounds, "rounds", 6, "how often each contestant runs; an even number puts each as often first as last")
	flag.DurationVar(&o.length, "time", 0, "how long TCP sends in a run (1.25s, with -full 1s)")
	flag.Func("streams", "TCP connections at once; each of several `numbers` is a run (1, with -full 1,4)", func(s string) error {
		for f := range strings.SplitSeq(s, ",") {
			n, err := strconv.Atoi(f)
			if err != nil {
				return err
			}
			o.streams = append(o.streams, n)
		}
		return nil
	})
	flag.BoolVar(&o.both, "both", false, "the same from the other end at the same time")
	flag.IntVar(&o.pings, "pings", 200, "round trips on the idle tunnel in a run")
	flag.IntVar(&o.gaps, "gaps", 3, "with -full: how often each contestant's cable is cut")
	flag.StringVar(&o.profile, "profile", "", "`folder` for CPU profiles of the tunnel processes (go tool pprof), not of the rivals")
	flag.StringVar(&o.markdown, "markdown", "", "`file` to write the tables to, too; with -full")
	flag.Parse()
	if len(o.streams) == 0 {
		o.streams = []int{1}
		if o.full {
			o.streams = []int{1, 4}
		}
	}
	if o.length == 0 {
		o.length = 1250 * time.Millisecond
		if o.full {
			o.length = time.Second
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	err := bench(ctx, os.Stdout, o)
	stop()
	if err != nil {
		slog.Error("the tunnels were not measured", "err", err)
		os.Exit(1)
	}
}

func names(all []contestant) string {
	var s []string
	for _, c := range all {
		s = append(s, c.String())
	}
	return strings.Join(s, ", ")
}

// play is what a process of the benchmark does.
func play(args []string) error {
	switch {
	case args[0] == "tunnel" && len(args) == 1:
		return playTunnel(os.Stdin, os.Stdout)
	case args[0] == "sink" && len(args) == 1:
		return playSink(os.Stdin, os.Stdout)
	case args[0] == "ping" && len(args) == 4:
		return playPing(args[1], args[2], args[3], os.Stdout)
	case args[0] == "send" && len(args) == 4:
		return playSend(args[1], args[2], args[3], os.Stdout)
	case args[0] == "flood" && len(args) == 3:
		return playFlood(args[1], args[2], os.Stdout)
	case args[0] == "beat" && len(args) == 3:
		return playBeat(args[1], args[2], os.Stdin, os.Stdout)
	}
	return errors.New("this is not for people: run it without arguments, or with -help")
}

func bench(ctx context.Context, out io.Writer, o options) error {
	if os.Geteuid() != 0 {
		return errors.New("making network namespaces needs root: use sudo")
	}
	if o.rounds < 1 || o.length <= 0 || o.pings < 1 || len(o.streams) == 0 || slices.Min(o.streams) < 1 || o.gaps < 0 {
		return errors.New("nothing to measure: -rounds, -time, -pings and -streams must be positive")
	}
	all := o.contestants()
	if len(all) == 0 {
		return fmt.Errorf("-run chooses none of: %s", names(fully()))
	}
	for _, c := range all {
		if err := c.missing(); err != nil {
			return err
		}
	}
	r := results{options: o, runs: map[contestant][]run{}, gaps: map[contestant][]time.Duration{}}
	r.printHead(out)
	inRounds := slices.DeleteFunc(slices.Clone(all), func(c contestant) bool { return c.setting == cut })
	for round := range o.rounds {
		for _, c := range inRounds {
			a := &arena{}
			one, err := a.measure(ctx, c, round, o)
			if err = errors.Join(err, a.close()); err != nil {
				return fmt.Errorf("%s: %w", c, err)
			}
			r.runs[c] = append(r.runs[c], one)
		}
		slices.Reverse(inRounds)
	}
	if err := r.measureGaps(ctx, all); err != nil {
		return err
	}
	return r.print(out, all)
}
