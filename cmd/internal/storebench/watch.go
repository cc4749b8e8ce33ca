// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// watch reads what members count of themselves, and what went over the loopback interface, which is all of it.
type watch struct {
	http      *http.Client
	endpoints []string
	own       traffic // what reading takes itself
	database  float64 // MiB, of the first member
}

func newWatch(p place) (*watch, error) {
	id, err := p.paths("c").LoadIdentity()
	if err != nil {
		return nil, err
	}
	w := &watch{http: &http.Client{Transport: &http.Transport{TLSClientConfig: id.TLS()}}, endpoints: p.Endpoints}
	if _, err := w.read(); err != nil { // connects
		return nil, err
	}
	first, err := w.read()
	if err != nil {
		return nil, err
	}
	second, err := w.read()
	w.own = second.minus(first)
	w.own.syncs, w.own.requests, w.own.told = 0, 0, 0
	return w, err
}

// read is what there was so far.
func (w *watch) read() (t traffic, err error) {
	t.wire = loopback()
	for i, e := range w.endpoints {
		r, err := w.http.Get(e + "/metrics")
		if err != nil {
			return t, fmt.Errorf("asking a member for what it counts: %w", err)
		}
		for lines := bufio.NewScanner(r.Body); lines.Scan(); {
			name, value, _ := strings.Cut(lines.Text(), " ")
			name, _, _ = strings.Cut(name, "{")
			v, _ := strconv.ParseFloat(value, 64)
			switch name {
			case "grpc_server_msg_received_total":
				t.requests += v
			case "etcd_network_client_grpc_received_bytes_total", "etcd_network_client_grpc_sent_bytes_total":
				t.told += v
			case "etcd_disk_wal_fsync_duration_seconds_count", "etcd_disk_backend_commit_duration_seconds_count":
				t.syncs += v
			case "etcd_mvcc_db_total_size_in_bytes":
				if i == 0 {
					w.database = v / (1 << 20)
				}
			}
		}
		r.Body.Close()
	}
	return t, nil
}

// loopback is how many bytes have crossed it, headers included.
func loopback() float64 {
	b, _ := os.ReadFile("/proc/net/dev")
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "lo:" {
			v, _ := strconv.ParseFloat(f[1], 64)
			return v
		}
	}
	return 0
}

// cpu is how many seconds a process has worked.
func cpu(c *child) float64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(f[11], 64)
	system, _ := strconv.ParseFloat(f[12], 64)
	return (user + system) / 100 // the kernel counts to programs in hundredths, whatever it is set up to
}

// resident is a process's memory in MiB.
func resident(c *child) float64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", c.cmd.Process.Pid))
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0
	}
	pages, _ := strconv.ParseFloat(f[1], 64)
	return pages * float64(unix.Getpagesize()) / (1 << 20)
}
