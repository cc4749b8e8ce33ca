// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"mesh.internal/mesh/cmd/internal/lab"
	"mesh.internal/mesh/resolver"
	"mesh.internal/mesh/resolver/dnsd"
)

const (
	zone     = "mesh.internal"
	resolved = "systemd-resolved"
)

func hostName(i int) string { return "host" + strconv.Itoa(i) + "." + zone }

func hostAddr(i int) netip.Addr {
	i++
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

// server is one of those that are compared.
type server struct {
	name, version, addr string
	process             *lab.Process
	rss                 float64 // MiB
}

// serve is our server, with n names, until it is told to end.
func serve(addr string, n int) error {
	p := resolver.Parts{Zone: zone, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Revision: 1, Built: time.Now(),
		Nodes: []resolver.Node{{Name: "bkero", Addrs: []netip.Addr{netip.MustParseAddr("10.255.0.1")}}}}
	for i := range n {
		p.Hosts = append(p.Hosts, resolver.Static{Host: resolver.Host{Name: strings.TrimSuffix(hostName(i), "."+zone), Owner: "bkero", Addrs: []netip.Addr{hostAddr(i)}}})
	}
	v := resolver.Build(p)
	p = resolver.Parts{}
	debug.FreeOSMemory() // what making it took, meshd gives back within minutes
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	return dnsd.New(dnsd.Config{Addrs: []netip.AddrPort{netip.MustParseAddrPort(addr + ":53")}, View: func() *resolver.View { return v }, Log: slog.Default()}).Run(ctx)
}

// start starts all servers with n names and waits until they answer. missing says why some do not.
func start(ctx context.Context, h *lab.Host, dir string, n int, only string) (running []*server, missing map[string]string) {
	missing = map[string]string{}
	var zoneFile, hosts strings.Builder
	fmt.Fprintf(&zoneFile, "$ORIGIN %s.\n$TTL 10\n@ IN SOA dns hostmaster 1 60 10 86400 5\n@ IN NS dns\ndns IN A 10.255.0.1\n", zone)
	for i := range n {
		fmt.Fprintf(&zoneFile, "%s. IN A %s\n", hostName(i), hostAddr(i))
		fmt.Fprintf(&hosts, "%s %s\n", hostAddr(i), hostName(i))
	}
	self, err := os.Executable()
	if err != nil {
		return nil, map[string]string{"ours": err.Error()}
	}
	files := map[string]string{
		"/etc/hosts": hosts.String(),
		"/etc/zone":  zoneFile.String(),
		"/etc/named-bench.conf": fmt.Sprintf(`options { directory "/var"; pid-file none; listen-on { 127.0.0.12; }; listen-on-v6 { none; }; recursion no; dnssec-validation no; minimal-responses yes; notify no; };
controls {};
zone %q { type primary; file "/etc/zone"; };
`, zone),
		"/etc/systemd/resolved.conf": "[Resolve]\nDNSStubListener=no\nDNSStubListenerExtra=127.0.0.14\nLLMNR=no\nMulticastDNS=no\nDNSSEC=no\n",
	}
	passwd, _ := h.ReadFile("/etc/passwd")
	group, _ := h.ReadFile("/etc/group")
	files["/etc/passwd"] = string(passwd) + "systemd-resolve:x:993:993::/:/usr/sbin/nologin\n"
	files["/etc/group"] = string(group) + "systemd-resolve:x:993:\n"
	for path, text := range files {
		if err := h.WriteFile(path, []byte(text), 0o644); err != nil {
			return nil, map[string]string{"ours": err.Error()}
		}
	}
	if err := h.Do(func() error { return os.MkdirAll("/run/systemd", 0o755) }); err != nil {
		return nil, map[string]string{"ours": err.Error()}
	}
	for _, c := range []struct {
		name, addr, version string
		args                []string
	}{
		{"ours", "127.0.0.11", "", []string{self, "serve", "127.0.0.11", strconv.Itoa(n)}},
		{"BIND", "127.0.0.12", "named -v", []string{"named", "-f", "-c", "/etc/named-bench.conf"}},
		{"dnsmasq", "127.0.0.13", "dnsmasq --version", []string{"dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--listen-address=127.0.0.13", "--bind-interfaces",
			"--no-resolv", "--local=/" + zone + "/", "--local-ttl=10", "--pid-file="}},
		{resolved, "127.0.0.14", "", nil},
	} {
		if only != "" && only != c.name {
			continue
		}
		s := &server{name: c.name, addr: c.addr}
		if _, err := h.Run(ctx, "ip", "addr", "add", c.addr+"/8", "dev", "lo"); err != nil { // BIND answers at addresses of interfaces
			missing[c.name] = err.Error()
			continue
		}
		if c.name == resolved {
			if c.args, s.version, err = unpackResolved(ctx, dir); err != nil {
				missing[c.name] = err.Error()
				continue
			}
		}
		if f := strings.Fields(c.version); len(f) > 0 {
			out, _ := exec.CommandContext(ctx, f[0], f[1:]...).Output()
			first, _, _ := strings.Cut(string(out), "\n")
			if w := strings.Fields(strings.TrimPrefix(first, "Dnsmasq version")); len(w) > 0 {
				s.version = w[0]
				if w[0] == "BIND" && len(w) > 1 {
					s.version = w[1]
				}
			}
		}
		if s.process, err = h.Start(c.args[0], c.args[1:]...); err != nil {
			missing[c.name] = err.Error()
			continue
		}
		if err := answersAt(h, s, n); err != nil {
			missing[c.name] = err.Error() + ": " + s.process.Output()
			continue
		}
		running = append(running, s)
	}
	return running, missing
}

// answersAt waits until a server answers.
func answersAt(h *lab.Host, s *server, n int) error {
	return h.Do(func() error {
		c, err := net.Dial("udp", s.addr+":53")
		if err != nil {
			return err
		}
		defer c.Close()
		for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); {
			c.SetDeadline(time.Now().Add(200 * time.Millisecond))
			if _, err = ask(c, pack(hostName(n-1), 1), 0); err == nil {
				return nil
			}
			select {
			case <-s.process.Done():
				return fmt.Errorf("it has ended")
			default:
			}
			unix.Nanosleep(&unix.Timespec{Nsec: 50_000_000}, nil)
		}
		return err
	})
}

// unpackResolved downloads systemd-resolved and the library that it needs, and unpacks them into a folder.
func unpackResolved(ctx context.Context, dir string) (args []string, version string, err error) {
	root := filepath.Join(dir, "resolved")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, "", err
	}
	for _, pkg := range []string{"systemd-resolved", "libsystemd-shared", "libsystemd0"} {
		get := exec.CommandContext(ctx, "sh", "-c", "apt-get download "+pkg+" >/dev/null 2>&1 && dpkg-deb -x "+pkg+"_*.deb . && ls "+pkg+"_*.deb")
		get.Dir = root
		out, err := get.Output()
		if err != nil {
			return nil, "", fmt.Errorf("package %s cannot be had here", pkg)
		}
		if f := strings.Split(string(out), "_"); pkg == "systemd-resolved" && len(f) > 1 {
			version, _, _ = strings.Cut(f[1], "-")
		}
	}
	libs, _ := filepath.Glob(root + "/usr/lib/*-linux-gnu")
	var path []string
	for _, l := range libs {
		path = append(path, l, l+"/systemd")
	}
	return []string{"env", "LD_LIBRARY_PATH=" + strings.Join(path, ":"), root + "/lib/systemd/systemd-resolved"}, version, nil
}
