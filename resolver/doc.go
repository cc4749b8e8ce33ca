// SPDX-License-Identifier: MIT

// Package resolver knows the mesh's names: it gathers them from the members that are known and from the shared store,
// and keeps the View, an immutable value from which every door (the NSS snapshot, the DNS server, `mesh hosts`) answers.
//
// It does not know tunnels, certificates or files of the system; who signs and who verifies is handed to it. A Resolver
// starts nothing until Run, which owns every goroutine and returns when all have ended. The last good state of the
// store is kept on disk, so that names resolve after a reboot without any store.
package resolver
