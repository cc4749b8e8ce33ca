// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"mesh.internal/mesh/cmd/internal/lab"
)

// commandLimit bounds one command. All of them take milliseconds, or a second where they wait for a packet.
const commandLimit = 15 * time.Second

// demo is the state of the story.
type demo struct {
	ctx  context.Context // ends with SIGINT or when the demo takes too long
	show *show
	lab  *lab.Lab
	keep bool

	nodes   []*node     // in the order in which they were made
	routers []*lab.Host // not on the mesh
}

// node is a host on its way to being one of the mesh.
type node struct {
	*lab.Host
	link      *lab.Link
	daemon    *lab.Process // meshd
	keeps     bool         // the store
	store     *lab.Process // meshd-etcd
	started   []*lab.Process
	explained map[string]string // what explain has shown of the logs
	status    status            // once it is on the mesh
}

// try runs a command and shows nothing.
func (d *demo) try(n *node, args ...string) result {
	ctx, cancel := context.WithTimeout(d.ctx, commandLimit)
	defer cancel()
	cmd := n.Command(ctx, args[0], args[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r := result{out: stdout.String(), err: stderr.String()}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		r.code, r.err = -1, fmt.Sprintf("%sended after %v\n", r.err, commandLimit)
	case errors.As(err, &exit):
		r.code = exit.ExitCode()
	case err != nil:
		r.code, r.err = -1, r.err+err.Error()+"\n"
	}
	return r
}

// run runs a command once, shows it, and checks the claim. It reports whether that holds.
func (d *demo) run(n *node, claim string, want expectation, args ...string) (result, bool) {
	d.show.command(n.Name, args...)
	begin := time.Now()
	r := d.try(n, args...)
	took := time.Since(begin)
	d.show.output(r.out + r.err)
	err := want(r)
	d.show.check(claim, took, n.explain(err))
	return r, err == nil
}

// until repeats a command until the claim holds or the time is up, and shows the last run. The time it shows counts from
// begin.
func (d *demo) until(n *node, claim string, begin time.Time, within time.Duration, want expectation, args ...string) (result, bool) {
	ctx, cancel := context.WithTimeout(d.ctx, within)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		r := d.try(n, args...)
		took := time.Since(begin)
		err := want(r)
		if err != nil {
			d.show.wait(claim, took)
			select {
			case <-tick.C:
				continue
			case <-ctx.Done():
				err = fmt.Errorf("%w, after %v", err, round(took))
			}
		}
		d.show.command(n.Name, args...)
		d.show.output(r.out + r.err)
		d.show.check(claim, took, n.explain(err))
		return r, err == nil
	}
}

// explain adds to an error what the node's background programs said last.
func (n *node) explain(err error) error {
	if err == nil {
		return nil
	}
	for _, p := range n.started {
		const lines = 12
		state := "is running"
		select {
		case <-p.Done():
			state = "has ended"
		default:
		}
		err = fmt.Errorf("%w\n%s of %s %s", err, strings.TrimSuffix(filepath.Base(p.Log), ".log"), n.Name, state)
		log := strings.TrimRight(p.Output(), "\n")
		if log == "" || n.explained[p.Log] == log {
			continue // said before
		}
		n.explained[p.Log] = log
		all := strings.Split(log, "\n")
		err = fmt.Errorf("%w; %s ends with:\n  %s", err, p.Log, strings.Join(all[max(0, len(all)-lines):], "\n  "))
	}
	return err
}

// start starts a program in the background, as "program &" does.
func (d *demo) start(n *node, args ...string) (*lab.Process, error) {
	d.show.command(n.Name, append(args, "&")...)
	p, err := n.Start(args[0], args[1:]...)
	if err != nil {
		return nil, err
	}
	n.started = append(n.started, p)
	return p, nil
}

// kill sends a signal to a background program with the host's own kill(1), and waits for its end.
func (d *demo) kill(n *node, p *lab.Process, program, signal string) error {
	pid, err := p.PID()
	if err != nil {
		return err
	}
	command := "kill -" + signal + " " + strconv.Itoa(pid)
	d.show.command(n.Name, strings.Split(command+"   # "+program, " ")...)
	if r := d.try(n, "sh", "-c", command); r.code != 0 {
		return fmt.Errorf("%s: %s", command, r.err)
	}
	ctx, cancel := context.WithTimeoutCause(d.ctx, commandLimit, fmt.Errorf("%s did not end within %v of SIG%s", program, commandLimit, signal))
	defer cancel()
	err = p.Wait(ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for i, other := range n.started {
		if other == p {
			n.started = append(n.started[:i:i], n.started[i+1:]...)
			break
		}
	}
	if signal == "KILL" {
		return nil
	}
	return err
}
