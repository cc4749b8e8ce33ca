// SPDX-License-Identifier: MIT

package nss

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestNotAFile gives look-ups everything that may stand where the snapshot should be: none may wait or answer.
func TestNotAFile(t *testing.T) {
	good, _ := Encode(set(100))
	for name, make := range map[string]func(p string) error{
		"absent":    func(string) error { return nil },
		"empty":     func(p string) error { return os.WriteFile(p, nil, 0o644) },
		"text":      func(p string) error { return os.WriteFile(p, bytes.Repeat([]byte("x"), 9999), 0o644) },
		"directory": func(p string) error { return os.Mkdir(p, 0o755) },
		"fifo":      func(p string) error { return syscall.Mkfifo(p, 0o644) },
		"symlink": func(p string) error {
			return firstError(os.WriteFile(p+"2", good, 0o644), os.Symlink(p+"2", p))
		},
		"device": func(p string) error { return os.Symlink("/dev/zero", p) },
	} {
		p := filepath.Join(t.TempDir(), "hosts.db")
		if err := make(p); err != nil {
			t.Fatal(err)
		}
		if h, ok, err := LookupName(p, "host1"); ok || err == nil {
			t.Errorf("%s: %v, %v", name, h, err)
		}
	}
}
