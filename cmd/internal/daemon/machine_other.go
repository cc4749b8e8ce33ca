// SPDX-License-Identifier: MIT

//go:build !linux

package daemon

import "time"

func onBattery() bool { return false }

func bootTime() time.Time { return time.Time{} }
