// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
)

// playMember is a member of etcd, set up as cmd/meshd-etcd does, until its input ends.
func playMember(in io.Reader, out io.Writer) error {
	lines := bufio.NewReader(in)
	var p place
	if err := readJSON(lines, &p); err != nil {
		return err
	}
	debug.SetGCPercent(50)
	at := func(i int, port string) url.URL { return url.URL{Scheme: "https", Host: address(i) + ":" + port} }
	self := slices.Index(people, p.Name)
	var cluster []string
	for i := range p.Members {
		peer := at(i, "2380")
		cluster = append(cluster, people[i]+"="+peer.String())
	}
	paths := p.paths(p.Name)
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = p.Name, filepath.Join(paths.State, "etcd")
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{at(self, "2379")}, []url.URL{at(self, "2379")}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{at(self, "2380")}, []url.URL{at(self, "2380")}
	cfg.InitialCluster = strings.Join(cluster, ",")
	tls := transport.TLSInfo{TrustedCAFile: paths.CAFile(), CertFile: paths.CertFile(), KeyFile: paths.KeyFile(), ClientCertAuth: true, MinVersion: 0x0304}
	cfg.ClientTLSInfo, cfg.PeerTLSInfo = tls, tls
	cfg.LogLevel, cfg.LogOutputs = "error", []string{"stderr"}
	cfg.QuotaBackendBytes = 256 << 20
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = "periodic", "1h"
	cfg.SnapshotCount = 5000
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return err
	}
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		return err
	}
	fmt.Fprintln(out, `{}`)
	io.Copy(io.Discard, lines)
	e.Server.Stop()
	return nil
}

func readJSON(r *bufio.Reader, v any) error {
	line, err := r.ReadBytes('\n')
	if err != nil {
		return errEnded
	}
	return json.Unmarshal(line, v)
}
