// SPDX-License-Identifier: MIT

//go:build !windows

package config

import (
	"fmt"
	"os"
	"syscall"
)

// trusted says what is wrong with who may write a file or folder that has programs run: none but root and our user may.
// byRoot is whether root alone may.
func trusted(path string, f *os.File) (byRoot bool, err error) {
	fi, err := f.Stat()
	if err != nil {
		return false, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return false, fmt.Errorf("the owner of %s is not known", path)
	}
	return judge(path, int(st.Uid), fi.Mode(), os.Geteuid())
}

// judge is trusted for a file of owner that is read by the user self.
func judge(path string, owner int, mode os.FileMode, self int) (byRoot bool, err error) {
	if owner != 0 && owner != self {
		return false, fmt.Errorf("%s is owned by the user %d, who could have programs run by it: `chown root %[1]s`", path, owner)
	}
	if mode.Perm()&0o022 != 0 {
		return false, fmt.Errorf("%s may be written by others (%s), who could have programs run by it: `chmod go-w %[1]s`", path, mode.Perm())
	}
	return owner == 0, nil
}
