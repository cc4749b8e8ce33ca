// SPDX-License-Identifier: MIT

package main

import (
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"mesh.internal/mesh/cmd/internal/api"
)

// book plays a daemon that keeps hosts.
type book struct {
	mu      sync.Mutex
	hosts   []api.Host
	patched int
}

func (b *book) serve(t *testing.T) (run string) {
	run = t.TempDir()
	l, err := net.Listen("unix", filepath.Join(run, "mesh.sock"))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(api.Status{Domain: "mesh.internal", Self: api.Self{Name: "nibz"}})
	})
	mux.HandleFunc("GET /v1/hosts", func(w http.ResponseWriter, _ *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		json.NewEncoder(w).Encode(api.Hosts{Domain: "mesh.internal", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.11.0.0/16")}, Hosts: b.hosts})
	})
	mux.HandleFunc("PATCH /v1/hosts/{name}", func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		var c api.HostChange
		json.NewDecoder(r.Body).Decode(&c)
		name := r.PathValue("name")
		if name == "reserved" {
			w.WriteHeader(http.StatusUnprocessableEntity)
			json.NewEncoder(w).Encode(api.Error{Message: "the name reserved is taken: it belongs to bkero"})
			return
		}
		b.patched++
		i := slices.IndexFunc(b.hosts, func(h api.Host) bool { return h.Name == name })
		if i < 0 {
			i = len(b.hosts)
			b.hosts = append(b.hosts, api.Host{Name: name, Owner: "nibz"})
		}
		b.hosts[i].Addrs, b.hosts[i].Aliases = append(b.hosts[i].Addrs, c.Add.Addrs...), append(b.hosts[i].Aliases, c.Add.Aliases...)
		json.NewEncoder(w).Encode(api.Change{Landed: true})
	})
	srv := &http.Server{Handler: mux}
	ended := make(chan struct{})
	go func() { srv.Serve(l); close(ended) }()
	t.Cleanup(func() { srv.Close(); <-ended })
	return run
}

// TestImport imports a hosts file: without doing it, doing it, and again.
func TestImport(t *testing.T) {
	var b book
	run := b.serve(t)
	file := filepath.Join(run, "hosts.txt")
	if err := os.WriteFile(file, []byte("127.0.0.1 localhost\n10.11.0.77 printer laser\n10.11.0.78 reserved\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const left = "hosts.txt:1 127.0.0.1 localhost: that address means something on its own machine or link only\n"
	for _, c := range []struct {
		args, want, err string
		patched         int
	}{
		{"import hosts --dry-run " + file, "left " + left + "would take hosts.txt:2 printer 10.11.0.77 (laser)\nwould take hosts.txt:3 reserved 10.11.0.78\nwould take 2, there already 0, left 1\n", "", 0},
		{"import hosts " + file, "left " + left + "took hosts.txt:2 printer 10.11.0.77 (laser)\nleft hosts.txt:3 reserved 10.11.0.78: the name reserved is taken: it belongs to bkero\ntook 1, there already 0, left 2\n", "1 of them could not be added", 1},
		{"import hosts " + file, "left " + left + "there hosts.txt:2 printer 10.11.0.77 (laser)\nleft hosts.txt:3 reserved 10.11.0.78: the name reserved is taken: it belongs to bkero\ntook 0, there already 1, left 2\n", "1 of them could not be added", 1},
		{"import hosts " + file + "x", "", "no such file", 1},
		{"import tinc " + run, "", "no configuration of tinc", 1},
	} {
		cmd := command()
		var out strings.Builder
		cmd.SetArgs(append(strings.Fields(c.args), "--run", run))
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		err := cmd.ExecuteContext(t.Context())
		var got strings.Builder
		for line := range strings.Lines(out.String()) {
			got.WriteString(strings.Join(strings.Fields(line), " ") + "\n")
		}
		if got.String() != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) || b.patched != c.patched {
			t.Errorf("%s: %v, patched %d, got\n%s\nwant\n%s", c.args, err, b.patched, got.String(), c.want)
		}
	}
}

// TestHostCommands asks the commands for what they send.
func TestHostCommands(t *testing.T) {
	var b book
	run := b.serve(t)
	for _, c := range []struct{ args, err string }{
		{"host add printer 10.11.0.77 10.11.0.78 --alias laser --meta location=a,b --meta x=y=z", ""},
		{"host add printer ten", "is not an address"},
		{"host add printer 10.11.0.1 --meta location", "is not key=value"},
		{"host set printer", "nothing is to be changed"},
		{"host alias add printer ink", ""},
		{"host alias add printer", "requires at least 2"},
	} {
		cmd := command()
		cmd.SetArgs(append(strings.Fields(c.args), "--run", run))
		cmd.SetOut(new(strings.Builder))
		cmd.SetErr(new(strings.Builder))
		if err := cmd.ExecuteContext(t.Context()); (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", c.args, err, c.err)
		}
	}
	if len(b.hosts) != 1 || len(b.hosts[0].Addrs) != 2 || !slices.Equal(b.hosts[0].Aliases, []string{"laser", "ink"}) {
		t.Errorf("the daemon was told %+v", b.hosts)
	}
	meta, err := parseMeta([]string{"location=a,b", "x=y=z", "gone="})
	if err != nil || meta["location"] != "a,b" || meta["x"] != "y=z" || len(meta) != 3 {
		t.Errorf("%v %v", meta, err)
	}
}
