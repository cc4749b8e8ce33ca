// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// login shows ssh by name against a real sshd of bkero, where the machine has one. Keys and configuration are made for
// the demo and end with the hosts.
func (d *demo) login() error {
	const dir = "/run/login"
	sshd := "/usr/sbin/sshd"
	if _, err := os.Stat(sshd); err != nil {
		d.show.note("skipped: ssh bkero true: no sshd here")
		return nil
	}
	for _, tool := range []string{"ssh", "ssh-keygen"} {
		if _, err := exec.LookPath(tool); err != nil {
			d.show.note("skipped: ssh bkero true: no %s here", tool)
			return nil
		}
	}
	for _, key := range []struct {
		n    *node
		file string
	}{{d.bkero, dir + "/host"}, {d.spencer, dir + "/key"}} {
		if r := d.try(key.n, "sh", "-c", "mkdir -m 700 -p "+dir+" /run/sshd && ssh-keygen -q -t ed25519 -N '' -f "+key.file); r.code != 0 {
			return fmt.Errorf("making a key: %s", r.err)
		}
	}
	public, err := d.spencer.ReadFile(dir + "/key.pub")
	if err != nil {
		return err
	}
	shadow, err := d.bkero.ReadFile("/etc/shadow")
	if err != nil {
		return err
	}
	listen := "ListenAddress " + strings.Join(strs(d.bkero.status.Self.Addrs), "\nListenAddress ")
	err = errors.Join(
		d.bkero.WriteFile(dir+"/authorized_keys", public, 0o600),
		d.bkero.WriteFile("/etc/shadow", unlocked(shadow), 0o600),
		d.bkero.WriteFile(dir+"/sshd_config", []byte(listen+"\nHostKey "+dir+"/host\nAuthorizedKeysFile "+dir+
			"/authorized_keys\nPidFile none\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"), 0o600),
		d.spencer.WriteFile(dir+"/ssh_config", []byte("IdentityFile "+dir+"/key\nIdentitiesOnly yes\nUserKnownHostsFile "+dir+
			"/known_hosts\nStrictHostKeyChecking accept-new\nBatchMode yes\nConnectTimeout 5\nUser root\n"), 0o600))
	if err != nil {
		return err
	}
	p, err := d.bkero.Start(sshd, "-D", "-e", "-f", dir+"/sshd_config")
	if err != nil {
		return err
	}
	d.bkero.started = append(d.bkero.started, p)
	d.show.note("sshd is started on bkero, on its mesh addresses")
	d.until(d.spencer, "ssh reaches it by name", time.Now(), 10*time.Second, succeeds, "ssh", "-F", dir+"/ssh_config", "bkero", "true")
	return nil
}

// unlocked lets root in with a key: sshd without PAM refuses an account whose password field begins with "!".
func unlocked(shadow []byte) []byte {
	var b strings.Builder
	for line := range strings.Lines(string(shadow)) {
		if fields := strings.Split(line, ":"); fields[0] == "root" && len(fields) > 1 {
			fields[1] = "*"
			line = strings.Join(fields, ":")
		}
		b.WriteString(line)
	}
	return []byte(b.String())
}
