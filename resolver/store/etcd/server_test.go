// SPDX-License-Identifier: MIT

package etcd

import (
	"bufio"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/etcd/server/v3/embed"
)

// Programs of other versions, which `make test-etcd` names; without, members run in the test.
const (
	programEnv = "MESH_ETCD"     // one that must work
	ctlEnv     = "MESH_ETCDCTL"  // its etcdctl
	oldEnv     = "MESH_ETCD_OLD" // one before 3.5
)

// server is how a member is set up.
type server struct {
	program       string // of etcd; empty: programEnv's
	name          string
	client, peer  url.URL // filled in where they are empty
	cluster       string
	quota         int64
	cert, key, ca string // the server's certificate, and the CA whose clients it admits
}

// free is a loopback URL at which nobody listens.
func free(t *testing.T) url.URL {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return url.URL{Scheme: "http", Host: l.Addr().String()}
}

func (s *server) complete(t *testing.T) {
	if s.program == "" {
		s.program = os.Getenv(programEnv)
	}
	if s.name == "" {
		s.name = "member"
	}
	if s.client.Host == "" {
		s.client = free(t)
	}
	if s.cert != "" {
		s.client.Scheme = "https"
	}
	if s.peer.Host == "" {
		s.peer = free(t)
	}
	if s.cluster == "" {
		s.cluster = s.name + "=" + s.peer.String()
	}
}

// serve runs a real member and returns its endpoint and what ends it. One of several is not waited for.
func serve(t *testing.T, s server) (endpoint string, end func()) {
	t.Helper()
	s.complete(t)
	if s.program != "" {
		return s.client.String(), s.run(t)
	}
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir, cfg.LogLevel, cfg.UnsafeNoFsync = s.name, t.TempDir(), "fatal", true
	cfg.ListenClientUrls, cfg.ListenPeerUrls = []url.URL{s.client}, []url.URL{s.peer}
	cfg.AdvertiseClientUrls, cfg.AdvertisePeerUrls = cfg.ListenClientUrls, cfg.ListenPeerUrls
	cfg.InitialCluster, cfg.QuotaBackendBytes = s.cluster, s.quota
	cfg.ClientTLSInfo.CertFile, cfg.ClientTLSInfo.KeyFile = s.cert, s.key
	cfg.ClientTLSInfo.TrustedCAFile, cfg.ClientTLSInfo.ClientCertAuth = s.ca, s.ca != ""
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(e.Close)
	t.Cleanup(end)
	if !strings.Contains(s.cluster, ",") {
		<-e.Server.ReadyNotify()
	}
	return s.client.String(), end
}

// run runs the program.
func (s *server) run(t *testing.T) (end func()) {
	t.Helper()
	args := []string{"--name", s.name, "--data-dir", t.TempDir(), "--listen-client-urls", s.client.String(), "--advertise-client-urls", s.client.String(),
		"--listen-peer-urls", s.peer.String(), "--initial-advertise-peer-urls", s.peer.String(), "--initial-cluster", s.cluster, "--logger", "zap", "--log-outputs", "stdout"}
	if s.quota > 0 {
		args = append(args, "--quota-backend-bytes", fmt.Sprint(s.quota))
	}
	if s.cert != "" {
		args = append(args, "--cert-file", s.cert, "--key-file", s.key)
	}
	if s.ca != "" {
		args = append(args, "--trusted-ca-file", s.ca, "--client-cert-auth")
	}
	cmd := exec.Command(s.program, args...)
	cmd.SysProcAttr = withUs()
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	ready, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		said := sync.OnceFunc(func() { close(ready) })
		defer said()
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if line := lines.Text(); strings.Contains(line, "ready to serve client requests") || strings.Contains(line, "serving client traffic") { // 3.5, 3.4
				said()
			}
		}
	}()
	end = sync.OnceFunc(func() {
		cmd.Process.Kill()
		<-ended
		cmd.Wait()
	})
	t.Cleanup(end)
	if !strings.Contains(s.cluster, ",") {
		<-ready
	}
	return end
}

// serveThree runs a cluster of three.
func serveThree(t *testing.T) (endpoints []string, end []func()) {
	t.Helper()
	var all []server
	var cluster []string
	for i := range 3 {
		s := server{name: fmt.Sprintf("m%d", i), client: free(t), peer: free(t)}
		all, cluster = append(all, s), append(cluster, s.name+"="+s.peer.String())
	}
	for _, s := range all {
		s.cluster = strings.Join(cluster, ",")
		endpoint, stop := serve(t, s)
		endpoints, end = append(endpoints, endpoint), append(end, stop)
	}
	return endpoints, end
}
