// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"mesh.internal/mesh/cmd/internal/lab"
)

// debian is where packaging/test/resolved has unpacked systemd-resolved and openresolv.
func debian(t *testing.T) string {
	dir := os.Getenv("MESH_RESOLVED")
	if dir == "" {
		t.Skip("needs MESH_RESOLVED=$(packaging/test/resolved)")
	}
	return dir
}

func install(t *testing.T, h *lab.Host, from, to string, mode os.FileMode) {
	t.Helper()
	if err := h.Install(from, to, mode); err != nil {
		t.Fatal(err)
	}
}

// askers is a host on a mesh of its own, whose programs that speak DNS do not know it.
func askers(t *testing.T) (*lab.Host, *lab.Process) {
	h := machine(t)
	must(t, h, "mesh init --name spencer --prefix 10.11.0.0/16")
	p := up(t, h)
	says(t, h, "dig +short +tries=1 +timeout=1 @10.11.0.1 spencer.mesh.internal", "10.11.0.1")
	return h, p
}

func says(t *testing.T, h *lab.Host, command string, want ...string) {
	t.Helper()
	out, ok := say(t, h, command)
	t.Logf("$ %s\n%s", command, out)
	for _, w := range want {
		if !strings.Contains(strings.Join(strings.Fields(out), " "), w) {
			t.Errorf("$ %s (success %v): no %q in\n%s", command, ok, w, out)
		}
	}
}

// asked looks a name up over DNS alone, forwards and back.
const asked = "dig +short +tries=1 +timeout=3 spencer.mesh.internal; dig +short +tries=1 +timeout=3 -x 10.11.0.1"

// TestSystemdResolved sets up the real one over D-Bus, which forgets it with the interface.
func TestSystemdResolved(t *testing.T) {
	dir := debian(t)
	h, meshd := askers(t)
	bin := "/lib/systemd/systemd-resolved"
	install(t, h, filepath.Join(dir, "systemd-resolved", bin), "/usr"+bin, 0o755)
	install(t, h, filepath.Join(dir, "systemd-resolved/usr/share/dbus-1/system.d/org.freedesktop.resolve1.conf"), "/usr/share/dbus-1/system.d/org.freedesktop.resolve1.conf", 0o644)
	must(t, h, "grep -q ^systemd-resolve: /etc/passwd || { echo systemd-resolve:x:990:990::/:/usr/sbin/nologin >>/etc/passwd; echo systemd-resolve:x:990: >>/etc/group; }; mkdir -p /run/dbus /run/systemd/resolve; chown systemd-resolve: /run/systemd/resolve")
	if _, err := h.Start("dbus-daemon", "--system", "--nofork", "--nopidfile"); err != nil {
		t.Fatal(err)
	}
	until(t, h, "the bus", "ls /run/dbus/", "system_bus_socket")
	says(t, h, "mesh dns status", "way none: /etc/resolv.conf sends programs to a name server on this machine that mesh does not know", "do not see spencer.mesh.internal")
	resolved := run(t, h, "/usr"+bin)
	until(t, h, "systemd-resolved", "busctl --system list 2>&1; ls /run/systemd/resolve; cat /var/log/systemd-resolved.log", "org.freedesktop.resolve1 ")
	until(t, h, "systemd-resolved", "ls /run/systemd/resolve", "stub-resolv.conf")
	says(t, h, "mesh dns status", "systemd-resolved runs, but nobody asks it")
	must(t, h, "ln -sf /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf")
	says(t, h, "mesh dns status", "way systemd-resolved, not set up", "do not see spencer.mesh.internal")
	says(t, h, "setpriv --reuid 65534 --clear-groups mesh dns setup", "needs root", "sudo mesh dns setup")
	must(t, h, "cp -a /etc /tmp/etc.$$; mesh dns setup --auto && mesh dns setup && diff -r --no-dereference /etc /tmp/etc.$$; rm -r /tmp/etc.$$")
	says(t, h, "mesh dns status", "way systemd-resolved, set up", "programs that speak DNS see spencer.mesh.internal")
	says(t, h, asked, "10.11.0.1 spencer.mesh.internal.")
	says(t, h, "dig +tries=1 +timeout=3 nobody.mesh.internal", "NXDOMAIN")
	says(t, h, "dig +tries=1 +timeout=3 www.example", "SERVFAIL")
	// A restart of it changes nothing; one of meshd takes it away with the interface.
	resolved.Signal(syscall.SIGTERM)
	<-resolved.Done()
	run(t, h, "/usr"+bin)
	until(t, h, "systemd-resolved again", "mesh dns status", "systemd-resolved, set up")
	says(t, h, asked, "10.11.0.1 spencer.mesh.internal.")
	says(t, h, "mesh dns undo --auto && mesh dns undo && mesh dns status", "systemd-resolved forgets mesh0", "nothing to do", "not set up", "do not see")
	must(t, h, "mesh dns setup")
	meshd.Signal(syscall.SIGKILL)
	<-meshd.Done()
	says(t, h, "mesh dns status", "there is no interface mesh0: start meshd")
	up(t, h)
	says(t, h, "mesh dns status", "way systemd-resolved, not set up")
	says(t, h, "cp /etc/mesh/mesh.toml /run/before; printf '[dns]\nsetup = \"off\"\n' >>/etc/mesh/mesh.toml; mesh dns setup --auto && mesh dns status", "not set up")
	says(t, h, "cp /run/before /etc/mesh/mesh.toml; sed -i '1i dns_setup = \"off\"' /etc/mesh/mesh.toml; mesh dns setup --auto && mesh dns status", "not set up")
	says(t, h, "sed -i 's/^dns_setup.*/dns_setup = \"auto\"/' /etc/mesh/mesh.toml; mesh dns setup --auto && mesh dns status", "resolved, set up")
}

// TestDnsmasq sets up the real one, which reads a file when it is started.
func TestDnsmasq(t *testing.T) {
	h, _ := askers(t)
	must(t, h, "mkdir -p /etc/dnsmasq.d && echo nameserver 127.0.0.1 >/etc/resolv.conf")
	args := []string{"--keep-in-foreground", "--conf-file=/etc/dnsmasq.conf", "--user=root", "--pid-file", "--listen-address=127.0.0.1", "--bind-interfaces", "--no-resolv", "--stop-dns-rebind", "--bogus-priv"}
	must(t, h, "echo conf-dir=/etc/dnsmasq.d/,*.conf >/etc/dnsmasq.conf")
	p := run(t, h, "dnsmasq", args...)
	until(t, h, "dnsmasq", "dig +tries=1 +timeout=1 x.example", "REFUSED")
	says(t, h, "mesh dns setup --auto; mesh dns status", "way dnsmasq, not set up")
	says(t, h, "mesh dns setup", "/etc/dnsmasq.d/mesh.conf is written", "restart it")
	restart := func() {
		p.Signal(syscall.SIGTERM)
		<-p.Done()
		p = run(t, h, "dnsmasq", args...)
		until(t, h, "dnsmasq", "dig +tries=1 +timeout=1 x.example", "REFUSED")
	}
	restart()
	says(t, h, "mesh dns status", "way dnsmasq, set up", "DNS see spencer.mesh.internal")
	says(t, h, asked, "10.11.0.1 spencer.mesh.internal.")
	says(t, h, "mesh dns setup", "nothing to do")
	says(t, h, "mesh dns undo --auto; mesh dns status", "way dnsmasq, set up")
	says(t, h, "mesh dns undo; ls /etc/dnsmasq.d", "/etc/dnsmasq.d/mesh.conf is gone", "restart it")
	restart()
	says(t, h, "mesh dns status", "not set up", "do not see spencer.mesh.internal")
	says(t, h, "echo '#mine' >/etc/dnsmasq.d/mesh.conf; mesh dns setup; mesh dns undo; cat /etc/dnsmasq.d/mesh.conf", "was not made by mesh: move it away", "#mine")
}

// TestOpenresolv has the real one tell a real dnsmasq.
func TestOpenresolv(t *testing.T) {
	dir := debian(t)
	h, _ := askers(t)
	must(t, h, "mkdir -p /usr/lib/resolvconf /etc/resolvconf && cp -r "+dir+"/openresolv/lib/resolvconf/* /usr/lib/resolvconf/ && cp "+dir+"/openresolv/sbin/resolvconf /usr/sbin/resolvconf && chmod 755 /usr/sbin/resolvconf")
	must(t, h, "printf 'name_servers=127.0.0.1\\ndnsmasq_conf=/run/dnsmasq.conf\\ndnsmasq_resolv=/run/dnsmasq.resolv\\n' >/etc/resolvconf.conf && touch /run/dnsmasq.conf /run/dnsmasq.resolv && printf 'nameserver 192.0.2.53\\n' | resolvconf -a eth0; cat /etc/resolv.conf")
	args := []string{"--keep-in-foreground", "--conf-file=/run/dnsmasq.conf", "--user=root", "--pid-file=/run/dnsmasq.pid", "--listen-address=127.0.0.1", "--bind-interfaces", "--resolv-file=/run/dnsmasq.resolv"}
	says(t, h, "mesh dns setup --auto; mesh dns status", "way openresolv, not set up")
	says(t, h, "mesh dns setup", "openresolv has the mesh's servers")
	run(t, h, "dnsmasq", args...)
	until(t, h, "dnsmasq", "mesh dns status", "DNS see spencer.mesh.internal")
	says(t, h, "mesh dns status; cat /run/dnsmasq.conf /etc/resolv.conf", "way openresolv, set up", "server=/mesh.internal/10.11.0.1", "nameserver 127.0.0.1")
	says(t, h, asked, "10.11.0.1 spencer.mesh.internal.")
	says(t, h, "mesh dns undo; mesh dns status; cat /run/dnsmasq.conf", "openresolv forgets", "not set up")
	if out := must(t, h, "cat /run/dnsmasq.conf"); strings.Contains(out, "mesh") {
		t.Error(out)
	}
}

// TestTakeover is in /etc/resolv.conf only when it was said, and the very file comes back, also after a crash.
func TestTakeover(t *testing.T) {
	h, meshd := askers(t)
	must(t, h, "printf '# my own\\nsearch example\\nnameserver 127.0.0.1\\nnameserver 127.0.0.2\\nnameserver 127.0.0.3\\n' >/etc/resolv.conf; chmod 640 /etc/resolv.conf; stat -c '%i %a %Y' /etc/resolv.conf >/run/before; cp /etc/resolv.conf /run/text")
	const same = "stat -c '%i %a %Y' /etc/resolv.conf | diff - /run/before && diff /etc/resolv.conf /run/text && ls /etc/resolv.conf* && echo as it was"
	says(t, h, "mesh dns setup; mesh dns setup --auto;"+same, "error: /etc/resolv.conf sends programs to", "hint:", "mesh dns takeover", "as it was")
	says(t, h, "mesh dns takeover && mesh dns takeover && cat /etc/resolv.conf", "kept in /etc/resolv.conf.before-mesh", "nothing to do", "nameserver 10.11.0.1 # my own search example nameserver 127.0.0.1 nameserver 127.0.0.2")
	says(t, h, "mesh dns status", "is taken over", "DNS see spencer.mesh.internal")
	says(t, h, asked, "10.11.0.1 spencer.mesh.internal.")
	says(t, h, "mesh dns undo --auto;"+same, "/etc/resolv.conf is as it was", "as it was")
	says(t, h, "mesh dns setup --auto; head -2 /etc/resolv.conf", "nameserver 10.11.0.1")
	meshd.Signal(syscall.SIGKILL)
	<-meshd.Done()
	says(t, h, "mesh dns undo;"+same, "as it was")
	says(t, h, "mesh dns setup --auto;"+same, "as it was") // it was not said any more
	says(t, h, "rm /etc/resolv.conf; mkdir -p /run/resolvconf; echo nameserver 127.0.0.9 >/run/resolvconf/resolv.conf; ln -s ../run/resolvconf/resolv.conf /etc/resolv.conf; mesh dns takeover; ls -l /etc/resolv.conf", "resolvconf looks after /etc/resolv.conf", "-> ../run/resolvconf/resolv.conf")
	says(t, h, "rm /etc/resolv.conf; mesh dns takeover && mesh dns undo; ls /etc/resolv.conf*", "as there was none before", "No such file")
}
