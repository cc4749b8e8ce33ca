// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// machine says where times were taken.
func machine() string {
	load, err := os.ReadFile("/proc/loadavg") // proc_loadavg(5): the first is of the last minute
	if err != nil {
		load = []byte("unknown")
	}
	return fmt.Sprintf("on a machine with %d processors, load %s", runtime.NumCPU(), strings.Fields(string(load))[0])
}

// save writes what was shown as Markdown, with the pictures beside it.
func (s *show) save(file string, told story) error {
	text := "# " + told.title + "\n\nWhat `sudo " + told.made + "` showed, as `" + told.made + " RECORD=FILE` writes it down.\n\n```\n" +
		strings.TrimSpace(s.record.String()) + "\n```\n"
	text = strings.ReplaceAll(text, "```\n```\n\n", "") // a picture at the end of a part
	for name, data := range s.pictures {
		if err := os.WriteFile(filepath.Join(filepath.Dir(file), name), data, 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(file, []byte(text), 0o644)
}
