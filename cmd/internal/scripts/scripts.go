// SPDX-License-Identifier: MIT

// Package scripts runs the administrator's programs when something happens on the mesh, by tinc's names and environment
// (tinc.conf(5), SCRIPTS), but never in the way of packets: one after the other, each with a time limit.
//
//	mesh-up, mesh-down              the interface is there; it is about to go
//	host-up, host-down              a node is reached; it is reached no more
//	hosts/NODE-up, hosts/NODE-down  the same for one node
//	subnet-up, subnet-down          a network has a router; it has none, or another
//
// They get NETNAME, NAME, DEVICE, INTERFACE, and of the event NODE, REMOTEADDRESS, REMOTEPORT, SUBNET and WEIGHT. A script
// runs as meshd's user, with its rights and no more of its environment than PATH. New starts nothing; Run owns the goroutine and
// every program it starts, and all are gone when it returns. Tell may be called from any goroutine and does not block.
package scripts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Config is what a Runner needs.
type Config struct {
	Dir       string // where the scripts are; it need not exist
	Mesh      string // NETNAME
	Name      string // this node's
	Interface string
	Log       *slog.Logger
}

// Event is what happened.
type Event struct {
	Kind   string // the script's name: "host-up"
	Node   string
	Addr   string // where a node was reached directly; empty: through others
	Port   string
	Subnet string
	Weight string
}

const (
	limit     = 30 * time.Second // of one script
	maxQueued = 256              // events that wait
	maxOutput = 4096             // bytes of a script's output that are logged
)

// Runner runs scripts.
type Runner struct {
	cfg   Config
	queue chan Event
}

// New prepares a runner.
func New(cfg Config) *Runner { return &Runner{cfg, make(chan Event, maxQueued)} }

// Tell has the scripts of an event run. When too many wait it is dropped, which is logged.
func (r *Runner) Tell(e Event) {
	select {
	case r.queue <- e:
	default:
		r.cfg.Log.Warn("scripts are too slow for what happens: one is left out", "script", e.Kind, "peer", e.Node)
	}
}

// Run runs scripts until ctx ends, and mesh-down after that.
func (r *Runner) Run(ctx context.Context) {
	r.run(ctx, Event{Kind: "mesh-up"})
	for {
		select {
		case <-ctx.Done():
			r.run(context.WithoutCancel(ctx), Event{Kind: "mesh-down"})
			return
		case e := <-r.queue:
			r.run(ctx, e)
		}
	}
}

func (r *Runner) run(ctx context.Context, e Event) {
	names := []string{e.Kind}
	if host, found := strings.CutPrefix(e.Kind, "host-"); found {
		names = append(names, filepath.Join("hosts", e.Node+"-"+host))
	}
	for _, name := range names {
		path := filepath.Join(r.cfg.Dir, name)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := r.script(ctx, path, e); err != nil && ctx.Err() == nil {
			r.cfg.Log.Warn("a script failed", "script", path, "peer", e.Node, "err", err)
		}
	}
}

func (r *Runner) script(ctx context.Context, path string, e Event) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	cmd.Dir = r.cfg.Dir
	cmd.Env = append(environ(r.cfg, e), "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	out := &head{left: maxOutput}
	cmd.Stdout, cmd.Stderr = out, out
	own(cmd)
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	switch {
	case ctx.Err() == context.DeadlineExceeded:
		err = fmt.Errorf("it did not end within %s and was killed", limit)
	case errors.Is(err, fs.ErrPermission):
		err = fmt.Errorf("%w: it must be executable for the user of meshd (chmod 755)", err)
	}
	if b := bytes.TrimSpace(out.b.Bytes()); len(b) > 0 {
		r.cfg.Log.Info("a script says", "script", path, "output", string(b))
	}
	return err
}

// environ is a script's environment: what does not apply is not there, as in tinc.
func environ(c Config, e Event) (env []string) {
	for _, v := range [][2]string{{"NETNAME", c.Mesh}, {"NAME", c.Name}, {"DEVICE", "/dev/net/tun"}, {"INTERFACE", c.Interface}, {"NODE", e.Node},
		{"REMOTEADDRESS", e.Addr}, {"REMOTEPORT", e.Port}, {"SUBNET", e.Subnet}, {"WEIGHT", e.Weight}} {
		if v[1] != "" {
			env = append(env, v[0]+"="+v[1])
		}
	}
	return env
}

// head keeps the beginning of what is written to it.
type head struct {
	b    bytes.Buffer
	left int
}

func (h *head) Write(b []byte) (int, error) {
	n := min(len(b), h.left)
	h.b.Write(b[:n])
	h.left -= n
	return len(b), nil
}
