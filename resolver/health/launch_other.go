// SPDX-License-Identifier: MIT

//go:build !unix

package health

import (
	"errors"
	"os/exec"
)

var errNoScripts = errors.New("script checks and on_change need a Unix system: here nothing would end what they start; use http, tcp, dns, ping or ttl")

func scriptsPossible() error { return errNoScripts }

func start(*exec.Cmd, string) error { return errNoScripts }
func await(*exec.Cmd) func() error  { return func() error { return errNoScripts } }
func killGroup(*exec.Cmd)           {}
