// SPDX-License-Identifier: MIT

// Command mesh is how people talk to their mesh: it makes one, invites to it, joins it, and shows what is on it. All but
// init, join, snapshot and doctor need meshd, through its socket. Errors go to standard error as "mesh: error: …" and, where
// there is something to do about it, "mesh: hint: …"; the exit status is then 1, and 2 for wrong usage; doctor's is 1 too
// when it has found a problem.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/cmd/internal/config"
)

var version = "unknown" // set by the linker

// hinted is an error with what to do about it.
type hinted struct {
	error
	hint string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := command().ExecuteContext(ctx)
	if err == nil {
		return
	}
	if errors.Is(err, errFound) { // and shown
		stop()
		os.Exit(1)
	}
	fmt.Fprintln(os.Stderr, "mesh: error:", err)
	var h hinted
	if errors.As(err, &h) {
		fmt.Fprintln(os.Stderr, "mesh: hint:", h.hint)
	}
	stop()
	os.Exit(1)
}

// app is what every command shares.
type app struct{ paths config.Paths }

func (a *app) client() api.Client { return api.Client{Path: a.paths.Socket()} }

func command() *cobra.Command {
	a := &app{paths: config.DefaultPaths}
	root := &cobra.Command{
		Use: "mesh", Short: "names and tunnels among friends", Version: version,
		Long:         "Puts this machine on an encrypted mesh of your own, and shows what is on it: every program on every node can use the names of the others. All commands but init, join and snapshot ask meshd, the daemon.",
		SilenceUsage: true, SilenceErrors: true, Args: cobra.NoArgs,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetVersionTemplate("mesh {{.Version}}\n")
	f := root.PersistentFlags()
	f.StringVar(&a.paths.Config, "config", a.paths.Config, "configuration `file`")
	f.StringVar(&a.paths.State, "state", a.paths.State, "state `directory`")
	f.StringVar(&a.paths.Run, "run", a.paths.Run, "`directory` of the snapshot and the API's socket")
	root.AddCommand(a.initCommand(), a.inviteCommand(), a.joinCommand(), a.evictCommand(), a.grantCommand(), a.revokeCommand())
	root.AddCommand(a.statusCommand(), a.hostsCommand(), a.hostCommand(), a.groupCommand(), a.watchCommand(), a.whyCommand(), a.importCommand(), a.storeCommand())
	root.AddCommand(a.serviceCommand(), a.checksCommand(), a.dnsCommand(), a.doctorCommand(), a.snapshotCommand(), manCommand())
	root.AddCommand(a.pingCommand(), a.pathCommand(), a.netcheckCommand(), a.graphCommand())
	return root
}
