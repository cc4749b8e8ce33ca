// SPDX-License-Identifier: MIT

package etcd

import "syscall"

// withUs ends a program also where the test is killed.
func withUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
