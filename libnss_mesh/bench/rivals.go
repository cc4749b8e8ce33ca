// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// packages are what the rivals need beside the machine's own programs, by the source that needs them.
var packages = map[string][]string{
	"mdns4_minimal": {"libnss-mdns"},
	"resolve":       {"libnss-resolve", "systemd-resolved", "libsystemd-shared"},
	"etcdctl":       {"etcd-server", "etcd-client"},
}

// unpack downloads packages and unpacks them below dir. It installs nothing: libnss-mdns and libnss-resolve would edit
// nsswitch.conf, and the others would start what they serve.
func unpack(ctx context.Context, dir string) (where string, missing map[string]string) {
	where, missing = filepath.Join(dir, "unpacked"), map[string]string{}
	for source, names := range packages {
		at := filepath.Join(dir, "packages", source)
		err := os.MkdirAll(at, 0o755)
		run := func(name string, args ...string) {
			if err != nil {
				return
			}
			var out []byte
			cmd := exec.CommandContext(ctx, name, args...)
			cmd.Dir = at
			if out, err = cmd.CombinedOutput(); err != nil {
				err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
			}
		}
		run("apt-get", append([]string{"download", "-qq"}, names...)...)
		files, _ := filepath.Glob(filepath.Join(at, "*.deb"))
		for _, f := range files {
			run("dpkg-deb", "-x", f, where)
		}
		if err != nil {
			missing[source] = err.Error()
		}
	}
	return where, missing
}

// servedHosts is how many hosts the services know.
const servedHosts = 1000

// etcdHosts is how many of them etcd knows: each costs a process to write.
const etcdHosts = 10

// startRivals starts what answers behind the sources, and returns the sources that do answer. They end with this process,
// the first of its process namespace.
func (s *stage) startRivals(missing map[string]string) (found []source) {
	add := func(ok bool, err error, more ...source) {
		switch name := more[0].line; {
		case missing[name] != "":
		case err != nil:
			missing[name] = err.Error()
		case ok:
			found = append(found, more...)
		}
	}
	err := s.startDNS()
	add(true, err, source{name: "dnsmasq over dns", line: "dns", hosts: servedHosts, kinds: allKinds})
	if missing["dns"] == "" && missing["resolve"] == "" {
		add(true, s.startResolved(), source{name: "nss-resolve, dnsmasq behind it", line: "resolve", hosts: servedHosts, kinds: allKinds})
	}
	if missing["mdns4_minimal"] == "" {
		add(true, nil, source{name: "mdns4_minimal", line: "mdns4_minimal", hosts: servedHosts, kinds: []string{"miss"}},
			source{name: "mdns4_minimal, printerN.local, no avahi", line: "mdns4_minimal", hosts: servedHosts, kinds: []string{"local"}})
	}
	if missing["etcdctl"] == "" {
		add(true, s.startEtcd(), source{name: "etcdctl in a shell", line: "etcdctl", hosts: etcdHosts, kinds: []string{"hit", "miss"}, slow: true})
	}
	return found
}

// startLimit is how long a service may take until it answers.
const startLimit = 15 * time.Second

// serve starts a program and waits until ready is nil.
func (s *stage) serve(ready func() error, env []string, name string, args ...string) error {
	log, err := os.Create(filepath.Join(s.dir, "mem", filepath.Base(name)+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), env...)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for begin := time.Now(); ; {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case e := <-ended:
			err = errors.Join(fmt.Errorf("%s ended: %w", filepath.Base(name), errors.Join(e, err)), lastLines(log.Name()))
		case <-time.After(50 * time.Millisecond):
			if time.Since(begin) < startLimit {
				continue
			}
			cmd.Process.Kill()
			err = errors.Join(fmt.Errorf("%s does not answer: %w", filepath.Base(name), err), lastLines(log.Name()))
		}
		return err
	}
}

// lastLines is the end of a log as an error.
func lastLines(file string) error {
	b, _ := os.ReadFile(file)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return errors.New(strings.Join(lines[max(0, len(lines)-3):], "; "))
}

// answers asks a source one round of questions.
func (s *stage) answers(src source, kinds ...string) func() error {
	return func() error {
		if err := s.set(src); err != nil {
			return err
		}
		for _, kind := range kinds {
			if _, err := s.harness("count", s.questions(kind, src.hosts), "5", "libc"); err != nil {
				return err
			}
		}
		return nil
	}
}

func (s *stage) startDNS() error {
	dnsmasq, err := exec.LookPath("dnsmasq")
	if err != nil {
		return errors.New("dnsmasq is not installed: apt-get install dnsmasq-base")
	}
	return s.serve(s.answers(source{line: "dns", hosts: servedHosts}, allKinds...), nil, dnsmasq, "--keep-in-foreground", "--conf-file=/dev/null",
		"--no-resolv", "--no-hosts", "--addn-hosts="+s.hostsFile(servedHosts), "--local=/#/", "--local=//", "--listen-address=127.0.0.1",
		"--bind-interfaces", "--user=root", "--group=root", "--pid-file=", "--cache-size=10000", "--log-facility=-")
}

// startResolved runs systemd-resolved without systemd and without D-Bus: nss-resolve asks it over a socket of its own.
func (s *stage) startResolved() error {
	for file, line := range map[string]string{
		"/etc/passwd": "systemd-resolve:x:64999:64999::/:/usr/sbin/nologin\n",
		"/etc/group":  "systemd-resolve:x:64999:\n",
	} {
		b, err := os.ReadFile(file)
		if err == nil && !bytes.Contains(b, []byte("systemd-resolve:")) {
			err = os.WriteFile(file, append(b, line...), 0o644)
		}
		if err != nil {
			return err
		}
	}
	const conf = "[Resolve]\nDNS=127.0.0.1\nDomains=~.\nLLMNR=no\nMulticastDNS=no\nDNSSEC=no\nReadEtcHosts=no\nDNSStubListener=no\nResolveUnicastSingleLabel=yes\n"
	if err := linkUp(); err != nil {
		return fmt.Errorf("systemd-resolved asks nobody without a network, and none can be made: %w", err)
	}
	if err := errors.Join(os.MkdirAll("/run/systemd", 0o755), os.MkdirAll("/etc/systemd", 0o755), os.WriteFile("/etc/systemd/resolved.conf", []byte(conf), 0o644)); err != nil {
		return err
	}
	return s.serve(s.answers(source{line: "resolve", hosts: servedHosts}, allKinds...),
		[]string{"LD_LIBRARY_PATH=" + filepath.Join(s.apt, "usr/lib", filepath.Base(s.lib), "systemd") + ":" + filepath.Join(s.apt, "lib", filepath.Base(s.lib), "systemd")},
		filepath.Join(s.apt, "lib/systemd/systemd-resolved"))
}

// linkUp makes an interface with an address that leads nowhere; it lives as long as this process.
func linkUp() error {
	tun, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	link, err := unix.NewIfreq("nowhere")
	if err != nil {
		return err
	}
	link.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(tun, unix.TUNSETIFF, link); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := link.SetInet4Addr([]byte{192, 0, 2, 1}); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFADDR, link); err != nil {
		return err
	}
	link.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, link)
}

func (s *stage) startEtcd() error {
	etcdctl := filepath.Join(s.apt, "usr/bin/etcdctl")
	put := func(i int) error {
		address, _, short := host(i)
		cmd := exec.Command(etcdctl, "--dial-timeout", "1s", "--command-timeout", "2s", "put", "/hosts/"+short, address)
		cmd.Env = append(os.Environ(), "ETCDCTL_API=3")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("etcdctl put: %w: %s", err, out)
		}
		return nil
	}
	ready := func() error {
		for i := range etcdHosts {
			if err := put(i); err != nil {
				return err
			}
		}
		return s.answers(source{line: "etcdctl", hosts: etcdHosts}, "hit", "miss")()
	}
	const clients, peers = "http://127.0.0.1:2379", "http://127.0.0.1:2380" // not localhost, which has no address now
	return s.serve(ready, nil, filepath.Join(s.apt, "usr/bin/etcd"), "--data-dir", filepath.Join(s.dir, "mem", "etcd"),
		"--listen-client-urls", clients, "--advertise-client-urls", clients, "--listen-peer-urls", peers,
		"--initial-advertise-peer-urls", peers, "--initial-cluster", "default="+peers, "--logger", "zap", "--log-level", "error")
}
