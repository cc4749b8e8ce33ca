// SPDX-License-Identifier: MIT

package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// onBattery reports whether this machine has a battery of its own: it is carried about, and sleeps.
func onBattery() bool {
	types, _ := filepath.Glob("/sys/class/power_supply/*/type")
	for _, t := range types {
		b, err := os.ReadFile(t)
		if err != nil || strings.TrimSpace(string(b)) != "Battery" {
			continue
		}
		scope, _ := os.ReadFile(filepath.Join(filepath.Dir(t), "scope"))
		if strings.TrimSpace(string(scope)) != "Device" { // which is a mouse's
			return true
		}
	}
	return false
}

func bootTime() time.Time {
	var i unix.Sysinfo_t
	if unix.Sysinfo(&i) != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(i.Uptime) * time.Second)
}
