// SPDX-License-Identifier: MIT

//go:build linux

package tour

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"mesh.internal/mesh/cmd/internal/lab"
)

// documents are those whose console blocks are run.
func documents(t *testing.T) map[string][]Block {
	t.Helper()
	paths, err := filepath.Glob("../../../docs/*.md")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no documents: %v", err)
	}
	all := map[string][]Block{}
	for _, p := range append(paths, "../../../README.md") {
		if strings.HasPrefix(filepath.Base(p), "demo-") {
			continue // the record of make demo-mesh or demo-services, which ran all of it
		}
		text, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimPrefix(p, "../../../")] = Parse(string(text))
	}
	return all
}

var makes = regexp.MustCompile(`^(?:sudo )?make ([a-z -]+)$`)

// ranBy says what runs a command that has no prompt: "" for nothing. ci is .ci/run, systems packaging/test/test-deb, which
// takes the commands that it types from the documents.
func ranBy(command, ci, systems string) string {
	command, _, _ = strings.Cut(command, "#")
	command = strings.TrimSpace(command)
	if m := makes.FindStringSubmatch(command); m != nil {
		for target := range strings.FieldsSeq(m[1]) {
			if !regexp.MustCompile(`(?m)^step .*\bmake ` + target + `\b`).MatchString(ci) {
				return ""
			}
		}
		return ".ci/run"
	}
	if program, _, _ := strings.Cut(strings.TrimPrefix(command, "sudo "), " ./"); strings.Contains(systems, "shown '"+program+"'") {
		return "packaging/test/test-deb"
	}
	return ""
}

// TestEveryBlock holds that every command of every console block is run by something, or that the document says why not;
// and that make has the targets.
func TestEveryBlock(t *testing.T) {
	ci, err1 := os.ReadFile("../../../.ci/run")
	systems, err2 := os.ReadFile("../../../packaging/test/test-deb")
	makefile, err3 := os.ReadFile("../../../Makefile")
	if err1 != nil || err2 != nil || err3 != nil {
		t.Fatal(err1, err2, err3)
	}
	commands := 0
	for document, blocks := range documents(t) {
		for _, b := range blocks {
			for _, s := range b.Steps {
				commands++
				by := "TestTour"
				if s.Host == "" {
					by = ranBy(s.Command, string(ci), string(systems))
				} else if document != "README.md" {
					by = ""
				}
				switch {
				case by == "" && b.Reason == "":
					t.Errorf("%s:%d: nothing runs %q: let a test do so, or say before the block \"(not run by a test: why)\"", document, s.Line, s.Command)
				case by == "":
					t.Logf("%s:%d: not run: %s: %s", document, s.Line, b.Reason, s.Command)
				}
				if m := makes.FindStringSubmatch(strings.TrimSpace(strings.Split(s.Command, "#")[0])); m != nil {
					for target := range strings.FieldsSeq(m[1]) {
						if !strings.Contains(string(makefile), "\n"+target+":") {
							t.Errorf("%s:%d: the Makefile has no %s", document, s.Line, target)
						}
					}
				}
			}
		}
	}
	if commands < 12 {
		t.Errorf("only %d commands were found", commands)
	}
}

func TestRanBy(t *testing.T) {
	for command, want := range map[string]string{
		"make test          # all": ".ci/run", "sudo make demo": ".ci/run", "make race check": ".ci/run", "make other": "",
		"make": "", "make test other": "", "sudo apt install ./x_*.deb": "packaging/test/test-deb", "sudo apt purge x": "", "curl https://example.org | sh": "",
	} {
		if got := ranBy(command, "step make demo\nstep env A=1 make test\nstep make race\nstep make check\n# make other\n", "run $(shown 'apt install')"); got != want {
			t.Errorf("%q: %q, want %q", command, got, want)
		}
	}
}

func TestParse(t *testing.T) {
	const text = "# Title\n\nOn a host:\n\n    a$ one --two   # three\n    out\n\n    more\n    b$ four\n\nNot\n    this.\n\n" +
		"This is far (not run by a test: needs\nthe Internet):\n\n    make x\n    make y\n\n```toml\nname = 1\n```\n\n```console\na$ five\n```\n"
	want := []Block{
		{Line: 5, Steps: []Step{{5, "a", "one --two   # three", []string{"out", "", "more"}}, {9, "b", "four", nil}}},
		{Line: 17, Reason: "needs the Internet", Steps: []Step{{17, "", "make x", nil}, {18, "", "make y", nil}}},
		{Line: 25, Steps: []Step{{25, "a", "five", nil}}},
	}
	got := Parse(text)
	for i := range got { // nil and empty are the same
		for j := range got[i].Steps {
			if len(got[i].Steps[j].Output) == 0 {
				got[i].Steps[j].Output = nil
			}
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
}

func TestDiffers(t *testing.T) {
	shown := []string{"10.11.0.2  fd77::1:2", "", "bkero 10.11.0.2  direct 198.18.2.2:7655  2.6 ms  3 s ago", "store ok, revision 6"}
	good := "10.11.0.2 fd5c:1::9\n\nbkero  10.11.0.2 direct [fd00:198:18:2::2]:7655 11.25 ms   1 s ago\nstore   ok, revision 41\nmore\n"
	if want, got, differs := Differs(shown, good); differs {
		t.Errorf("%q and %q have the same form", want, got)
	}
	for _, c := range [][2]string{{"fd5c:1::9", "nothing"}, {"10.11.0.2", "10.11.0.3"}, {"bkero", "nibz"}, {"direct", "none"}, {"11.25 ms", "-"}, {"ok", "unreachable"},
		{"store", "\nstore"}, {"store   ok, revision 41\nmore\n", ""}} {
		if _, _, differs := Differs(shown, strings.Replace(good, c[0], c[1], 1)); !differs {
			t.Errorf("%q in place of %q is not seen", c[1], c[0])
		}
	}
}

// stage is where the tour takes place: three hosts with the programs that a user would install.
type stage struct {
	*testing.T
	hosts map[string]*lab.Host
	up    map[string]bool // meshd was started
	token string          // the last invitation that was shown
}

func newStage(t *testing.T) *stage {
	lab.Require(t)
	built := t.TempDir()
	for _, p := range []string{"mesh", "meshd", "meshd-etcd"} {
		build := exec.Command("go", "build", "-tags", "netgo,osusergo", "-o", filepath.Join(built, p), "mesh.internal/mesh/cmd/"+p)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if out, err := exec.Command("../../../libnss_mesh/build.sh", filepath.Join(built, "libnss_mesh.so.2")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l := lab.New(slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &stage{T: t, hosts: map[string]*lab.Host{}, up: map[string]bool{}}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	router, err := l.Router("router")
	check(err)
	lib, err := lab.LibDir()
	check(err)
	for _, name := range []string{"spencer", "bkero", "nibz"} {
		h, err := l.Host(name)
		check(err)
		_, err = l.Connect(h, router)
		check(err)
		check(h.Install(filepath.Join(built, "mesh"), "/usr/bin/mesh", 0o755))
		check(h.Install(filepath.Join(built, "meshd"), "/usr/sbin/meshd", 0o755))
		check(h.Install(filepath.Join(built, "meshd-etcd"), "/usr/sbin/meshd-etcd", 0o755))
		check(h.Install(filepath.Join(built, "libnss_mesh.so.2"), filepath.Join(lib, "libnss_mesh.so.2"), 0o644))
		s.hosts[name] = h
	}
	return s
}

var token = regexp.MustCompile(`mesh://\S+`)

// play types a command. What it asks for before and after the answer is done: the invitation that it shows is the one of
// this run, and programs that it says to run, and keep running, are started.
func (s *stage) play(host, command string, shown []string) {
	s.Helper()
	h := s.hosts[host]
	if h == nil {
		s.Fatalf("there is no host %s", host)
	}
	command = token.ReplaceAllString(command, s.token)
	once := strings.HasPrefix(command, "mesh init") || strings.HasPrefix(command, "mesh join")
	begin := time.Now()
	for {
		ctx, cancel := context.WithTimeout(s.Context(), 20*time.Second)
		b, err := h.Command(ctx, "sh", "-c", command).CombinedOutput()
		cancel()
		out := string(b)
		want, got, differs := Differs(shown, out)
		if err == nil && !differs {
			s.Logf("%s$ %s", host, command)
			if t := token.FindString(out); t != "" {
				s.token = t
			}
			s.start(h, out)
			return
		}
		if once || time.Since(begin) > 20*time.Second { // what one host is told the others know a moment later
			if err != nil {
				s.Fatalf("%s$ %s\n%v: %s", host, command, err, out)
			}
			s.Fatalf("%s$ %s\nthe document shows %q\nwhere there is  %q\nin:\n%s", host, command, want, got, out)
		}
	}
}

// start starts what an output says to run.
func (s *stage) start(h *lab.Host, out string) {
	s.Helper()
	_, programs, ok := strings.Cut(out, "Now run, and keep running:\n")
	if !ok {
		return
	}
	for line := range strings.Lines(programs) {
		if args := strings.Fields(line); len(args) > 0 {
			if _, err := h.Start(args[0], args[1:]...); err != nil {
				s.Fatal(err)
			}
			s.up[h.Name] = s.up[h.Name] || args[0] == "meshd"
		}
	}
}

// TestTour types what README.md shows.
func TestTour(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the programs as they are shipped, which the race detector does not see")
	}
	s := newStage(t)
	for _, b := range documents(t)["README.md"] {
		for _, step := range b.Steps {
			if step.Host == "" {
				continue
			}
			if !s.up[step.Host] && len(s.up) > 0 && !strings.HasPrefix(step.Command, "mesh join") {
				// Not shown: the third host joins as the second did.
				shown := s.token
				s.play("spencer", "mesh invite "+step.Host, nil)
				s.play(step.Host, "mesh join mesh://…", nil)
				s.token = shown
			}
			s.play(step.Host, step.Command, step.Output)
		}
	}
	if names := slices.Sorted(maps.Keys(s.up)); !slices.Equal(names, []string{"bkero", "nibz", "spencer"}) {
		t.Errorf("the tour was on %v", names)
	}
}
