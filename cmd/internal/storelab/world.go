// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/cmd/internal/lab"
)

// world is the hosts and what is known of them.
type world struct {
	ctx     context.Context
	built   string
	lab     *lab.Lab
	nodes   []*node
	rows    [][]string
	history *history
}

// node is a host on the mesh.
type node struct {
	w      *world
	name   string
	host   *lab.Host
	link   *lab.Link
	meshd  *lab.Process
	keeper *lab.Process // meshd-etcd

	looking sync.Mutex // held while somebody looks at what it shows
}

func (w *world) node(name string, router *lab.Host) *node {
	n := &node{w: w, name: name}
	n.host = must1(w.lab.Host(name))
	n.link = must1(w.lab.Connect(n.host, router))
	for program, to := range map[string]string{"mesh": "/usr/bin/mesh", "meshd": "/usr/sbin/meshd", "meshd-etcd": "/usr/sbin/meshd-etcd"} {
		must(n.host.Install(filepath.Join(w.built, program), to, 0o755))
	}
	for _, program := range []string{"meshd", "meshd-etcd"} {
		must(n.host.Install(filepath.Join(w.built, "skewed", program), "/usr/sbin/skewed-"+program, 0o755))
	}
	must(n.host.Install(must1(os.Executable()), "/usr/bin/storelab", 0o755))
	w.nodes = append(w.nodes, n)
	return n
}

// start starts meshd and waits until it answers; and meshd-etcd, which waits until it is to do something.
func (n *node) start() { n.startAs("") }

// startAs starts the programs of another build.
func (n *node) startAs(build string) {
	n.meshd = must1(n.host.Start(build + "meshd"))
	n.until("meshd answers", func() error { _, err := n.status(); return err })
	n.keeper = must1(n.host.Start(build + "meshd-etcd"))
}

// stop ends the programs as a machine does that is switched off.
func (n *node) stop() {
	end(n.keeper, unix.SIGTERM)
	end(n.meshd, unix.SIGTERM)
}

func (n *node) startKeeper() { n.keeper = must1(n.host.Start("meshd-etcd")) }

// end ends a process and waits for it.
func end(p *lab.Process, sig os.Signal) {
	p.Signal(sig)
	<-p.Done()
}

// off is the host without power.
func (n *node) off() {
	end(n.keeper, unix.SIGKILL)
	end(n.meshd, unix.SIGKILL)
	var kept time.Time
	must(n.host.Do(func() error {
		names, err := os.Stat("/var/lib/mesh/names.json")
		if err != nil {
			return err
		}
		kept = names.ModTime()
		if later, err := os.Stat("/var/lib/mesh/names.log"); err == nil {
			kept = later.ModTime() // it goes when names.json is made anew
		}
		return nil
	}))
	n.w.history.reborn(n, kept)
}

// client talks to the node's meshd, from outside of the host.
func (n *node) client() api.Client {
	return api.Client{Path: fmt.Sprintf("/proc/%d/root/run/mesh/mesh.sock", n.host.PID)}
}

func (n *node) ask(method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(n.w.ctx, 10*time.Second)
	defer cancel()
	return n.client().Do(ctx, method, path, in, out)
}

func (n *node) status() (s api.Status, err error) { return s, n.ask("GET", "/v1/status", nil, &s) }
func (n *node) book() (b api.Book, err error)     { return b, n.ask("GET", "/v1/store", nil, &b) }

// mesh runs the command.
func (n *node) mesh(args ...string) string {
	ctx, cancel := context.WithTimeout(n.w.ctx, 3*time.Minute)
	defer cancel()
	return must1(n.host.Run(ctx, "mesh", args...))
}

// until waits until there is no error, and returns how long that took.
func (n *node) until(what string, ok func() error) time.Duration {
	return n.w.until(n.name+": "+what, ok)
}

func (w *world) until(what string, ok func() error) time.Duration {
	begin := time.Now()
	var err error
	for time.Since(begin) < time.Minute {
		if err = ok(); err == nil {
			return time.Since(begin)
		}
		select {
		case <-w.ctx.Done():
			must(w.ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
	panic(stop{fmt.Errorf("%s: not within a minute: %w", what, err)})
}

// voters waits until these nodes keep the store, and nobody else.
func (w *world) voters(at *node, names ...string) time.Duration {
	return at.until("the store is kept by "+strings.Join(names, ", "), func() error {
		b, err := at.book()
		if err != nil {
			return err
		}
		var is []string
		for _, v := range b.Voters {
			if v.State != "leader" && v.State != "follower" {
				return fmt.Errorf("%s is %s: %s", v.Name, v.State, v.Error)
			}
			is = append(is, v.Name)
		}
		if strings.Join(is, " ") != strings.Join(names, " ") || !b.Quorum || len(b.Leaving) > 0 {
			return fmt.Errorf("it is kept by %s, leaving are %s", is, b.Leaving)
		}
		return nil
	})
}

// leader is the node whose member leads.
func (w *world) leader(at *node) *node {
	for _, v := range must1(at.book()).Voters {
		if v.State == "leader" {
			return w.called(v.Name)
		}
	}
	panic(stop{errors.New("nobody leads")})
}

func (w *world) called(name string) *node {
	for _, n := range w.nodes {
		if n.name == name {
			return n
		}
	}
	panic(stop{fmt.Errorf("no node %s", name)})
}

// same waits until these nodes show the same names, and all that was promised to the writers until now.
func (w *world) same(nodes ...*node) time.Duration {
	want := w.history.wanted(nodes)
	return w.until("all nodes show the same", func() error {
		for _, n := range nodes {
			if name, err := n.shows(want); err != nil {
				return fmt.Errorf("%w; its owner says:\n%s", err, w.called(w.history.ownerOf(name)).explain(name))
			}
		}
		return nil
	})
}

// explain is what a node knows of a name, in words.
func (n *node) explain(name string) string {
	ctx, cancel := context.WithTimeout(n.w.ctx, 5*time.Second)
	defer cancel()
	out, err := n.host.Command(ctx, "mesh", "why", name).CombinedOutput()
	if err != nil {
		return err.Error()
	}
	return string(out)
}

func (n *node) keepLogs(dir string) {
	for _, p := range []string{"meshd", "meshd-etcd", "skewed-meshd", "skewed-meshd-etcd"} {
		if b, err := n.host.ReadFile("/var/log/" + p + ".log"); err == nil {
			os.WriteFile(filepath.Join(dir, n.name+"."+p+".log"), b, 0o644)
		}
	}
}

func (w *world) keepLogs(dir string) {
	if dir == "" || os.MkdirAll(dir, 0o755) != nil {
		return
	}
	for _, n := range w.nodes {
		n.keepLogs(dir)
	}
}
