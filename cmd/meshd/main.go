// SPDX-License-Identifier: MIT

// Command meshd keeps this machine on its mesh: tunnels, names, DNS. It runs in the foreground and ends cleanly on
// SIGTERM; SIGHUP reads the configuration again.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"

	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/cmd/internal/daemon"
	"mesh.internal/mesh/resolver/health"
)

var version = "unknown" // set by the linker

func main() {
	paths := config.DefaultPaths
	flag.StringVar(&paths.Config, "config", paths.Config, "configuration `file`")
	flag.StringVar(&paths.State, "state", paths.State, "state `directory`")
	flag.StringVar(&paths.Run, "run", paths.Run, "`directory` of the snapshot and the API's socket")
	check := flag.Bool("check", false, "check configuration and state, and end")
	programs := flag.Bool("programs", false, "run programs of health checks, as meshd-check@.service does, and be no node")
	show := flag.Bool("version", false, "print the version")
	flag.Parse()
	if *show {
		fmt.Println("meshd", version)
		return
	}
	if *check {
		if err := daemon.Check(paths); err != nil {
			fmt.Fprintln(os.Stderr, "meshd:", err)
			os.Exit(1)
		}
		return
	}
	if *programs {
		if err := servePrograms(); err != nil {
			fmt.Fprintln(os.Stderr, "meshd:", err)
			os.Exit(1)
		}
		return
	}
	debug.SetGCPercent(50) // a small machine's memory before its last per cent of speed
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	level := new(slog.LevelVar)
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	if err := daemon.Run(ctx, daemon.Options{Paths: paths, Version: version, Level: level, Log: log, Reload: reload}); err != nil {
		fmt.Fprintln(os.Stderr, "meshd:", err)
		os.Exit(1)
	}
}

// servePrograms runs the programs that a meshd of another user hands over at the socket that systemd has opened.
func servePrograms() error {
	listeners, err := activation.Listeners()
	if err != nil {
		return err
	}
	if len(listeners) != 1 {
		return fmt.Errorf("-programs is for meshd-check@.service: systemd gives it a socket, and here are %d", len(listeners))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return health.ServePrograms(ctx, listeners[0])
}
