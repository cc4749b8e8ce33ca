// SPDX-License-Identifier: MIT

package main

import (
	"strings"
	"testing"

	"mesh.internal/mesh/cmd/internal/api"
)

func TestShowGroups(t *testing.T) {
	groups := []api.Group{
		{Name: "empty", Owner: "nibz"},
		{Name: "friends", Owner: "spencer", Members: []string{"bkero", "@servers", "printer"},
			Hosts: []string{"bkero.mesh.internal", "nas.bkero.mesh.internal"}, Unknown: []string{"printer"}},
	}
	var b strings.Builder
	showGroups(&b, nil)
	showGroups(&b, groups)
	showGroup(&b, groups[1])
	want := "" +
		"no groups yet: `mesh group add NAME MEMBER…` makes one\n" +
		"GROUP     OWNER    HOSTS  MEMBERS\n" +
		"@empty    nibz         0  nobody\n" +
		"@friends  spencer      2  bkero @servers printer (unknown)\n" +
		"@friends  of spencer\n" +
		"members    bkero @servers printer\n" +
		"hosts      bkero.mesh.internal\n" +
		"           nas.bkero.mesh.internal\n" +
		"unknown    printer (no host or group of that name now)\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}
