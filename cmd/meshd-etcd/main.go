// SPDX-License-Identifier: MIT

// Command meshd-etcd keeps the mesh's book of names, or one of its copies: an etcd member, in its own process, so that a
// panic or a full disk there never touches the tunnels. It runs in the foreground, listens on the node's mesh address
// only, and admits only members of the mesh (mutual TLS with the mesh's own CA), and at the port where members of etcd talk
// among themselves only those.
//
// meshd of the same machine tells it by a file (config.Voter) which nodes are to keep the store. It brings about what
// should be: it joins the others, comes back when its disk was lost, leaves, begins anew; the one that leads takes away who
// is to go and gives each node its permissions. It never asks anybody to do anything.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/vpn/netif"
)

var version = "unknown" // set by the linker

func main() {
	paths := config.DefaultPaths
	flag.StringVar(&paths.Config, "config", paths.Config, "configuration `file`")
	flag.StringVar(&paths.State, "state", paths.State, "`directory` of ca.crt, node.crt and node.key")
	flag.StringVar(&paths.Run, "run", paths.Run, "`directory` where meshd says what is to be done")
	data := flag.String("data", "", "`directory` of the store (default: etcd below the state directory)")
	show := flag.Bool("version", false, "print the version")
	flag.Parse()
	if *show {
		fmt.Println("meshd-etcd", version)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if *data == "" {
		*data = filepath.Join(paths.State, "etcd")
	}
	err := run(ctx, paths, *data)
	if errors.Is(err, errAgain) {
		stop()
		err = again()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "meshd-etcd:", err)
		os.Exit(1)
	}
}

// The ports that etcd has by convention.
const (
	clientPort = "2379"
	peerPort   = "2380"
)

func run(ctx context.Context, paths config.Paths, data string) error {
	c, err := config.Load(paths.Config)
	if err != nil {
		return err
	}
	self, err := paths.LoadNode() // no more than the certificates: the unit gives this process no other key
	if err != nil {
		return err
	}
	k := &keeper{name: self.Name, addr: self.Addrs[0], paths: paths, data: data, say: say, now: paths.LoadVoter}
	k.ready = func(ctx context.Context) error { return waitFor(ctx, k.addr, c.Interface) }
	return k.run(ctx)
}

// again has this process begin anew. A member that is stopped and started within one process leaves connections behind
// at which the old one answers.
func again() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return syscall.Exec(self, os.Args, os.Environ())
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "meshd-etcd: "+format+"\n", args...) }

// waitFor waits until the machine has the mesh address, which meshd gives it: etcd cannot listen before.
func waitFor(ctx context.Context, addr netip.Addr, iface string) error {
	ctx, cancel := context.WithCancel(ctx)
	changed, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		ended <- netif.Watch(ctx, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	defer func() {
		cancel()
		<-ended
	}()
	late := time.NewTimer(2 * time.Second)
	defer late.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			ended <- nil
			return err
		case <-late.C:
			say("waiting for the address %s on %s, which meshd gives this machine", addr, iface)
		case <-changed:
			there, err := net.InterfaceAddrs()
			if err != nil {
				return fmt.Errorf("listing the machine's addresses: %w", err)
			}
			for _, n := range there {
				if p, err := netip.ParsePrefix(n.String()); err == nil && p.Addr() == addr {
					return nil
				}
			}
		}
	}
}

// explain puts etcd's errors into words that say what to do.
func explain(err error, addr netip.Addr) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE) || strings.Contains(err.Error(), "address already in use"):
		return fmt.Errorf("port %s or %s of %s is in use: is another meshd-etcd or etcd running? (%w)", clientPort, peerPort, addr, err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("the data directory cannot be written: %w", err)
	}
	return fmt.Errorf("etcd: %w", err)
}
