// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"mesh.internal/mesh/nss"
)

// host names the i-th of the hosts that all sources have.
func host(i int) (address, long, short string) {
	short = fmt.Sprintf("h%06d", i)
	return fmt.Sprintf("10.%d.%d.%d", i>>16&255, i>>8&255, i&255), short + ".mesh.internal", short
}

// writeHosts writes n hosts in the syntax of /etc/hosts.
func (s *stage) writeHosts(n int) error {
	f, err := os.Create(s.hostsFile(n))
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	for i := range n {
		address, long, short := host(i)
		fmt.Fprintln(w, address, long, short)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

// asked is how many hosts are asked for in turn, where there are so many.
const asked = 251

// writeQuestions writes files of questions: for names there are, for addresses, and for names of others.
func (s *stage) writeQuestions(n int) error {
	hit, reverse, miss, local := "", "", "", ""
	m := min(n, asked)
	for k := range m {
		i := (k * 97 % m) * n / m // spread over all, in no order of theirs
		address, long, short := host(i)
		hit += "name " + short + " " + address + "\n"
		reverse += "addr " + address + " " + long + "\n"
		miss += fmt.Sprintf("name www%d.example.org -\n", i)
		local += fmt.Sprintf("name printer%d.local ?\n", i)
	}
	for kind, text := range map[string]string{"hit": hit, "reverse": reverse, "miss": miss, "local": local} {
		if err := os.WriteFile(s.questions(kind, n), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// writing is what making one snapshot cost.
type writing struct {
	Read, Encode, Write float64 // seconds; Write is encoding, writing and syncing
	CPU                 float64 // seconds of reading and writing
	Bytes               int64
	Peak                float64 // MiB, the most that the process had resident
}

// write makes a snapshot in a process of its own, whose memory is thus only that.
func (s *stage) write(n int) (w writing, err error) {
	cmd := exec.Command(s.self, "write", s.hostsFile(n), s.snapshotFile(n))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return w, fmt.Errorf("writing a snapshot of %d hosts: %w", n, err)
	}
	return w, json.Unmarshal(out, &w)
}

// playWrite is that process.
func playWrite(hosts, to string, out io.Writer) error {
	var w writing
	begin := time.Now()
	lap := func() float64 {
		defer func() { begin = time.Now() }()
		return time.Since(begin).Seconds()
	}
	f, err := os.Open(hosts)
	if err != nil {
		return err
	}
	defer f.Close()
	list, err := nss.ParseHosts(f)
	if err != nil {
		return err
	}
	w.Read = lap()
	if err := nss.WriteFile(to, nss.Set{Hosts: list, Created: time.Now()}); err != nil {
		return err
	}
	w.Write = lap()
	kib, _, _ := cutSpace(field("/proc/self/status", "VmHWM"))
	if w.Peak, err = strconv.ParseFloat(kib, 64); err != nil {
		return fmt.Errorf("reading the peak of this process's memory: %w", err)
	}
	w.Peak /= 1024
	st, err := os.Stat(to)
	if err != nil {
		return err
	}
	w.Bytes = st.Size()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		return err
	}
	w.CPU = float64(used.Utime.Nano()+used.Stime.Nano()) / 1e9
	lap()
	if _, err := nss.Encode(nss.Set{Hosts: list, Created: time.Now()}); err != nil {
		return err
	}
	w.Encode = lap()
	return json.NewEncoder(out).Encode(w)
}

// writeAll makes the snapshots of all sizes and prints what that cost.
func (s *stage) writeAll(p *page, o options) ([]budget, error) {
	sizes := slices.Concat(o.Sizes, o.Writes)
	slices.Sort(sizes)
	sizes = slices.Compact(sizes)
	all := map[int][]writing{}
	for _, n := range sizes {
		if err := s.writeHosts(n); err != nil {
			return nil, err
		}
		rounds := 1
		if o.Full && n >= 10_000 && n < 1_000_000 { // which takes long enough to be the same each time
			rounds = 3
		}
		for range rounds {
			w, err := s.write(n)
			if err != nil {
				return nil, err
			}
			all[n] = append(all[n], w)
		}
	}
	t := table{title: "Writing a snapshot", head: []string{"hosts", "names", "file MiB", "bytes a host", "read the hosts file s", "encode s", "encode, write, sync s", "CPU s of read and write", "peak RSS MiB", "MiB per 100,000 names"},
		note: "A host has two names. The peak is that of a process that reads a hosts file and writes the snapshot, all of it: program, hosts, index and file."}
	var budgets []budget
	for _, n := range o.Writes {
		of := func(f func(writing) float64) (v []float64) {
			for _, w := range all[n] {
				v = append(v, f(w))
			}
			return v
		}
		per := of(func(w writing) float64 { return w.Peak * 100_000 / float64(2*n) })
		t.row(count(n), count(2*n), fmt.Sprintf("%.1f", float64(all[n][0].Bytes)/(1<<20)), fmt.Sprintf("%.0f", float64(all[n][0].Bytes)/float64(n)),
			spread("%.3f", of(func(w writing) float64 { return w.Read })), spread("%.3f", of(func(w writing) float64 { return w.Encode })),
			spread("%.3f", of(func(w writing) float64 { return w.Write })), spread("%.3f", of(func(w writing) float64 { return w.CPU })),
			spread("%.0f", of(func(w writing) float64 { return w.Peak })), spread("%.0f", per))
		if n >= 100_000 {
			budgets = append(budgets, budget{"MiB per 100,000 names while writing " + count(2*n), "%.0f", per, 64})
		}
	}
	p.table(t)
	return budgets, nil
}
