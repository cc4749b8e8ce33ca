// SPDX-License-Identifier: MIT

//go:build unix

package health

import (
	"fmt"
	"os"
	"os/exec"
	osuser "os/user"
	"strconv"
	"syscall"
)

func scriptsPossible() error { return nil }

// isolate gives a program a process group of its own and, where we are root, another user.
func isolate(cmd *exec.Cmd, user string) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Geteuid() != 0 {
		if user == "" {
			return nil
		}
		if u, err := osuser.Lookup(user); err != nil || u.Uid != strconv.Itoa(os.Geteuid()) {
			return fmt.Errorf("meshd is not root, so it cannot run this as the user %q: run meshd as root", user)
		}
		return nil
	}
	switch user {
	case "root":
		return nil
	case "":
		user = "nobody"
	}
	u, err := osuser.Lookup(user)
	if err != nil {
		return fmt.Errorf("the user of this check: %w", err)
	}
	groups, err := u.GroupIds()
	if err != nil {
		return fmt.Errorf("the groups of the user %s: %w", user, err)
	}
	cred := &syscall.Credential{}
	if cred.Uid, err = id(u.Uid); err != nil {
		return err
	}
	if cred.Gid, err = id(u.Gid); err != nil {
		return err
	}
	for _, g := range groups {
		n, err := id(g)
		if err != nil {
			return err
		}
		cred.Groups = append(cred.Groups, n)
	}
	if cred.Uid == 0 {
		return fmt.Errorf("%s is root by another name: write user = \"root\" if that is meant", user)
	}
	cmd.SysProcAttr.Credential = cred
	return nil
}

func id(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err
}

func killGroup(cmd *exec.Cmd) { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
