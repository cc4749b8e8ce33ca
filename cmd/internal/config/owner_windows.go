// SPDX-License-Identifier: MIT

package config

import "os"

// trusted has nothing to say: here no check is a program.
func trusted(string, *os.File) (byRoot bool, err error) { return true, nil }
