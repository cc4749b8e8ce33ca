// SPDX-License-Identifier: MIT

//go:build unix

package scripts

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestScripts(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	record := "echo \"$(basename $0) $NETNAME $NAME $INTERFACE ${NODE-unset} ${REMOTEADDRESS-unset} ${REMOTEPORT-unset} ${SUBNET-unset} ${WEIGHT-unset} ${SECRET-unset}\" >>" + log + "\n"
	for _, name := range []string{"mesh-up", "mesh-down", "host-up", "hosts/bkero-up", "subnet-down"} {
		write(t, filepath.Join(dir, name), record)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "hang"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SECRET", "of the daemon")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	write(t, filepath.Join(dir, "host-down"), record+"cat "+dir+"/hang\n")
	r := New(Config{Dir: dir, Mesh: "mesh", Name: "spencer", Interface: "mesh0", Log: slog.New(slog.DiscardHandler)})
	r.Tell(Event{Kind: "host-up", Node: "bkero", Addr: "192.0.2.7", Port: "7655"})
	r.Tell(Event{Kind: "subnet-down", Node: "bkero", Subnet: "10.99.0.0/24", Weight: "10"})
	r.Tell(Event{Kind: "nothing-of-that-name"})
	r.Tell(Event{Kind: "host-down", Node: "nibz"})
	ended := make(chan struct{})
	go func() { r.Run(ctx); close(ended) }()
	hang, err := os.OpenFile(filepath.Join(dir, "hang"), os.O_WRONLY, 0) // returns when the last script reads
	if err != nil {
		t.Fatal(err)
	}
	defer hang.Close()
	cancel() // which kills it with what it started
	<-ended
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"mesh-up mesh spencer mesh0 unset unset unset unset unset unset",
		"host-up mesh spencer mesh0 bkero 192.0.2.7 7655 unset unset unset",
		"bkero-up mesh spencer mesh0 bkero 192.0.2.7 7655 unset unset unset",
		"subnet-down mesh spencer mesh0 bkero unset unset 10.99.0.0/24 10 unset",
		"host-down mesh spencer mesh0 nibz unset unset unset unset unset",
		"mesh-down mesh spencer mesh0 unset unset unset unset unset unset",
	}
	if got := strings.Split(strings.TrimSpace(string(b)), "\n"); !slices.Equal(got, want) {
		t.Errorf("the scripts saw\n%s\nwant\n%s", b, strings.Join(want, "\n"))
	}
}

// What a script says is logged up to a bound, and that it failed.
func TestScriptFails(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "host-up"), "yes no | head -c 100000; exit 3\n")
	if err := os.WriteFile(filepath.Join(dir, "subnet-up"), []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	r := New(Config{Dir: dir, Log: slog.New(slog.NewTextHandler(&log, nil))})
	r.run(t.Context(), Event{Kind: "host-up"})
	r.run(t.Context(), Event{Kind: "subnet-up"})
	for _, want := range []string{"exit status 3", "no\\nno", "chmod 755"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("%q is not in the log: %.300s", want, log.String())
		}
	}
	if log.Len() > 3*maxOutput {
		t.Errorf("%d bytes were logged", log.Len())
	}
	for range maxQueued + 1 {
		r.Tell(Event{Kind: "host-up"})
	}
	if !strings.Contains(log.String(), "too slow") {
		t.Error("events are dropped silently")
	}
}
