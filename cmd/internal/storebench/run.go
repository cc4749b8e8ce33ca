// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// child is a process of a run.
type child struct {
	name string
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
}

// start starts this program in a role, or another one, and hands it what it is told first.
func start(name string, first any, program string, args ...string) (*child, error) {
	c := &child{name: name, cmd: exec.Command(program, args...)}
	c.cmd.Stderr = os.Stderr
	c.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err1 := c.cmd.StdoutPipe()
	in, err2 := c.cmd.StdinPipe()
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	c.in, c.out = in, bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	if first == nil {
		return c, nil
	}
	return c, c.tell(first)
}

func (c *child) tell(v any) error {
	b, err := json.Marshal(v)
	if err == nil {
		_, err = c.in.Write(append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("telling %s: %w", c.name, err)
	}
	return nil
}

func (c *child) hear(v any) error {
	if err := readJSON(c.out, v); err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	return nil
}

func (c *child) ask(o order) (a answer, err error) {
	if err = c.tell(o); err == nil {
		err = c.hear(&a)
	}
	return a, err
}

// end ends the process as its user would, by the end of its input.
func (c *child) end() {
	c.in.Close()
	late := time.AfterFunc(5*time.Second, func() { c.cmd.Process.Kill() })
	c.cmd.Wait()
	late.Stop()
}

// result is what a run found.
type result struct {
	members, names int

	changes, commits []float64 // ms, from the change on a to getaddrinfo on b, and until a's store had it
	load             float64   // s, b from its start to a snapshot with all names
	fill             float64   // s, all names put by c
	write            float64   // ms, a snapshot
	node, member     float64   // MiB
	database         float64   // MiB

	change, idle traffic // of one change, and of a second
	nodeCPU      float64 // of b, idle, percent of a core
	memberCPU    float64 // of the first member
}

// traffic is what was said and written.
type traffic struct{ requests, told, wire, syncs float64 }

func (t traffic) minus(u traffic) traffic {
	return traffic{t.requests - u.requests, t.told - u.told, t.wire - u.wire, t.syncs - u.syncs}
}

func (t traffic) by(n float64) traffic {
	return traffic{t.requests / n, t.told / n, t.wire / n, t.syncs / n}
}

// measureAll makes all runs.
func measureAll(out io.Writer, o options) ([]result, error) {
	type kind struct{ members, names int }
	var kinds []kind
	for _, n := range o.Sizes {
		for _, m := range o.Members {
			kinds = append(kinds, kind{m, n})
		}
	}
	var all []result
	for round := range o.Rounds {
		for _, k := range kinds {
			if k.names >= 100_000 && round >= o.Largest {
				continue
			}
			begin := time.Now()
			r, err := measure(o, k.members, k.names)
			if err != nil {
				return nil, fmt.Errorf("%d members, %d names: %w", k.members, k.names, err)
			}
			all = append(all, r)
			fmt.Fprintf(out, "round %d: %d members, %d names: change p50 %.1f ms, p99 %.1f ms (%.0f s)\n", round+1, k.members, k.names,
				quantile(r.changes, 0.5), quantile(r.changes, 0.99), time.Since(begin).Seconds())
		}
		slices.Reverse(kinds)
	}
	return all, nil
}

// measure makes one run.
func measure(o options, members, names int) (r result, err error) {
	r.members, r.names = members, names
	dir, err := os.MkdirTemp(o.Dir, "run")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	os.Remove(snapshot(o.Dir))
	p := place{Dir: dir, Members: members, Names: names}
	for i := range members {
		p.Endpoints = append(p.Endpoints, "https://"+address(i)+":2379")
	}
	if err := issue(p); err != nil {
		return r, err
	}
	self, err := os.Executable()
	if err != nil {
		return r, err
	}
	var running []*child
	defer func() {
		for _, c := range slices.Backward(running) {
			c.end()
		}
	}()
	begin := func(role, name, snapshot string) (*child, error) {
		q := p
		q.Name, q.Snapshot = name, snapshot
		c, err := start(role+" "+name, q, self, role)
		if c != nil {
			running = append(running, c)
		}
		return c, err
	}
	var first *child
	for i := range members {
		if _, err := begin("member", people[i], ""); err != nil {
			return r, err
		}
	}
	for _, c := range running {
		if err := c.hear(new(struct{})); err != nil {
			return r, err
		}
	}
	first = running[0]
	t := time.Now()
	c, err := begin("fill", "c", "")
	if err == nil {
		err = c.hear(new(struct{}))
	}
	if err != nil {
		return r, err
	}
	r.fill = time.Since(t).Seconds()
	var loaded answer
	a, err := begin("node", "a", "")
	if err == nil {
		err = a.hear(&loaded)
	}
	if err != nil {
		return r, err
	}
	b, err := begin("node", "b", snapshot(o.Dir))
	if err == nil {
		err = b.hear(&loaded)
	}
	if err != nil {
		return r, err
	}
	r.load = loaded.Load.Seconds()
	ask, err := start("ask", nil, "env", "LD_LIBRARY_PATH="+filepath.Join(o.Dir, "lib"), filepath.Join(o.Dir, "ask"))
	if err != nil {
		return r, err
	}
	running = append(running, ask)
	watch, err := newWatch(p)
	if err != nil {
		return r, err
	}
	if err := r.measureChanges(o, watch, a, b, ask); err != nil {
		return r, err
	}
	return r, r.measureIdle(o, watch, b, first)
}

// measureChanges makes changes, and rests after each until the work of it is done: what is measured is one change on
// machines that do nothing else. Some come first that are not counted.
func (r *result) measureChanges(o options, w *watch, a, b, ask *child) error {
	const warm = 3
	n := o.Changes
	if r.names >= 100_000 {
		n = min(n, 20)
	}
	rest := 150*time.Millisecond + time.Duration(r.names)*60*time.Microsecond // the snapshot's writer rests for nine times its work
	var before traffic
	for i := range warm + n {
		if i == warm {
			if _, err := b.ask(order{Rest: true}); err != nil {
				return err
			}
			var err error
			if before, err = w.read(); err != nil {
				return err
			}
		}
		<-time.After(rest)
		name := fmt.Sprintf("new%d", i)
		if _, err := io.WriteString(ask.in, name+"."+zone+"\n"); err != nil {
			return fmt.Errorf("asking: %w", err)
		}
		did, err := a.ask(order{Add: name, Addr: netip.AddrFrom4([4]byte{10, 0, 1, byte(1 + i)})})
		if err != nil {
			return err
		}
		line, err := ask.out.ReadString('\n')
		at, err2 := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
		if err := errors.Join(err, err2); err != nil || at == 0 {
			return fmt.Errorf("%s was not found within a minute: %w", name, err)
		}
		if i >= warm {
			r.changes = append(r.changes, float64(at-did.At)/1e6)
			r.commits = append(r.commits, float64(did.Took)/1e6)
		}
	}
	<-time.After(rest)
	after, err := w.read()
	if err != nil {
		return err
	}
	r.change = after.minus(before).minus(w.own).by(float64(n))
	cost, err := b.ask(order{Rest: true})
	if cost.Writes > 0 {
		r.write = float64(cost.WriteFor) / 1e6 / float64(cost.Writes)
	}
	return err
}

// measureIdle waits while nothing is changed.
func (r *result) measureIdle(o options, w *watch, b, member *child) error {
	<-time.After(2 * time.Second) // what is kept on disk is kept
	before, err := w.read()
	if err != nil {
		return err
	}
	begin, b0, m0 := time.Now(), cpu(b), cpu(member)
	<-time.After(o.Idle)
	took := time.Since(begin).Seconds()
	r.nodeCPU, r.memberCPU = 100*(cpu(b)-b0)/took, 100*(cpu(member)-m0)/took
	after, err := w.read()
	if err != nil {
		return err
	}
	r.idle = after.minus(before).minus(w.own).by(took)
	r.node, r.member, r.database = resident(b), resident(member), w.database
	return nil
}
