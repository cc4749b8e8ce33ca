// SPDX-License-Identifier: MIT

package archtest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

// repository reads the repository this test is in.
func repository(t *testing.T) *tree {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		} else if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			t.Fatalf("no go.mod above this test: %v", err)
		}
		dir = filepath.Dir(dir)
	}
	repo, err := read(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	if len(repo.files) < 10 {
		t.Fatalf("only %d Go files found", len(repo.files))
	}
	return repo
}

func report(t *testing.T, found []string) {
	t.Helper()
	for _, f := range found {
		t.Error(f)
	}
}

func TestImports(t *testing.T)           { report(t, checkImports(repository(t))) }
func TestForm(t *testing.T)              { report(t, checkForm(repository(t))) }
func TestPackageDocs(t *testing.T)       { report(t, checkDocs(repository(t))) }
func TestNoSleepInTests(t *testing.T)    { report(t, checkTests(repository(t))) }
func TestNoInit(t *testing.T)            { report(t, checkInit(repository(t))) }
func TestNothingUnfinished(t *testing.T) { report(t, checkText(repository(t))) }
func TestTopLevel(t *testing.T)          { report(t, checkTop(repository(t))) }
func TestRulesHaveTests(t *testing.T)    { report(t, checkRules(repository(t))) }

// TestRulesBite shows each check a tree that breaks its rule and one beside it that does not.
func TestRulesBite(t *testing.T) {
	const head = licence + "\n\n"
	doc := func(pkg, rest string) string {
		return head + "// Package " + pkg + " is an example.\npackage " + pkg + "\n" + rest
	}
	imports := func(pkg string, paths ...string) string {
		var b strings.Builder
		for _, p := range paths {
			b.WriteString("\nimport _ \"" + p + "\"\n")
		}
		return doc(pkg, b.String())
	}
	for _, c := range []struct {
		name  string
		check func(*tree) []string
		path  string
		src   string
		want  string // part of the one finding; empty for none
	}{
		{"an engine imports another", checkImports, "vpn/peer.go", imports("vpn", module+"/resolver"), "vpn may not import resolver"},
		{"an engine imports its own", checkImports, "vpn/peer.go", imports("vpn", module+"/vpn/identity"), ""},
		{"a prefix is not a folder", checkImports, "vpn/peer.go", imports("vpn", module+"/vpnx"), "may not import vpnx"},
		{"an engine imports the root", checkImports, "resolver/x.go", imports("resolver", module+"/cmd/internal/config"), "knows names and no packets"},
		{"the leaf imports anything of ours", checkImports, "nss/leaf/x.go", imports("leaf", module+"/nss"), "nss/leaf may not"},
		{"the module imports the writer", checkImports, "libnss_mesh/x.go", imports("main", module+"/nss"), "every program of the machine"},
		{"a test of the module imports the writer", checkImports, "libnss_mesh/x_test.go", imports("main", module+"/nss"), ""},
		{"the store imports what is above", checkImports, "resolver/store/x.go", imports("store", module+"/resolver"), "resolver/store may not"},
		{"the closer rule holds", checkImports, "resolver/store/etcd/x.go", imports("etcd", module+"/resolver/dnsd"), "resolver/store/etcd may not"},
		{"a test imports the double below", checkImports, "resolver/store/x_test.go", imports("store_test", module+"/resolver/store", module+"/resolver/store/storetest"), ""},
		{"a program imports the double", checkImports, "resolver/store/x.go", imports("store", module+"/resolver/store/storetest"), "may not import"},
		{"the root imports all engines", checkImports, "cmd/internal/daemon/x.go", imports("daemon", module+"/vpn", module+"/resolver", module+"/nss"), ""},
		{"a package nobody thought of", checkImports, "tools/x.go", doc("tools", ""), "not in the lattice"},
		{"a second importer of etcd", checkImports, "resolver/x.go", imports("resolver", "go.etcd.io/etcd/client/v3"), "only resolver/store/etcd"},
		{"the importer of etcd", checkImports, "resolver/store/etcd/x.go", imports("etcd", "go.etcd.io/etcd/client/v3"), ""},
		{"the server behind the seam", checkImports, "resolver/store/etcd/x.go", imports("etcd", "go.etcd.io/etcd/server/v3/embed"), "full disk"},
		{"the server in a test", checkImports, "resolver/store/etcd/x_test.go", imports("etcd", "go.etcd.io/etcd/server/v3/embed"), ""},
		{"DNS elsewhere", checkImports, "cmd/mesh/x.go", imports("main", "github.com/miekg/dns"), "only resolver/dnsd"},
		{"the tunnel engine elsewhere", checkImports, "cmd/meshd/x.go", imports("main", "golang.zx2c4.com/wireguard/device"), "may not import golang.zx2c4.com"},
		{"netlink elsewhere", checkImports, "vpn/x.go", imports("vpn", "github.com/vishvananda/netlink/nl"), "may not import github.com/vishvananda"},
		{"cobra in an engine", checkImports, "nss/x.go", imports("nss", "github.com/spf13/cobra"), "no command line"},
		{"cobra in a program", checkImports, "cmd/mesh/x.go", imports("main", "github.com/spf13/cobra"), ""},
		{"cgo elsewhere", checkImports, "nss/x.go", imports("nss", "C"), "may not import C"},
		{"cgo in the module", checkImports, "libnss_mesh/x.go", imports("main", "C"), ""},

		{"not gofmt", checkForm, "vpn/x.go", doc("vpn", "var  x int\n"), "gofmt"},
		{"no licence", checkForm, "vpn/x.go", "// Package vpn is an example.\npackage vpn\n", "first line"},
		{"good form", checkForm, "vpn/x.go", doc("vpn", ""), ""},

		{"no package comment", checkDocs, "vpn/x.go", head + "package vpn\n", "vpn: no file"},
		{"the licence is no comment", checkDocs, "cmd/mesh/x.go", licence + "\npackage main\n", "cmd/mesh: no file"},
		{"a comment on something else", checkDocs, "vpn/x.go", head + "// Hello.\npackage vpn\n", "vpn: no file"},
		{"a package comment", checkDocs, "vpn/x.go", doc("vpn", ""), ""},
		{"a program's comment", checkDocs, "cmd/mesh/x.go", head + "// Mesh is an example.\npackage main\n", ""},

		{"a test sleeps", checkTests, "vpn/x_test.go", doc("vpn", "\nimport \"time\"\n\nfunc f() { time.Sleep(1) }\n"), "x_test.go:8: a test sleeps"},
		{"a test sleeps by another name", checkTests, "vpn/x_test.go", doc("vpn", "\nimport clock \"time\"\n\nvar f = clock.Sleep\n"), "a test sleeps"},
		{"a program sleeps", checkTests, "vpn/x.go", doc("vpn", "\nimport \"time\"\n\nvar f = time.Sleep\n"), ""},
		{"somebody else's Sleep", checkTests, "vpn/x_test.go", doc("vpn", "\nvar f = bed.Sleep\n"), ""},

		{"an init function", checkInit, "vpn/x.go", doc("vpn", "\nfunc init() {}\n"), "init function"},
		{"a method named init", checkInit, "vpn/x.go", doc("vpn", "\ntype t int\n\nfunc (t) init() {}\n"), ""},

		{"work promised", checkText, "vpn/x.go", doc("vpn", "\n// TODO: later\n"), "x.go:6: do it now"},
		{"work promised in a script", checkText, "packaging/x.sh", "true # FIXME\n", "x.sh:1: do it now"},
		{"a temporary file's name", checkText, "packaging/x.sh", "mktemp -d mesh.XXXXXX\n", ""},
		{"a document names the words", checkText, "docs/x.md", "No TODO comments.\n", ""},
		{"a path of one machine", checkText, "Makefile", "x:\n\tcp x /home/jo/x\n", "Makefile:2: a path of one machine"},
		{"another one", checkText, "vpn/x.go", doc("vpn", "\nconst p = \"/root/x\"\n"), "a path of one machine"},
		{"part of a path", checkText, "docs/x.md", "see ./work/x and a/home/x\n", ""},

		{"something at the top", checkTop, "notes.txt", "x\n", "notes.txt: nothing else"},
		{"a folder at the top", checkTop, "internal/x.go", doc("x", ""), "internal: nothing else"},
		{"what belongs there", checkTop, "README.md", "x\n", ""},

		{"a rule without a test", checkRules, "ARCHITECTURE.md", "R1 Be good.\n", "R1 names no test"},
		{"a rule with a test that is gone", checkRules, "ARCHITECTURE.md", "R1 Be good. — `TestGone`\n", "TestGone, which does not exist"},
		{"a rule is missing", checkRules, "ARCHITECTURE.md", "- **R2** Be good. — `TestHere`\n", "R2 where R1 is next"},
		{"a rule with its test", checkRules, "ARCHITECTURE.md", "- **R1** Be good. — `TestHere`\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			repo, err := read(fstest.MapFS{
				".gitignore":       {Data: []byte("/build/\n")},
				"build/x.go":       {Data: []byte("not Go, and not ours")},
				"nss/here_test.go": {Data: []byte(doc("nss", "\nfunc TestHere() {}\n"))},
				"nss/here.go":      {Data: []byte(doc("nss", ""))},
				c.path:             {Data: []byte(c.src)},
			})
			if err != nil {
				t.Fatal(err)
			}
			switch found := c.check(repo); {
			case c.want == "" && len(found) > 0:
				t.Errorf("found %q in a good tree", found)
			case c.want != "" && (len(found) != 1 || !strings.Contains(found[0], c.want)):
				t.Errorf("found %q, want one with %q", found, c.want)
			}
		})
	}
}
