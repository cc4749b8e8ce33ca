// SPDX-License-Identifier: MIT

//go:build !linux

package etcd

import "syscall"

func withUs() *syscall.SysProcAttr { return nil }
