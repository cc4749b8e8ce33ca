// SPDX-License-Identifier: MIT

//go:build unix && !linux

package health

import "os/exec"

// start starts a program. These systems have no capabilities that it could inherit.
func start(cmd *exec.Cmd, user string) error {
	if err := isolate(cmd, user); err != nil {
		return err
	}
	return cmd.Start()
}

// await returns when the program has ended, with what it has ended with.
func await(cmd *exec.Cmd) (reap func() error) {
	err := cmd.Wait()
	return func() error { return err }
}
