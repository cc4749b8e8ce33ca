// SPDX-License-Identifier: MIT

//go:build linux

// Demo is the program behind make demo, make demo-mesh and make demo-services: it makes hosts and networks, and a mesh of the hosts with the
// commands a user would type, and shows that it does what it should in the unchanged programs of the system, also while
// parts are dead. It shows each command with its output and says whether that was right.
//
// There are three stories. "names": three hosts whose names work in every program. "mesh": five hosts, three of them behind
// NATs, and a login and a copy that go on while a laptop moves, a line breaks and a relay is killed. "services": a web server on one of three
// hosts, which is found by its service as long as a Nagios plugin finds it well.
//
// It takes the programs of the mesh from the folder it is in. The hosts are namespaces (package lab): nothing of the
// machine is changed and nothing is left, unless KEEP=1 asks for the hosts to stay. Its last line is "N passed, N failed"
// and its exit status 1 if anything failed.
//
// It starts one goroutine, which reads what the login says and ends with it. With the argument "serve ADDRESS" it is the
// web server of one of the hosts.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
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
	name := flag.String("story", "names", "show `STORY`: names, mesh or services")
	record := flag.String("record", "", "when all was right, write it to `FILE` too, as Markdown, and pictures beside it")
	flag.Parse()
	told, ok := stories[*name]
	if !ok || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	code := run(ctx, os.Stdout, told, *record, os.Getenv("KEEP") != "" && os.Getenv("KEEP") != "0")
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

func run(ctx context.Context, out *os.File, told story, record string, keep bool) int {
	begin := time.Now()
	s := &show{out: out, terminal: isTerminal(out)}
	if err := missing(told.tools); err != nil {
		s.printf("mesh demo: error: %v\n", err)
		return 1
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the demo took longer than %v", limit))
	defer cancel()

	l := lab.New(slog.New(slog.NewTextHandler(io.Discard, nil)))
	d := &demo{ctx: ctx, show: s, lab: l, keep: keep}
	s.note("%s", machine())
	err := d.tell(told.parts(d))
	if err != nil {
		s.check("the demo goes on", 0, err)
	}
	if keep && ctx.Err() == nil {
		err = d.leave()
	} else {
		cancel() // ends the login
		err = l.Close()
	}
	if err != nil {
		s.check("the hosts end as they should", 0, err)
	}
	s.result(time.Since(begin))
	if record != "" && s.failed == 0 {
		if err := s.save(record, told); err != nil {
			s.printf("mesh demo: error: %v\n", err)
			return 1
		}
	}
	if s.failed > 0 {
		return 1
	}
	return 0
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// missing returns what keeps the demo from beginning, all of it.
func missing(tools map[string]string) error {
	err := lab.Problem()
	var packages []string
	for tool, pkg := range tools {
		if _, e := exec.LookPath(tool); e != nil && !slices.Contains(packages, pkg) {
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
