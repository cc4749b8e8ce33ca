// SPDX-License-Identifier: MIT

//go:build linux

// Demo is the program behind make demo: it starts three hosts and a router, makes a mesh of the hosts with the commands a
// user would type, and shows that names work in the unchanged programs of the system, also while parts of the mesh are
// dead. It shows each command with its output and says whether that was right.
//
// It takes the programs of the mesh from the folder it is in. The hosts are namespaces (package lab): nothing of the
// machine is changed and nothing is left, unless KEEP=1 asks for the hosts to stay. Its last line is "N passed, N failed"
// and its exit status 1 if anything failed.
//
// It starts no goroutine of its own. With the argument "serve ADDRESS" it is the web server of one of the hosts.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"mesh.internal/mesh/cmd/internal/lab"
)

// limit bounds the whole demo; it needs a fraction.
const limit = 5 * time.Minute

func main() {
	if len(os.Args) == 3 && os.Args[1] == "serve" {
		fmt.Fprintln(os.Stderr, serve(os.Args[2]))
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	code := run(ctx, os.Stdout, os.Getenv("KEEP") != "" && os.Getenv("KEEP") != "0")
	stop()
	os.Exit(code)
}

// serve answers every request with a greeting from this host.
func serve(addr string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	server := http.Server{Addr: addr, ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "hello from %s\n", host) })}
	return server.ListenAndServe()
}

func run(ctx context.Context, out *os.File, keep bool) int {
	begin := time.Now()
	s := &show{out: out, terminal: isTerminal(out)}
	if err := missing(); err != nil {
		s.printf("mesh demo: error: %v\n", err)
		return 1
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the demo took longer than %v", limit))
	defer cancel()

	l := lab.New(slog.New(slog.NewTextHandler(io.Discard, nil)))
	d := &demo{ctx: ctx, show: s, lab: l, keep: keep}
	err := d.story()
	if err != nil {
		s.check("the demo goes on", 0, err)
	}
	if keep && ctx.Err() == nil {
		err = d.leave()
	} else {
		err = l.Close()
	}
	if err != nil {
		s.check("the hosts end as they should", 0, err)
	}
	s.result(time.Since(begin))
	if s.failed > 0 {
		return 1
	}
	return 0
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// tools are the programs of the system that the demo shows, and the packages that have them.
var tools = map[string]string{"ping": "iputils-ping", "dig": "bind9-dnsutils", "curl": "curl", "getent": "libc-bin", "ip": "iproute2"}

// missing returns what keeps the demo from beginning, all of it.
func missing() error {
	err := lab.Problem()
	var packages []string
	for tool, pkg := range tools {
		if _, e := exec.LookPath(tool); e != nil {
			packages = append(packages, pkg)
		}
	}
	if len(packages) > 0 {
		err = errors.Join(err, fmt.Errorf("not installed: %s", strings.Join(packages, " ")))
	}
	for _, program := range []string{"mesh", "meshd", "meshd-etcd", module} {
		if _, e := os.Stat(built(program)); e != nil {
			err = errors.Join(err, fmt.Errorf("not built: %w; run make build", e))
		}
	}
	return err
}

const module = "libnss_mesh.so.2"

// built returns where a program of the mesh is.
func built(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}
