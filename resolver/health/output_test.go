// SPDX-License-Identifier: MIT

package health

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestParseOutput(t *testing.T) {
	for _, c := range []struct{ in, output, perf string }{
		{"", "", ""},
		{"OK\n", "OK", ""},
		{"DISK OK - free space: / 3326 MB (56%); | /=2643MB;5948;5958;0;5968\n", "DISK OK - free space: / 3326 MB (56%);", "/=2643MB;5948;5958;0;5968"},
		// the example of Nagios Core's "Plugin API"
		{"DISK OK - free space: / 3326 MB (56%); | /=2643MB;5948;5958;0;5968\n/ 15272 MB (77%);\n/boot 68 MB (69%);\n/home 69357 MB (27%);\n/var/log 819 MB (84%); | /boot=68MB;88;93;0;98\n/home=69357MB;253404;253409;0;253414\n/var/log=818MB;970;975;0;980\n",
			"DISK OK - free space: / 3326 MB (56%);; / 15272 MB (77%);; /boot 68 MB (69%);; /home 69357 MB (27%);; /var/log 819 MB (84%);",
			"/=2643MB;5948;5958;0;5968 /boot=68MB;88;93;0;98 /home=69357MB;253404;253409;0;253414 /var/log=818MB;970;975;0;980"},
		{"a | b | c", "a", "b | c"},
		{"| time=1s", "", "time=1s"},
		{"\n\nlate", "late", ""},
		{"red \x1b[31mtext\x1b[0m\r\nbell\a", "red [31mtext[0m; bell", ""},
		{"a\u202ebc \u2066d\u2069", "abc d", ""},
		{"tab\there no-break\u00a0space", "tab here no-break space", ""},
		{"bad \xff\xfe utf8 \xc3\xa9", "bad  utf8 é", ""},
		{"zero\x00byte", "zerobyte", ""},
		{strings.Repeat("é", 3000), strings.Repeat("é", 2046) + "…", ""},
	} {
		if output, perf := parseOutput([]byte(c.in)); output != c.output || perf != c.perf {
			t.Errorf("%.80q:\n got %q and %q\nwant %q and %q", c.in, output, perf, c.output, c.perf)
		}
	}
}

// FuzzOutput holds what parseOutput promises of any bytes, and that nothing is lost of a plain first line.
func FuzzOutput(f *testing.F) {
	for _, s := range []string{"OK | a=1", "A\nB|c\nd", "|", "\n|\n|", "\x1b[2J\u202e\xff|\x00", strings.Repeat("x\n", 5000)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		output, perf := parseOutput(b)
		if len(output) > maxOutput || len(perf) > maxPerf {
			t.Fatalf("%d and %d bytes", len(output), len(perf))
		}
		for _, s := range []string{output, perf} {
			if !utf8.ValidString(s) || strings.TrimSpace(s) != s {
				t.Fatalf("%q", s)
			}
			for _, r := range s {
				if unicode.IsControl(r) || unicode.In(r, unicode.Zl, unicode.Zp, unicode.Bidi_Control) {
					t.Fatalf("%q has %U", s, r)
				}
			}
		}
		if first, _, _ := strings.Cut(string(b), "\n"); !strings.Contains(first, "|") && len(clean(first)) < maxOutput-len("…") && !strings.HasPrefix(output, clean(first)) {
			t.Fatalf("%q does not begin with %q", output, first)
		}
	})
}
