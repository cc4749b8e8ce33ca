// SPDX-License-Identifier: MIT

package main

import (
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"mesh.internal/mesh/cmd/internal/api"
)

// TestEvictAsks plays the daemon: nothing is done unless a person says yes.
func TestEvictAsks(t *testing.T) {
	run := t.TempDir()
	l, err := net.Listen("unix", run+"/mesh.sock")
	if err != nil {
		t.Fatal(err)
	}
	var done atomic.Pointer[api.Evict]
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(api.Status{Domain: "mesh.internal", Self: api.Self{Name: "spencer", MayInvite: true}, Peers: []api.Peer{{Name: "bkero"}}})
	})
	mux.HandleFunc("POST /v1/evict", func(w http.ResponseWriter, r *http.Request) {
		var q api.Evict
		json.NewDecoder(r.Body).Decode(&q)
		done.Store(&q)
		json.NewEncoder(w).Encode(api.Evicted{Name: q.Name, By: "spencer", At: time.Now()})
	})
	srv := &http.Server{Handler: mux}
	ended := make(chan struct{})
	go func() { srv.Serve(l); close(ended) }()
	defer func() { srv.Close(); <-ended }()
	for _, c := range []struct {
		args, in, err string
	}{
		{"evict bkero", "\n", "nothing was done"},
		{"evict bkero", "no\n", "nothing was done"},
		{"evict bkero", "", "nothing was done"},
		{"evict nibz --yes", "", "there is no node nibz"},
		{"evict spencer --yes", "", "is this node"},
		{"evict BKERO.mesh.internal", "y\n", ""},
		{"evict bkero --yes --reason stolen", "", ""},
	} {
		done.Store(nil)
		cmd := command()
		var out strings.Builder
		cmd.SetArgs(append(strings.Fields(c.args), "--run", run))
		cmd.SetIn(strings.NewReader(c.in))
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		err := cmd.ExecuteContext(t.Context())
		q := done.Load()
		switch {
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err) || q != nil):
			t.Errorf("%s, %q: %v, done %v", c.args, c.in, err, q)
		case c.err == "" && (err != nil || q == nil || q.Name != "bkero" || !strings.Contains(out.String(), "That spreads now")):
			t.Errorf("%s, %q: %v, done %v, %s", c.args, c.in, err, q, out.String())
		}
	}
}
