// SPDX-License-Identifier: MIT

// Bench measures tunnels: the node of this repository (package vpn on a real TUN interface and real UDP sockets) beside
// plain wireguard-go of the module's own version, between two network namespaces of this machine.
//
//	namespace 0                                     namespace 1
//	ping, send ─▶ TUN ─▶ tunnel ─▶ eth0 ═══ veth ═══ eth0 ─▶ tunnel ─▶ TUN ─▶ sink
//
// The contestants take turns, each round in the reverse of the last one's order. For each run namespaces, interfaces and
// processes are new, so that neither luck nor memory of one run is the next one's. After a warm-up small UDP packets go
// to and fro, then one TCP connection (cubic) or several send as fast as they can, perhaps in both directions, and last
// small UDP packets as fast as they can. What arrived is counted by the receiver, and
// the interfaces' counters must agree that it went through the tunnel and, sealed, over the cable. The CPU time is that
// of the two tunnel processes. Both contestants are young processes that still touch new memory, which the absolute
// figures contain and the ratios compare: where a page fault is dear, so is every packet, and a difference looks smaller.
//
// It needs root and installs nothing. Of the machine it changes nothing: what it makes ends with it, and within seconds
// where it is killed. Its processes are its own program, told by arguments what to be. A slow machine is no failure: it
// measures and prints, and its exit status is 1 only if something does not work at all.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// options is what a person may choose.
type options struct {
	rounds  int
	length  time.Duration // of a run
	streams int           // TCP connections at once
	both    bool          // in both directions at once
	pings   int           // on the idle tunnel, in a run
	profile string        // folder for CPU profiles of the tunnel processes
}

func main() {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		if err := play(os.Args[1:]); err != nil {
			slog.Error(strings.Join(os.Args[1:], " "), "err", err)
			os.Exit(1)
		}
		return
	}
	var o options
	flag.IntVar(&o.rounds, "rounds", 6, "how often each contestant runs; an even number puts each as often first as last")
	flag.DurationVar(&o.length, "time", 1250*time.Millisecond, "how long TCP sends in a run")
	flag.IntVar(&o.streams, "streams", 1, "TCP connections at once")
	flag.BoolVar(&o.both, "both", false, "the same from the other end at the same time")
	flag.IntVar(&o.pings, "pings", 200, "round trips on the idle tunnel in a run")
	flag.StringVar(&o.profile, "profile", "", "`folder` for CPU profiles of the tunnel processes (go tool pprof)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	err := bench(ctx, os.Stdout, o)
	stop()
	if err != nil {
		slog.Error("the tunnels were not measured", "err", err)
		os.Exit(1)
	}
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
	}
	return errors.New("this is not for people: run it without arguments, or with -help")
}

// run is what was measured in one run of one contestant.
type run struct {
	mbits  float64   // received
	cpu    float64   // seconds a GiB, of both tunnel processes
	memory float64   // MiB, the most that a tunnel process had resident
	idle   []float64 // round trips, microseconds, sorted
	loaded []float64 // the same while TCP sends
	rate   float64   // small packets that arrived in a second
	packet float64   // CPU time for one of them, microseconds, of both tunnel processes
}

// warmUp is how long TCP sends before anything is measured: handshakes, paths, pools.
const warmUp = 500 * time.Millisecond

func bench(ctx context.Context, out io.Writer, o options) error {
	if os.Geteuid() != 0 {
		return errors.New("making network namespaces needs root: sudo make bench")
	}
	if o.rounds < 1 || o.length <= 0 || o.pings < 1 || o.streams < 1 {
		return errors.New("nothing to measure: -rounds, -time, -pings and -streams must be positive")
	}
	printHead(out, o)
	all := contestants()
	runs := make([][]run, len(all)) // by contestant, then round
	order := make([]int, len(all))
	for i := range order {
		order[i] = i
	}
	for round := range o.rounds {
		for _, i := range order {
			a := &arena{}
			r, err := a.measure(ctx, all[i], round, o)
			if err = errors.Join(err, a.close()); err != nil {
				return fmt.Errorf("%s: %w", all[i], err)
			}
			runs[i] = append(runs[i], r)
		}
		slices.Reverse(order)
	}
	printTable(out, all, runs)
	return nil
}

// arena is two namespaces and the processes in them, for one run.
type arena struct {
	hosts   [2]*host
	ends    [2]*end
	tunnels [2]*process
	procs   []*process // all, in the order of their start
}

// measure runs one contestant once.
func (a *arena) measure(ctx context.Context, c contestant, round int, o options) (r run, err error) {
	if err := a.open(ctx, c, round, o.profile); err != nil {
		return r, err
	}
	to := netip.AddrPortFrom(a.ends[1].Addr.Addr(), sinkPort).String()
	var s sent
	if err := a.ask(ctx, 0, &s, "send", to, warmUp.String(), "1"); err != nil {
		return r, err
	}
	if err := a.ask(ctx, 0, &r.idle, "ping", to, fmt.Sprint(o.pings), pingGap.String()); err != nil {
		return r, err
	}
	before, err := a.counters()
	if err != nil {
		return r, err
	}
	cpu, err := a.cpuTime()
	if err != nil {
		return r, err
	}
	back, backErr := sent{}, make(chan error, 1)
	if o.both {
		from := netip.AddrPortFrom(a.ends[0].Addr.Addr(), sinkPort).String()
		go func() { backErr <- a.ask(ctx, 1, &back, "send", from, o.length.String(), fmt.Sprint(o.streams)) }()
	} else {
		backErr <- nil
	}
	err = a.ask(ctx, 0, &s, "send", to, o.length.String(), fmt.Sprint(o.streams))
	if err := errors.Join(err, <-backErr); err != nil {
		return r, err
	}
	cpuAfter, err := a.cpuTime()
	if err != nil {
		return r, err
	}
	after, err := a.counters()
	if err != nil {
		return r, err
	}
	if s.Received == 0 || s.Took <= 0 || o.both && (back.Received == 0 || back.Took <= 0) {
		return r, errors.New("nothing arrived through the tunnel")
	}
	if err := a.throughTunnel(before, after, s.Received); err != nil {
		return r, err
	}
	r.loaded = s.RoundTrips
	r.mbits = s.mbits() + back.mbits()
	r.cpu = (cpuAfter - cpu).Seconds() / (float64(s.Received+back.Received) / (1 << 30))
	if r.rate, r.packet, err = a.flood(ctx, o.length/2); err != nil {
		return r, err
	}
	for _, p := range a.tunnels {
		var kib float64
		fmt.Sscan(field(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid), "VmHWM"), &kib)
		r.memory = max(r.memory, kib/1024)
	}
	slices.Sort(r.idle)
	slices.Sort(r.loaded)
	return r, nil
}

// flood sends small packets and returns how many arrived in a second, and the microseconds of CPU time that each took.
func (a *arena) flood(ctx context.Context, length time.Duration) (rate, packet float64, err error) {
	var s sent
	to := netip.AddrPortFrom(a.ends[1].Addr.Addr(), floodPort).String()
	before, err := a.counters()
	if err != nil {
		return 0, 0, err
	}
	cpu, err := a.cpuTime()
	if err != nil {
		return 0, 0, err
	}
	if err := a.ask(ctx, 0, &s, "flood", to, length.String()); err != nil {
		return 0, 0, err
	}
	cpuAfter, err := a.cpuTime()
	if err != nil {
		return 0, 0, err
	}
	after, err := a.counters()
	if err != nil {
		return 0, 0, err
	}
	n := float64(s.Received) / pingSize
	if n == 0 {
		return 0, 0, errors.New("no small packet arrived through the tunnel")
	}
	return n / s.Took.Seconds(), float64((cpuAfter - cpu).Microseconds()) / n, a.throughTunnel(before, after, s.Received)
}

// open makes the namespaces and starts the sink and the tunnel.
func (a *arena) open(ctx context.Context, c contestant, round int, profile string) (err error) {
	if a.hosts, err = newHosts(); err != nil {
		return err
	}
	if a.ends, err = c.ends(); err != nil {
		return err
	}
	var sinks [2]*process
	for i, h := range a.hosts {
		if sinks[i], err = a.start(ctx, h, nil, "sink"); err != nil {
			return err
		}
	}
	for i, e := range a.ends {
		if profile != "" {
			e.Profile = filepath.Join(profile, fmt.Sprintf("%s-%d-%s-%d.pprof", c.kind, c.mtu, [2]string{"sender", "receiver"}[i], round))
		}
		if a.tunnels[i], err = a.start(ctx, a.hosts[i], e, "tunnel"); err != nil {
			return err
		}
	}
	return errors.Join(sinks[0].ready(ctx), sinks[1].ready(ctx), a.tunnels[0].ready(ctx), a.tunnels[1].ready(ctx))
}

// counters reads the interfaces of both namespaces.
func (a *arena) counters() (c [2]map[string]counter, err error) {
	for i, h := range a.hosts {
		if c[i], err = h.counters(cable, a.ends[i].Interface); err != nil {
			return c, err
		}
	}
	return c, nil
}

// throughTunnel checks that so many bytes went into the tunnel at one end, sealed over the cable, and out of it at the
// other end.
func (a *arena) throughTunnel(before, after [2]map[string]counter, n int64) error {
	tx := func(name string) int64 { return int64(after[0][name].tx - before[0][name].tx) }
	rx := func(name string) int64 { return int64(after[1][name].rx - before[1][name].rx) }
	in, sealed, arrived, opened := tx(a.ends[0].Interface), tx(cable), rx(cable), rx(a.ends[1].Interface)
	if in < n || sealed < n || arrived < n || opened < n {
		return fmt.Errorf("%d bytes arrived, but %d went into the tunnel, %d and %d over the cable and %d out of the tunnel", n, in, sealed, arrived, opened)
	}
	return nil
}

// endLimit is how long a process may take to end.
const endLimit = 10 * time.Second

// process is one process of the benchmark. It ends when its standard input does.
type process struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *json.Decoder
}

// start starts a process of the arena that is told what on its standard input.
func (a *arena) start(ctx context.Context, h *host, what any, args ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.CommandContext(ctx, self, args...)}
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // a terminal's SIGINT is for this program, which then ends the others
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	p.cmd.Cancel = p.stdin.Close
	p.cmd.WaitDelay = endLimit // then it is killed
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = json.NewDecoder(stdout)
	if err := h.do(p.cmd.Start); err != nil {
		return nil, fmt.Errorf("starting %s: %w", args[0], err)
	}
	a.procs = append(a.procs, p)
	if what != nil {
		return p, json.NewEncoder(p.stdin).Encode(what)
	}
	return p, nil
}

// ready waits until the process says that it is.
func (p *process) ready(ctx context.Context) error {
	var is bool
	if err := p.out.Decode(&is); err != nil || !is {
		return errors.Join(context.Cause(ctx), fmt.Errorf("the process %s did not start: see above why: %w", p.cmd.Args[1], err))
	}
	return nil
}

// ask runs a client in a namespace and decodes its answer.
func (a *arena) ask(ctx context.Context, host int, answer any, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	var stdout strings.Builder
	cmd.Stdout = &stdout
	if err := a.hosts[host].do(cmd.Start); err != nil {
		return fmt.Errorf("starting %s: %w", args[0], err)
	}
	if err := cmd.Wait(); err != nil {
		return errors.Join(context.Cause(ctx), fmt.Errorf("%s %s: %w", args[0], args[1], err))
	}
	return json.Unmarshal([]byte(stdout.String()), answer)
}

// close ends the processes, and with them and their files the namespaces.
func (a *arena) close() error {
	for _, p := range a.procs {
		p.stdin.Close()
	}
	var errs []error
	for _, p := range a.procs {
		limit := time.AfterFunc(endLimit, func() { p.cmd.Process.Kill() })
		if err := p.cmd.Wait(); !limit.Stop() {
			errs = append(errs, fmt.Errorf("the process %s did not end: %w", p.cmd.Args[1], err))
		}
	}
	for _, h := range a.hosts {
		if h != nil {
			h.close()
		}
	}
	return errors.Join(errs...)
}

// cpuTime is what the two tunnel processes have used so far.
func (a *arena) cpuTime() (sum time.Duration, err error) {
	for _, p := range a.tunnels {
		var ts unix.Timespec
		clock := int32(^p.cmd.Process.Pid<<3 | 2) // the process's CPU clock, as of clock_getcpuclockid(3)
		if err := unix.ClockGettime(clock, &ts); err != nil {
			return 0, fmt.Errorf("reading the CPU time of a tunnel process: %w", err)
		}
		sum += time.Duration(ts.Nano())
	}
	return sum, nil
}
