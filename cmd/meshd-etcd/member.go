// SPDX-License-Identifier: MIT

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"

	"mesh.internal/mesh/cmd/internal/config"
)

// dir is where the member's files of an epoch are: those of the first are where they have always been.
func (k *keeper) dir(epoch uint32) string {
	if epoch == 0 {
		return k.data
	}
	return filepath.Join(k.data, "epoch-"+strconv.FormatUint(uint64(epoch), 10))
}

// files is the folder that etcd makes in dir.
func files(dir string) string { return filepath.Join(dir, "member") }

func (k *keeper) has(epoch uint32) bool {
	wals, err := filepath.Glob(filepath.Join(files(k.dir(epoch)), "wal", "*.wal"))
	return err == nil && len(wals) > 0
}

// aside moves what this member has of an epoch out of the way, and what it once moved there before is gone: under its old
// ID it can never come back.
func (k *keeper) aside(epoch uint32) error {
	left := filepath.Join(k.data, "left")
	if err := os.RemoveAll(left); err != nil {
		return err
	}
	err := os.Rename(files(k.dir(epoch)), left)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// prepare makes the member ready to start and returns the cluster that it starts in, where that matters: with files of its
// own it does not.
func (k *keeper) prepare(ctx context.Context, v *config.Voter) (cluster map[string]string, err error) {
	if err := os.MkdirAll(k.data, 0o700); err != nil {
		return nil, err
	}
	switch {
	case k.has(v.Epoch):
		return nil, nil
	case len(v.Voters) > 1:
		return k.join(ctx, v)
	}
	for e := v.Epoch; e > 0; e-- {
		if k.has(e - 1) {
			return nil, k.salvage(ctx, v, e-1)
		}
	}
	return nil, nil
}

// salvage begins the store anew with what this member has of an older epoch, without the others; then it is errAgain. The
// old files stay.
func (k *keeper) salvage(ctx context.Context, v *config.Voter, old uint32) error {
	k.say("the store begins anew with what this member has of it")
	temp := k.dir(v.Epoch) + ".new"
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	if err := os.MkdirAll(temp, 0o700); err != nil {
		return err
	}
	if err := os.CopyFS(files(temp), os.DirFS(files(k.dir(old)))); err != nil {
		return fmt.Errorf("copying the old store: %w", err)
	}
	cfg := k.config(v, addrs(v), nil)
	cfg.Dir, cfg.ForceNewCluster = temp, true
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("beginning anew: %w", err)
	}
	select {
	case <-ctx.Done():
	case <-e.Server.ReadyNotify():
	case err = <-e.Err():
	case <-time.After(aloneAfter):
		err = errors.New("the member does not begin anew: its log above says why")
	}
	e.Server.Stop()
	if err != nil || ctx.Err() != nil {
		return err
	}
	return cmp.Or(os.Rename(temp, k.dir(v.Epoch)), errAgain)
}

// config is of the member. Its numbers are for some ten thousand names on a small machine.
func (k *keeper) config(v *config.Voter, peers []string, cluster map[string]string) *embed.Config {
	debug.SetGCPercent(50) // no limit beside it: what lives with 100,000 names is more than any that helps a small mesh
	cfg := embed.NewConfig()
	cfg.Name = k.name
	cfg.Dir = k.dir(v.Epoch)
	client, peer := k.at(k.addr, clientPort), k.at(k.addr, peerPort)
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	// A token of each epoch: members of two never talk to each other.
	cfg.InitialClusterToken = v.Mesh + "-" + strconv.FormatUint(uint64(v.Epoch), 10)
	cfg.InitialCluster = k.name + "=" + peer.String()
	if len(cluster) > 0 {
		var all []string
		for url, name := range cluster {
			all = append(all, name+"="+url)
		}
		cfg.InitialCluster, cfg.ClusterState = strings.Join(all, ","), embed.ClusterStateFlagExisting
	}
	tls := transport.TLSInfo{TrustedCAFile: k.paths.CAFile(), CertFile: k.paths.CertFile(), KeyFile: k.paths.KeyFile(), ClientCertAuth: true, MinVersion: 0x0304}
	cfg.ClientTLSInfo, cfg.PeerTLSInfo = tls, tls
	cfg.PeerTLSInfo.AllowedHostnames = peers // who may speak raft may write anything
	cfg.PeerTLSInfo.SkipClientSANVerify = k.anywhere
	cfg.EnableGRPCGateway = false
	cfg.TickMs = uint(heartbeat(v).Milliseconds())
	cfg.ElectionMs = max(1000, 10*cfg.TickMs)
	cfg.LogLevel = "warn"
	cfg.LogOutputs = []string{"stderr"}
	cfg.QuotaBackendBytes = quota
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = "periodic", "1h"
	cfg.SnapshotCount = 5000
	return cfg
}

// quota bounds the file of names in bytes.
const quota = 256 << 20

// heartbeat follows the longest round trip to the other members, in steps of 100 ms, up to 300 ms. An election takes ten.
func heartbeat(v *config.Voter) time.Duration {
	var longest float64 // ms
	for _, x := range v.Voters {
		longest = max(longest, x.RTT)
	}
	return min(max(time.Duration(1.5*longest/100+0.5), 1), 3) * 100 * time.Millisecond
}

func (k *keeper) at(addr netip.Addr, port string) url.URL {
	return url.URL{Scheme: "https", Host: net.JoinHostPort(addr.String(), port)}
}
