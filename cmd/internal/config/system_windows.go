// SPDX-License-Identifier: MIT

package config

import (
	"path/filepath"

	"golang.org/x/sys/windows"
)

const defaultInterface = "mesh0"

// defaultPaths are below Program Files, where ordinary users cannot put anything in our way; in ProgramData they can.
func defaultPaths() Paths {
	dir, err := windows.KnownFolderPath(windows.FOLDERID_ProgramFiles, 0)
	if err != nil {
		dir = `C:\Program Files`
	}
	dir = filepath.Join(dir, "mesh")
	return Paths{Config: filepath.Join(dir, "mesh.toml"), State: filepath.Join(dir, "state"), Run: filepath.Join(dir, "run")}
}

// keepPrivate closes the state directory, and all that will be in it, to all but the system and administrators.
func keepPrivate(dir string) error {
	sd, err := windows.SecurityDescriptorFromString("O:BAD:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)")
	if err != nil {
		return err
	}
	owner, _, err := sd.Owner()
	if err != nil {
		return err
	}
	acl, _, err := sd.DACL()
	if err != nil {
		return err
	}
	return windows.SetNamedSecurityInfo(dir, windows.SE_FILE_OBJECT,
		windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, owner, nil, acl, nil)
}
