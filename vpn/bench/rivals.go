// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Rivals are programs of their own, as Debian has them, with the configuration that their manuals begin with and keys made
// by their own tools. Their processes are children of a process of ours, and end with it.

// rivals are the programs, and how they tell their version.
var rivals = map[kind][]string{kindTinc: {"tincd", "--version"}, kindNebula: {"nebula", "-version"}}

// missing returns why a contestant cannot run here; nil: it can.
func (c contestant) missing() error {
	programs := []string{}
	switch c.kind {
	case kindTinc:
		programs = []string{"tincd", "ip"}
	case kindNebula:
		programs = []string{"nebula", "nebula-cert"}
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("%s is not installed: apt-get install tinc nebula iproute2: %w", p, err)
		}
	}
	return nil
}

// rivalVersion is the first line of what a program says of itself.
func rivalVersion(k kind) string {
	out, _ := exec.Command(rivals[k][0], rivals[k][1:]...).CombinedOutput()
	first, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(first)
}

// tool runs a tool of a rival's in a folder.
func tool(dir, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

type file struct {
	name, text string
	mode       os.FileMode
}

func write(dir string, files ...file) error {
	for _, f := range files {
		name := filepath.Join(dir, f.name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(f.text), f.mode); err != nil {
			return err
		}
	}
	return nil
}

// tinc prepares a tinc 1.0 node. It connects to those that were started before it (see startOrder). Where the ends are
// out of each other's reach they say so (IndirectData): tinc then carries their packets over UDP through the one between,
// and not over its TCP connections.
func (e *end) tinc(i int, dir string, s setting) error {
	conf := fmt.Sprintf("Name = %s\nInterface = %s\n", nodeName(i), e.Interface)
	for _, j := range startOrder(len(e.Peers) + 1) {
		if j == i {
			break
		}
		if e.peer(j).Remote.IsValid() {
			conf += fmt.Sprintf("ConnectTo = %s\n", nodeName(j))
		}
	}
	about := fmt.Sprintf("Port = %d\nSubnet = %s\n", e.Port, netip.PrefixFrom(e.Addr.Addr(), 32))
	if s == relayed && i != between {
		about += "IndirectData = yes\n"
	}
	up := fmt.Sprintf("#!/bin/sh\nip link set \"$INTERFACE\" up mtu %d && ip addr add %s dev \"$INTERFACE\"\n", e.MTU, e.Addr)
	e.Command = []string{"tincd", "--config=" + dir, "--no-detach", "--pidfile=" + filepath.Join(dir, "pid")}
	return errors.Join(
		write(dir, file{"tinc.conf", conf, 0o600}, file{"tinc-up", up, 0o700}, file{filepath.Join("hosts", nodeName(i)), about, 0o600}),
		tool(dir, "tincd", "--config="+dir, "--generate-keys=2048"))
}

// introduceTinc gives each node the others' host files, with the addresses at which it reaches them.
func introduceTinc(dir string, n int, addrs func(i, j int) netip.Addr) error {
	for i := range n {
		for j := range n {
			if i == j {
				continue
			}
			name := filepath.Join("hosts", nodeName(j))
			about, err := os.ReadFile(filepath.Join(dir, nodeName(j), name))
			if err != nil {
				return err
			}
			if a := addrs(i, j); a.IsValid() {
				about = fmt.Appendf(nil, "Address = %s\n%s", a, about)
			}
			if err := write(filepath.Join(dir, nodeName(i)), file{name, string(about), 0o600}); err != nil {
				return err
			}
		}
	}
	return nil
}

// nebula prepares a nebula node. The one between is the lighthouse, and the relay of the others.
func (e *end) nebula(i int, dir, all string) error {
	ca := filepath.Join(all, "ca")
	if _, err := os.Stat(ca + ".crt"); errors.Is(err, os.ErrNotExist) {
		if err := tool(all, "nebula-cert", "ca", "-name", "bench", "-out-crt", ca+".crt", "-out-key", ca+".key"); err != nil {
			return err
		}
	}
	err := tool(dir, "nebula-cert", "sign", "-ca-crt", ca+".crt", "-ca-key", ca+".key", "-name", nodeName(i), "-ip", e.Addr.String(),
		"-out-crt", "node.crt", "-out-key", "node.key")
	if err != nil {
		return err
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	conf := fmt.Sprintf("pki: {ca: %q, cert: %q, key: %q}\nlisten: {host: 0.0.0.0, port: %d}\ntun: {dev: %s, mtu: %d}\nlogging: {level: warning}\n"+
		"firewall: {outbound: [{port: any, proto: any, host: any}], inbound: [{port: any, proto: any, host: any}]}\n",
		ca+".crt", path("node.crt"), path("node.key"), e.Port, e.Interface, e.MTU)
	if i == between {
		conf += "lighthouse: {am_lighthouse: true}\nrelay: {am_relay: true}\n"
	} else {
		to := nodeAddr(between).Addr()
		conf += fmt.Sprintf("static_host_map: {%q: [%q]}\nlighthouse: {hosts: [%q]}\n", to, e.peer(between).Remote, to)
		if len(e.Peers) > 1 {
			conf += fmt.Sprintf("relay: {relays: [%q], use_relays: true}\n", to)
		}
	}
	e.Command = []string{"nebula", "-config", path("config.yml")}
	return write(dir, file{"config.yml", conf, 0o600})
}

func (e *end) peer(i int) peer {
	return e.Peers[slices.IndexFunc(e.Peers, func(p peer) bool { return p.Name == nodeName(i) })]
}

// program starts a rival's program and waits until its interface has its address.
func (e *end) program() (pid int, stop func() error, err error) {
	cmd := exec.Command(e.Command[0], e.Command[1:]...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	runtime.LockOSThread()                                       // the child gets the signal when the thread ends: now that is with this process
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL} // the caller waits for the end
	if err := cmd.Start(); err != nil {
		return 0, nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	failed := func(err error) error {
		return fmt.Errorf("%s did not work: %w; it said:\n%s", e.Command[0], err, strings.TrimSpace(said.String()))
	}
	limit := time.Now().Add(startLimit)
	for !hasAddr(e.Interface, e.Addr.Addr()) {
		select {
		case err := <-ended:
			return 0, nil, failed(errors.Join(err, errors.New("it ended at once")))
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(limit) {
			cmd.Process.Kill()
			return 0, nil, failed(errors.Join(<-ended, fmt.Errorf("%s has no address after %v", e.Interface, startLimit)))
		}
	}
	return cmd.Process.Pid, func() error {
		cmd.Process.Signal(unix.SIGTERM)
		kill := time.AfterFunc(endLimit/2, func() { cmd.Process.Kill() })
		defer kill.Stop()
		if err := <-ended; err != nil && !signalled(err) {
			return failed(err)
		}
		return nil
	}, nil
}

// signalled reports whether a process ended by the signal that it was sent.
func signalled(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && (status.Signal() == unix.SIGTERM || status.Signal() == unix.SIGKILL)
}

func hasAddr(name string, addr netip.Addr) bool {
	i, err := net.InterfaceByName(name)
	if err != nil || i.Flags&net.FlagUp == 0 {
		return false
	}
	addrs, err := i.Addrs()
	return err == nil && slices.ContainsFunc(addrs, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.Equal(addr.AsSlice())
	})
}
