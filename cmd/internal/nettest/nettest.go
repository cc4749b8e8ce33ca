// SPDX-License-Identifier: MIT

// Package nettest holds tests of what nodes do with the networks around them, against real routers and LANs made of
// namespaces (cmd/internal/lab). It is here, not beside what it tests, since only cmd knows the lab.
package nettest
