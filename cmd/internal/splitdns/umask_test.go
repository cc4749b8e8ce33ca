// SPDX-License-Identifier: MIT

//go:build unix

package splitdns

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A name server's user reads what setup writes, with the umask of meshd.service too, where setup makes the folder.
func TestUmask(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	s := machine(t, map[string]string{resolvConf: loop, "/proc/7/comm": "dnsmasq\n", "/proc/7/cmdline": "dnsmasq\x00-7\x00/etc/own.d\x00"})
	if did, err := s.Setup(t.Context(), want, false); len(did) != 1 || err != nil {
		t.Fatal(did, err)
	}
	for path, mode := range map[string]os.FileMode{"/etc/own.d": 0o755, filepath.Join("/etc/own.d", confName): 0o644} {
		if i, err := os.Stat(s.path(path)); err != nil || i.Mode().Perm() != mode {
			t.Errorf("%s: %v %v, want %s", path, i.Mode(), err, mode)
		}
	}
}
