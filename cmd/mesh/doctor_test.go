// SPDX-License-Identifier: MIT

package main

import (
	"strings"
	"testing"

	"mesh.internal/mesh/cmd/internal/doctor"
)

func TestShowReports(t *testing.T) {
	findings := []doctor.Finding{
		{Severity: doctor.OK, Subject: "module", What: "it is there"},
		{Severity: doctor.OK, Subject: "hosts", What: "mesh is where it belongs", Detail: []string{"    hosts: files mesh dns"}},
		{Severity: doctor.Problem, Subject: "snapshot", What: "others may write to it, and this is a long way to say so", Remedy: "in /etc/x write\n    enable no\nand `systemctl restart x`"},
		{Severity: doctor.Warning, Subject: "programs", What: "1 program does not see names", Detail: []string{"    /bin/a (7)"}, Remedy: "run `a`"},
		{Severity: doctor.Warning, Subject: "programs", What: "2 programs do not see names", Remedy: "run `a`"},
	}
	want := `mesh doctor nss

  ✓ module    it is there
  ✓ hosts     mesh is where it belongs
                hosts: files mesh dns

  ✗ snapshot  others may write to it, and this is a
              long way to say so
              → in /etc/x write
                  enable no
                and ` + "`systemctl restart x`" + `

  ! programs  1 program does not see names
                /bin/a (7)
              → run ` + "`a`" + `

  !           2 programs do not see names
              → as above

1 problem, 2 warnings
`
	var b strings.Builder
	showReports(&b, []report{{Check: "nss", Findings: findings}}, 54)
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	for found, want := range map[int]string{2: "nothing to do\n", 3: "1 problem\n"} {
		b.Reset()
		if showReports(&b, []report{{Check: "nss", Findings: findings[:found]}}, 54); !strings.HasSuffix(b.String(), "\n"+want) {
			t.Errorf("ends with %q, want %q", b.String()[max(0, b.Len()-40):], want)
		}
	}
}

func TestLines(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"one two three", "one two|three"},
		{"see `a b c d` now", "see|`a b c d`|now"}, // a command stays whole
		{"a\n    as it is and long\nb", "a|    as it is and long|b"},
		{"averylongword x", "averylongword|x"},
		{"", ""},
	} {
		if got := strings.Join(lines(c.text, 9), "|"); got != c.want {
			t.Errorf("%q: %q, want %q", c.text, got, c.want)
		}
	}
}
