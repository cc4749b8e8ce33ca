// SPDX-License-Identifier: MIT

package doctor

import (
	"io/fs"
	"net/netip"
	"time"

	"mesh.internal/mesh/cmd/internal/splitdns"
)

// Machine is what was read of a machine: all that findings are made of.
type Machine struct {
	Now      time.Time
	Root     bool   // read by root: nothing was hidden from us
	Arch     string // in Debian's words: amd64, arm64
	Hostname string
	Version  string // of this program
	MeshUser uint32 // user id of meshd's own user; 0: there is none

	OnMesh string // why this machine is on no mesh; empty: it is on one
	Name   string // of this node, relative to the zone
	Zone   string
	Addr   netip.Addr // of this node, where meshd answers DNS; read where there is no NSS

	Nsswitch  File
	HostsFile File
	Modules   []Module // one for each libc; none: no glibc was found
	Snapshot  Snapshot
	Daemon    Daemon
	Look      []Look
	Cache     Cache
	Programs  []Program
	Asking    AskedDNS
	Hidden    int // processes that we may not look at
}

// AskedDNS is how programs that speak DNS come to ask meshd.
type AskedDNS struct {
	Plan splitdns.Plan
	Err  string // why it is not known
	Name string // that was looked up
	Sees string // why programs that speak DNS do not see it; empty: they do
}

// File is a text file; Err says why it could not be read.
type File struct {
	Text string
	Err  string
}

// Module is libnss_mesh for one libc.
type Module struct {
	Libc  string // path of libc.so.6
	Arch  string // its architecture
	Path  string // of the module, or where it should be
	Found bool
	Apart bool // it is not beside libc: the dynamic linker finds it only through its cache
	Err   string
	Mode  fs.FileMode
	Owner uint32 // user id

	ModuleArch string
	Soname     string
	Functions  map[string]bool // exported
}

// Snapshot is the file that the module reads.
type Snapshot struct {
	Path               string
	Missing            bool
	Err                string // why it could not be looked at
	Mode, FolderMode   fs.FileMode
	Owner, FolderOwner uint32
	Damage             string // why its content is not to be believed
	Created            time.Time
	Revision           int64
	Hosts              []Host
	Groups             int
	Own                bool // the look-up that the module makes finds this node
}

// Host is one of the snapshot.
type Host struct {
	Name    string // canonical
	Aliases []string
	Addrs   []netip.Addr
}

// Daemon is what meshd says of itself.
type Daemon struct {
	Err       string // why it does not answer
	Forbidden bool   // because we may not ask
	Version   string
	Store     string        // state of the store
	Stale     time.Duration // since names were last known to be right; 0: they are
	Warning   string        // why it cannot write the snapshot
}

// Look is a look-up that a program of the system made.
type Look struct {
	Command string // as it could be typed
	Only    bool   // mesh alone was asked, not what is in the hosts line
	Missing bool   // there is no such program
	Err     string
	Addrs   []netip.Addr
}

// Cache is a running cache of name look-ups that glibc asks before any module.
type Cache struct {
	Name  string // "nscd"; empty: there is none
	Hosts bool   // it caches hosts
}

// Reason is why a program cannot see mesh names.
type Reason string

// Reasons, as in JSON.
const (
	Static     Reason = "static"      // it has no dynamic linker
	Musl       Reason = "musl"        // its libc has no name service switch
	OtherLibc  Reason = "other libc"  // neither glibc nor musl
	Go         Reason = "go"          // built without cgo: it has Go's own resolver
	NoSwitch   Reason = "no nsswitch" // the root it runs in has no mesh in its nsswitch.conf
	NoModule   Reason = "no module"   // the root it runs in has no module
	NoSnapshot Reason = "no snapshot" // it has another /run
)

// Program is one that runs and cannot see mesh names.
type Program struct {
	Path  string `json:"path"`  // as it sees it
	Where string `json:"where"` // the container that it runs in; empty: none
	Why   Reason `json:"why"`
	Count int    `json:"count"` // processes
	PID   int    `json:"pid"`   // one of them
}
