// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// logins lets root of one host log in on another, where a real sshd listens on its mesh addresses, and returns the
// configuration for ssh; none where the machine has no ssh. Keys and configuration are made for the demo and end with the
// hosts.
func (d *demo) logins(from, to *node) (where string, err error) {
	const dir = "/run/login"
	sshd := "/usr/sbin/sshd"
	if _, err := os.Stat(sshd); err != nil {
		d.show.note("skipped: ssh %s true: no sshd here", to.Name)
		return "", nil
	}
	for _, tool := range []string{"ssh", "ssh-keygen"} {
		if _, err := exec.LookPath(tool); err != nil {
			d.show.note("skipped: ssh %s true: no %s here", to.Name, tool)
			return "", nil
		}
	}
	for _, key := range []struct {
		n    *node
		file string
	}{{to, dir + "/host"}, {from, dir + "/key"}} {
		if r := d.try(key.n, "sh", "-c", "mkdir -m 700 -p "+dir+" /run/sshd && ssh-keygen -q -t ed25519 -N '' -f "+key.file); r.code != 0 {
			return "", fmt.Errorf("making a key: %s", r.err)
		}
	}
	public, err := from.ReadFile(dir + "/key.pub")
	if err != nil {
		return "", err
	}
	passwd, err1 := to.ReadFile("/etc/passwd")
	shadow, err2 := to.ReadFile("/etc/shadow")
	if err := errors.Join(err1, err2); err != nil {
		return "", err
	}
	listen := "ListenAddress " + strings.Join(strs(to.status.Self.Addrs), "\nListenAddress ")
	err = errors.Join(
		to.WriteFile(dir+"/authorized_keys", public, 0o600),
		// A shell in root's own home would do what that says; sshd without PAM refuses a password field that begins with "!".
		to.WriteFile("/etc/passwd", root(passwd, map[int]string{5: dir, 6: "/bin/sh"}), 0o644),
		to.WriteFile("/etc/shadow", root(shadow, map[int]string{1: "*"}), 0o600),
		to.WriteFile(dir+"/sshd_config", []byte(listen+"\nHostKey "+dir+"/host\nAuthorizedKeysFile "+dir+
			"/authorized_keys\nPidFile none\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"), 0o600),
		from.WriteFile(dir+"/ssh_config", []byte("IdentityFile "+dir+"/key\nIdentitiesOnly yes\nUserKnownHostsFile "+dir+
			"/known_hosts\nStrictHostKeyChecking accept-new\nBatchMode yes\nConnectTimeout 5\nUser root\n"), 0o600))
	if err != nil {
		return "", err
	}
	p, err := to.Start(sshd, "-D", "-e", "-f", dir+"/sshd_config")
	if err != nil {
		return "", err
	}
	to.started = append(to.started, p)
	d.show.note("sshd is started on %s, on its mesh addresses", to.Name)
	return dir + "/ssh_config", nil
}

// root changes fields of root's line in passwd(5) or shadow(5).
func root(file []byte, to map[int]string) []byte {
	lines := strings.Split(string(file), "\n")
	for i, line := range lines {
		fields := strings.Split(line, ":")
		if fields[0] != "root" {
			continue
		}
		for n, text := range to {
			if n < len(fields) {
				fields[n] = text
			}
		}
		lines[i] = strings.Join(fields, ":")
	}
	return []byte(strings.Join(lines, "\n"))
}
