// SPDX-License-Identifier: MIT

package health

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// start starts a program without any capability of ours. Capabilities are a thread's, so a thread of its own gives up
// what its children would inherit (capabilities(7), "Ambient"), starts the program and ends; the runtime makes no thread
// out of it (runtime.LockOSThread). no_new_privs keeps set-user-ID programs and file capabilities from giving more.
func start(cmd *exec.Cmd, user string) error {
	if err := isolate(cmd, user); err != nil {
		return err
	}
	done := make(chan error, 1)
	var launch func()
	launch = func() {
		runtime.LockOSThread() // until the goroutine ends, and the thread with it
		if unix.Gettid() == unix.Getpid() {
			// The main thread cannot end, and others look at it for the process (/proc/PID/status): held here, so that
			// the program is started on another one.
			other := make(chan struct{})
			go func() { launch(); close(other) }()
			<-other
			runtime.UnlockOSThread()
			return
		}
		err := dropPrivileges()
		if err == nil {
			err = cmd.Start()
		}
		done <- err
	}
	go launch()
	return <-done
}

func dropPrivileges() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) { // before Linux 4.3 there are none
		return fmt.Errorf("giving up ambient capabilities: %w", err)
	}
	// Inheritable ones alone give a program nothing, unless its file has been made for that. meshd.service forbids
	// capset(2), so it is no error that they stay.
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) == nil {
		data[0].Inheritable, data[1].Inheritable = 0, 0
		_ = unix.Capset(&hdr, &data[0])
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("setting no_new_privs: %w", err)
	}
	return nil
}

// await returns when the program has ended, with what reaps it: until then its group's number is nobody else's.
func await(cmd *exec.Cmd) (reap func() error) {
	for {
		if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); !errors.Is(err, unix.EINTR) {
			return cmd.Wait
		}
	}
}
