// SPDX-License-Identifier: MIT

//go:build linux

package doctor

import (
	"strings"
	"testing"
)

func TestParseNsswitch(t *testing.T) {
	for _, c := range []struct{ line, want, after, err string }{
		// after: what is done at SUCCESS, NOTFOUND, UNAVAIL, TRYAGAIN behind the last source
		{"files dns", "files dns", "return continue continue continue", ""},
		{"\tfiles\t mesh  # not dns", "files mesh", "return continue continue continue", ""},
		{"resolve [!UNAVAIL=return]", "resolve [!UNAVAIL=return]", "return return continue return", ""},
		{"x [NOTFOUND=return]", "x [NOTFOUND=return]", "return return continue continue", ""},
		{"x[notfound=RETURN]y", "x [NOTFOUND=return] y", "return continue continue continue", ""},
		{"x [ ! SUCCESS = return  SUCCESS=merge ]", "x [!SUCCESS=return SUCCESS=merge]", "merge return return return", ""},
		{"x [SUCCESS=continue] [UNAVAIL=return]", "x [SUCCESS=continue UNAVAIL=return]", "continue continue return continue", ""},
		{"x [!NOTFOUND=return NOTFOUND=continue TRYAGAIN=continue]", "x [!NOTFOUND=return NOTFOUND=continue TRYAGAIN=continue]", "return continue return continue", ""},
		{"[NOTFOUND=return] x", "", "", "begins"},
		{"x [NOTFOUND=return", "x", "return continue continue continue", "not closed"},
		{"x [NOTFOUND] y", "x", "return continue continue continue", "not [STATUS=action]"},
		{"x [MISSING=return] y", "x", "return continue continue continue", "MISSING=return is unknown"},
		{"x [!] y", "x", "return continue continue continue", "not [STATUS"},
		{"", "", "", ""},
	} {
		d := ParseNsswitch("# a comment\n\n  hosts :" + c.line + "\n")["hosts"]
		if d == nil || d.Line != 3 || d.String() != c.want || (c.err == "") != (d.Err == "") || !strings.Contains(d.Err, c.err) {
			t.Errorf("%q: %+v, want %q, error %q", c.line, d, c.want, c.err)
			continue
		}
		var after []string
		if n := len(d.Services); n > 0 {
			for _, s := range statuses {
				after = append(after, d.Services[n-1].after(s))
			}
		}
		if got := strings.Join(after, " "); got != c.after {
			t.Errorf("%q: after %s, want %s", c.line, got, c.after)
		}
	}
}

// FuzzNsswitch: what was parsed says of itself what it says when it is parsed again.
func FuzzNsswitch(f *testing.F) {
	f.Add("hosts: files mesh [!UNAVAIL=return success = merge] dns # x")
	f.Add("hosts:[")
	f.Fuzz(func(t *testing.T, text string) {
		for _, d := range ParseNsswitch(text) {
			again := ParseNsswitch("x: " + d.String())["x"]
			if again == nil || again.Err != "" || again.String() != d.String() {
				t.Errorf("%q, again %+v", d.String(), again)
			}
			if p := parseDatabase(d.proposed()); p.Err != "" || p.Services[1].Name != moduleName {
				t.Errorf("proposed %q", d.proposed())
			}
		}
	})
}
