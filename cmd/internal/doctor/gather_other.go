// SPDX-License-Identifier: MIT

//go:build !linux

package doctor

import (
	"context"
	"runtime"
	"time"

	"mesh.internal/mesh/cmd/internal/config"
)

// System is what Gather reads.
type System struct {
	Root    string
	Paths   config.Paths
	Version string // of the program that asks
}

// Gather reads who this node is.
func (s System) Gather(context.Context) *Machine {
	m := &Machine{Now: time.Now(), Arch: runtime.GOARCH, Version: s.Version, Zone: config.Default().Domain}
	c, err := config.Load(s.Paths.Config)
	if err != nil {
		m.OnMesh = err.Error()
		return m
	}
	m.Name, m.Zone = c.Name, c.Domain
	n, err := s.Paths.LoadNode()
	if err != nil {
		m.OnMesh = err.Error()
		return m
	}
	m.Addr = n.Addrs[0]
	return m
}

// Asking finds nothing: here DNS is all there is, and NSS speaks of it.
func Asking(*Machine) []Finding { return nil }

// NSS is DNS: this system has no name service switch of glibc's.
func NSS(m *Machine) []Finding { return DNS(m, runtime.GOOS) }
