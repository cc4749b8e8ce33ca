// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// run is what was measured in one run of one contestant.
type run struct {
	loads  []load
	memory float64   // MiB, the most that a tunnel process had resident
	idle   []float64 // round trips, microseconds, sorted
	rate   float64   // small packets that arrived in a second
	packet float64   // CPU time for one of them, microseconds, of all tunnel processes
}

// load is what was measured while TCP sent.
type load struct {
	mbits  float64   // received
	cpu    float64   // seconds a GiB, of all tunnel processes
	middle float64   // the same of the one between
	trips  []float64 // round trips, microseconds, sorted
}

const (
	warmUp     = 500 * time.Millisecond // how long TCP sends before anything is measured: handshakes, paths, pools
	startLimit = 30 * time.Second       // until something comes through a tunnel
)

// arena is namespaces and the processes in them, for one run.
type arena struct {
	*network
	dir     string // for files
	ends    []*end
	tunnels []*process
	procs   []*process // all, in the order of their start
}

// last is the index of the host that the first one talks with.
func (a *arena) last() int { return len(a.hosts) - 1 }

// at is a port of a node, in the tunnel.
func (a *arena) at(i int, port uint16) string {
	return netip.AddrPortFrom(nodeAddr(i).Addr(), port).String()
}

// measure runs one contestant once.
func (a *arena) measure(ctx context.Context, c contestant, round int, o options) (r run, err error) {
	if err := a.open(ctx, c, round, o.profile); err != nil {
		return r, err
	}
	beat, err := a.beat(ctx, startLimit)
	if err != nil {
		return r, err
	}
	beat.stdin.Close()
	if c.kind == kindTinc {
		if err := pause(ctx, o.settling); err != nil {
			return r, err
		}
	}
	to := a.at(a.last(), sinkPort)
	var s sent
	if err := a.ask(ctx, 0, &s, "send", to, warmUp.String(), "1"); err != nil {
		return r, err
	}
	if err := a.ask(ctx, 0, &r.idle, "ping", to, fmt.Sprint(o.pings), pingGap.String()); err != nil {
		return r, err
	}
	slices.Sort(r.idle)
	for _, n := range o.streams {
		l, err := a.load(ctx, o, n)
		if err != nil {
			return r, err
		}
		r.loads = append(r.loads, l)
	}
	w, err := a.watch(func() (n int64, err error) {
		err = a.ask(ctx, 0, &s, "flood", a.at(a.last(), floodPort), (o.length / 2).String())
		return s.Received, err
	})
	if err != nil {
		return r, err
	}
	n := float64(s.Received) / pingSize
	r.rate, r.packet = n/s.Took.Seconds(), w.all()*1e6/n
	for _, p := range a.tunnels {
		var kib float64
		fmt.Sscan(field(fmt.Sprintf("/proc/%d/status", p.pid), "VmHWM"), &kib)
		r.memory = max(r.memory, kib/1024)
	}
	return r, nil
}

// load measures while so many TCP connections send.
func (a *arena) load(ctx context.Context, o options, streams int) (l load, err error) {
	var s, back sent
	w, err := a.watch(func() (int64, error) {
		backErr := make(chan error, 1)
		if o.both {
			go func() {
				backErr <- a.ask(ctx, a.last(), &back, "send", a.at(0, sinkPort), o.length.String(), fmt.Sprint(streams))
			}()
		} else {
			backErr <- nil
		}
		err := a.ask(ctx, 0, &s, "send", a.at(a.last(), sinkPort), o.length.String(), fmt.Sprint(streams))
		return s.Received, errors.Join(err, <-backErr)
	})
	if err != nil {
		return l, err
	}
	if s.Took <= 0 || o.both && back.Took <= 0 {
		return l, errors.New("nothing arrived through the tunnel")
	}
	gib := float64(s.Received+back.Received) / (1 << 30)
	l = load{mbits: s.mbits() + back.mbits(), cpu: w.all() / gib, trips: s.RoundTrips}
	if len(w) > between+1 {
		l.middle = w[between] / gib
	}
	slices.Sort(l.trips)
	return l, nil
}

// cpuTimes is CPU time in seconds by tunnel process.
type cpuTimes []float64

func (c cpuTimes) all() (sum float64) {
	for _, s := range c {
		sum += s
	}
	return sum
}

// watch calls f, which returns how many bytes arrived, checks their way, and returns the CPU time meanwhile.
func (a *arena) watch(f func() (int64, error)) (cpuTimes, error) {
	before, err := a.counters()
	if err != nil {
		return nil, err
	}
	cpu, err := a.cpuTimes()
	if err != nil {
		return nil, err
	}
	n, err := f()
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, errors.New("nothing arrived through the tunnel")
	}
	cpuAfter, err := a.cpuTimes()
	if err != nil {
		return nil, err
	}
	after, err := a.counters()
	if err != nil {
		return nil, err
	}
	for i := range cpu {
		cpu[i] = cpuAfter[i] - cpu[i]
	}
	return cpu, throughTunnel(before, after, n)
}

// pause waits.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// startOrder is that of n nodes: whom others connect to comes first.
func startOrder(n int) []int { return []int{between, 0, between + 1}[:n] }

// open makes the namespaces and starts the sinks and the tunnel.
func (a *arena) open(ctx context.Context, c contestant, round int, profile string) (err error) {
	if a.dir, err = os.MkdirTemp("", "mesh-bench-*"); err != nil {
		return err
	}
	if a.network, err = newNetwork(c.setting); err != nil {
		return err
	}
	for i, h := range a.hosts {
		if err := h.forward(c.setting == relayed && i == between && c.kind == kindPlain); err != nil {
			return err
		}
	}
	if a.ends, err = c.ends(a.network, a.dir); err != nil {
		return err
	}
	for _, h := range a.hosts {
		p, err := a.start(ctx, h, nil, "sink")
		if err == nil {
			err = p.ready(ctx)
		}
		if err != nil {
			return err
		}
	}
	a.tunnels = make([]*process, len(a.ends))
	for _, i := range startOrder(len(a.ends)) {
		if profile != "" {
			name := fmt.Sprintf("%s-%s-%d.pprof", strings.ReplaceAll(c.String(), "/", "-"), nodeName(i), round)
			a.ends[i].Profile = filepath.Join(profile, name)
		}
		if a.tunnels[i], err = a.start(ctx, a.hosts[i], a.ends[i], "tunnel"); err == nil {
			err = a.tunnels[i].ready(ctx)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// beat starts sending small packets through the tunnel, and returns when one has come back.
func (a *arena) beat(ctx context.Context, limit time.Duration) (*process, error) {
	p, err := a.start(ctx, a.hosts[0], nil, "beat", a.at(a.last(), sinkPort), limit.String())
	if err != nil {
		return nil, err
	}
	return p, p.ready(ctx)
}

// counters reads the interfaces of the namespaces.
func (a *arena) counters() ([]map[string]counter, error) {
	var all []map[string]counter
	for _, h := range a.hosts {
		c, err := h.counters(cable, tunnelName)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// throughTunnel checks that so many bytes went into the tunnel at one end, sealed over the cable, and out of it at the
// other end; and over the cable of the host between, if there is one.
func throughTunnel(before, after []map[string]counter, n int64) error {
	last := len(after) - 1
	tx := func(name string) int64 { return int64(after[0][name].tx - before[0][name].tx) }
	rx := func(i int, name string) int64 { return int64(after[i][name].rx - before[i][name].rx) }
	in, sealed, arrived, opened := tx(tunnelName), tx(cable), min(rx(between, cable), rx(last, cable)), rx(last, tunnelName)
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
	pid   int // what it says: of a rival's tunnel that of its child
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
	if err := p.out.Decode(&p.pid); err != nil {
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
	a.network.close()
	return errors.Join(append(errs, os.RemoveAll(a.dir))...)
}

// cpuTimes is what the tunnel processes have used so far.
func (a *arena) cpuTimes() (c cpuTimes, err error) {
	for _, p := range a.tunnels {
		var ts unix.Timespec
		clock := int32(^p.pid<<3 | 2) // the process's CPU clock, as of clock_getcpuclockid(3)
		if err := unix.ClockGettime(clock, &ts); err != nil {
			return nil, fmt.Errorf("reading the CPU time of a tunnel process: %w", err)
		}
		c = append(c, time.Duration(ts.Nano()).Seconds())
	}
	return c, nil
}
