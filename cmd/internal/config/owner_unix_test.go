// SPDX-License-Identifier: MIT

//go:build !windows

package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestServicesTrusted has files of services that others could write, or that say whom programs are run as.
func TestServicesTrusted(t *testing.T) {
	dir := t.TempDir()
	p := Paths{Config: filepath.Join(dir, "mesh.toml"), State: dir}
	if err := os.Mkdir(p.ServiceDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(p.ServiceDir(), "http.toml")
	const plain, check = "[[service]]\ntype = \"http\"\nport = \"%s\"\n", "[[service.check]]\nscript = [\"/bin/true\"]\nuser = \"%s\"\n"
	var before []Service
	for _, c := range []struct {
		what    string
		text    string
		uid     int // root's if 0; tests of others need root
		mode    os.FileMode
		dirMode os.FileMode
		port    string // of the service that holds
		warn    string // in the only error; empty: none
	}{
		{"a file that all may write, at first", fmt.Sprintf(plain, "80"), 0, 0o666, 0o755, "", "chmod go-w"},
		{"one that its owner may write", fmt.Sprintf(plain, "80"), 0, 0o644, 0o755, "80", ""},
		{"one that nobody else may read", fmt.Sprintf(plain, "81"), 0, 0o600, 0o755, "81", ""},
		{"one that its group may write", fmt.Sprintf(plain, "82"), 0, 0o664, 0o755, "81", "may be written by others (-rw-rw-r--)"},
		{"one that is malformed", "[[service", 0, 0o644, 0o755, "81", "what it said before holds"},
		{"a stranger's", fmt.Sprintf(plain, "83"), 4242, 0o644, 0o755, "81", "owned by the user 4242"},
		{"in a folder that all may write", fmt.Sprintf(plain, "84"), 0, 0o644, 0o777, "81", "are not read"},
		{"with a user, and root's", fmt.Sprintf(plain, "85") + fmt.Sprintf(check, "daemon"), 0, 0o644, 0o755, "85", ""},
		{"in a folder with the sticky bit", fmt.Sprintf(plain, "86"), 0, 0o644, 0o777 | os.ModeSticky, "85", "are not read"},
		{"all is well again", fmt.Sprintf(plain, "87"), 0, 0o644, 0o755, "87", ""},
	} {
		if os.Geteuid() != 0 && (c.uid != 0 || strings.Contains(c.text, "user")) {
			continue
		}
		_ = os.Remove(path)
		if err := errors.Join(os.WriteFile(path, []byte(c.text), 0o600), os.Chmod(path, c.mode), os.Chmod(p.ServiceDir(), c.dirMode)); err != nil {
			t.Fatal(err)
		}
		if c.uid != 0 {
			if err := os.Chown(path, c.uid, c.uid); err != nil {
				t.Fatal(err)
			}
		}
		list, errs := p.LoadServices(before)
		port := ""
		if len(list) == 1 {
			port = list[0].Port
		}
		if err := errors.Join(errs...); port != c.port || len(errs) > 1 || (err == nil) != (c.warn == "") || err != nil && !strings.Contains(err.Error(), c.warn) {
			t.Errorf("%s: port %q and %v, want %q and %q", c.what, port, err, c.port, c.warn)
		}
		before = list
	}
}

// TestJudge is who may own and write what has programs run.
func TestJudge(t *testing.T) {
	for _, c := range []struct {
		owner, self int
		mode        os.FileMode
		byRoot      bool
		err         string
	}{
		{0, 0, 0o644, true, ""}, {0, 999, 0o644, true, ""}, {0, 999, 0o755, true, ""}, {999, 999, 0o600, false, ""},
		{0, 999, 0o664, false, "chmod"}, {0, 0, 0o646, false, "chmod"}, {1000, 0, 0o644, false, "chown"}, {1000, 999, 0o600, false, "chown"}, {999, 999, 0o666, false, "chmod"},
	} {
		byRoot, err := judge("/f", c.owner, c.mode, c.self)
		if byRoot != c.byRoot || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%+v: %t %v", c, byRoot, err)
		}
	}
}
