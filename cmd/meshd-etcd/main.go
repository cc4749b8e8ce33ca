// SPDX-License-Identifier: MIT

// Command meshd-etcd is the book of names that a mesh's first node runs: one etcd member, in its own process, so that
// a panic or a full disk there never touches the tunnels. It runs in the foreground, listens on the node's mesh address
// only, and admits only members of the mesh (mutual TLS with the mesh's own CA).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"

	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/vpn/netif"
)

var version = "unknown" // set by the linker

func main() {
	paths := config.DefaultPaths
	flag.StringVar(&paths.Config, "config", paths.Config, "configuration `file`")
	flag.StringVar(&paths.State, "state", paths.State, "`directory` of ca.crt, node.crt and node.key")
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
	if err := run(ctx, paths, *data); err != nil {
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
	if !c.Store.Embedded {
		return fmt.Errorf("%s does not say store = \"embedded\": this node uses a store elsewhere, so nothing is to be run here", paths.Config)
	}
	self, err := paths.LoadNode() // no more than the certificates: the unit gives this process no other key
	if err != nil {
		return err
	}
	addr := self.Addrs[0]
	if err := waitFor(ctx, addr, c.Interface); err != nil || ctx.Err() != nil {
		return err
	}
	e, err := start(self.Name, addr, paths, data)
	if err != nil {
		return explain(err, addr)
	}
	// A member that waits for a majority of the others is up too, so that booting goes on and nobody restarts it.
	alone := time.NewTimer(30 * time.Second)
	defer alone.Stop()
	select {
	case <-e.Server.ReadyNotify():
		sd.SdNotify(false, sd.SdNotifyReady)
	case <-alone.C:
		sd.SdNotify(false, sd.SdNotifyReady+"\nSTATUS=Waiting for a majority of the members")
	case err := <-e.Err():
		return explain(err, addr)
	case <-ctx.Done():
	}
	select {
	case <-ctx.Done():
		sd.SdNotify(false, sd.SdNotifyStopping)
		// Not e.Close, which first waits seven seconds for the members' watches to end: this hands the lead over and
		// closes the files, and what was acknowledged is on the disk.
		e.Server.Stop()
		return nil
	case err := <-e.Err():
		return explain(err, addr)
	case <-e.Server.StopNotify():
		return errors.New("etcd has stopped by itself: its log above says why")
	}
}

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
	say := time.NewTimer(2 * time.Second)
	defer say.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			ended <- nil
			return err
		case <-say.C:
			fmt.Fprintf(os.Stderr, "meshd-etcd: waiting for the address %s on %s, which meshd gives this machine\n", addr, iface)
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

// start runs the member. Its numbers are for some ten thousand names on a small machine.
func start(name string, addr netip.Addr, paths config.Paths, data string) (*embed.Etcd, error) {
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(64 << 20)
	cfg := embed.NewConfig()
	cfg.Name = name
	cfg.Dir = data
	client, peer := at(addr, clientPort), at(addr, peerPort)
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = name + "=" + peer.String()
	tls := transport.TLSInfo{TrustedCAFile: paths.CAFile(), CertFile: paths.CertFile(), KeyFile: paths.KeyFile(), ClientCertAuth: true, MinVersion: 0x0304}
	cfg.ClientTLSInfo, cfg.PeerTLSInfo = tls, tls
	cfg.LogLevel = "warn"
	cfg.LogOutputs = []string{"stderr"}
	cfg.QuotaBackendBytes = 256 << 20
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = "periodic", "1h"
	cfg.SnapshotCount = 5000
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	return embed.StartEtcd(cfg)
}

func at(addr netip.Addr, port string) url.URL {
	return url.URL{Scheme: "https", Host: netip.AddrPortFrom(addr, 0).Addr().String() + ":" + port}
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
