// SPDX-License-Identifier: MIT

// Package archtest holds the rules of the repository as tests: who may import whom, and what every file must and must
// not have. The rules read the files themselves and run no tool, so their verdict is about the tree as it is and is never
// served from a cache of an older one. It starts no goroutine and changes nothing.
package archtest

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// tree is a repository in memory.
type tree struct {
	fset  *token.FileSet
	files []*file           // Go files
	texts map[string][]byte // all files by path
	tops  []string          // names at the top level
}

// file is a Go file.
type file struct {
	path   string
	pkg    string // folder
	isTest bool
	src    []byte
	ast    *ast.File
}

// read reads a repository, except what its .gitignore keeps out of it.
func read(root fs.FS) (*tree, error) {
	t := &tree{fset: token.NewFileSet(), texts: map[string][]byte{}}
	ignored := []string{".git"}
	if list, err := fs.ReadFile(root, ".gitignore"); err == nil {
		for _, pattern := range strings.Fields(string(list)) {
			ignored = append(ignored, strings.Trim(pattern, "/"))
		}
	}
	err := fs.WalkDir(root, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == "." {
			return err
		}
		for _, pattern := range ignored {
			if ok, err := path.Match(pattern, path.Base(p)); ok || err != nil {
				if d.IsDir() {
					return fs.SkipDir
				}
				return err
			}
		}
		if !strings.Contains(p, "/") {
			t.tops = append(t.tops, p)
		}
		if d.IsDir() {
			return nil
		}
		src, err := fs.ReadFile(root, p)
		if err != nil {
			return err
		}
		t.texts[p] = src
		if path.Ext(p) != ".go" || slices.Contains(strings.Split(p, "/"), "testdata") {
			return nil
		}
		f := &file{path: p, pkg: path.Dir(p), isTest: strings.HasSuffix(p, "_test.go"), src: src}
		if f.ast, err = parser.ParseFile(t.fset, p, src, parser.ParseComments); err != nil {
			return fmt.Errorf("parsing: %w", err)
		}
		t.files = append(t.files, f)
		return nil
	})
	return t, err
}

func (f *file) imports() []string {
	var paths []string
	for _, spec := range f.ast.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err == nil {
			paths = append(paths, p)
		}
	}
	return paths
}

func (t *tree) at(pos token.Pos) string {
	p := t.fset.Position(pos)
	return fmt.Sprintf("%s:%d", p.Filename, p.Line)
}

const licence = "// SPDX-License-Identifier: MIT"

// checkForm demands gofmt and the licence line of every Go file.
func checkForm(t *tree) []string {
	var found []string
	for _, f := range t.files {
		if formatted, err := format.Source(f.src); err != nil || !bytes.Equal(formatted, f.src) {
			found = append(found, f.path+": is not gofmt's form: run gofmt -w on it")
		}
		if first, _, _ := strings.Cut(string(f.src), "\n"); first != licence {
			found = append(found, f.path+": its first line is not "+licence)
		}
	}
	return found
}

// checkDocs demands that every package says what it is.
func checkDocs(t *tree) []string {
	doc := map[string]bool{}
	for _, f := range t.files {
		if name := f.ast.Name.Name; f.isTest && strings.HasSuffix(name, "_test") {
			continue
		}
		text := f.ast.Doc.Text()
		named := strings.HasPrefix(text, "Package "+f.ast.Name.Name+" ") ||
			f.ast.Name.Name == "main" && text != "" && !strings.HasPrefix(text, "SPDX")
		doc[f.pkg] = doc[f.pkg] || named && !f.isTest
	}
	var found []string
	for pkg, ok := range doc {
		if !ok {
			found = append(found, pkg+": no file has a package comment (Package name …) that says what it does and must not do")
		}
	}
	return found
}

// checkTests forbids tests that sleep: they are slow when they pass and fail when the machine is slow.
func checkTests(t *tree) []string {
	var found []string
	for _, f := range t.files {
		if !f.isTest {
			continue
		}
		name := f.nameOf("time")
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && sel.Sel.Name == "Sleep" {
				if id, ok := sel.X.(*ast.Ident); ok && id.Name == name {
					found = append(found, t.at(n.Pos())+": a test sleeps: use testing/synctest, a channel or an event")
				}
			}
			return true
		})
	}
	return found
}

// nameOf returns the name by which the file knows a package of the standard library.
func (f *file) nameOf(pkg string) string {
	for _, spec := range f.ast.Imports {
		if spec.Path.Value == strconv.Quote(pkg) && spec.Name != nil {
			return spec.Name.Name
		}
	}
	return path.Base(pkg)
}

// checkInit forbids init functions: importing a package must not do anything.
func checkInit(t *tree) []string {
	var found []string
	for _, f := range t.files {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				found = append(found, t.at(fn.Pos())+": an init function: let the caller call it")
			}
		}
	}
	return found
}

var (
	unfinished  = regexp.MustCompile(`\b(TODO|FIXME|XXX)\b`)
	machinePath = regexp.MustCompile(`(^|[^\w./-])/(root|home|work|farm)/\w`)
)

// checkText forbids promises of later work and paths of one machine, in all files. In Go files a promise is a comment; a
// document may name the words.
func checkText(t *tree) []string {
	var found []string
	for p, src := range t.texts {
		if bytes.IndexByte(src, 0) >= 0 || path.Base(p) == "go.sum" || strings.HasPrefix(p, "cmd/internal/archtest/") {
			continue
		}
		for n, line := range slices.Collect(strings.Lines(string(src))) {
			if machinePath.MatchString(line) {
				found = append(found, fmt.Sprintf("%s:%d: a path of one machine", p, n+1))
			}
			if ext := path.Ext(p); ext != ".go" && ext != ".md" && unfinished.MatchString(line) {
				found = append(found, fmt.Sprintf("%s:%d: do it now or open an issue", p, n+1))
			}
		}
	}
	for _, f := range t.files {
		for _, group := range f.ast.Comments {
			for _, c := range group.List {
				if unfinished.MatchString(c.Text) && !strings.HasPrefix(f.path, "cmd/internal/archtest/") {
					found = append(found, t.at(c.Pos())+": do it now or open an issue")
				}
			}
		}
	}
	return found
}

// top is what the top level may hold.
var top = strings.Fields(`cmd nss libnss_mesh resolver vpn packaging docs go.mod go.sum Makefile README.md ARCHITECTURE.md
	CONTRIBUTING.md CHANGELOG.md LICENSE .ci .gitignore .gitattributes .golangci.yml .editorconfig`)

// checkTop forbids everything else at the top level.
func checkTop(t *tree) []string {
	var found []string
	for _, name := range t.tops {
		if !slices.Contains(top, name) {
			found = append(found, name+": nothing else belongs at the top level")
		}
	}
	return found
}

var (
	ruleLine = regexp.MustCompile(`(?m)^\W*R(\d+)\b(.*)$`)
	testName = regexp.MustCompile("`((?:Test|Fuzz)\\w+)`")
)

// checkRules demands that the rules of ARCHITECTURE.md, lines such as "R1 … — `TestName`", are numbered from 1 and that
// each names tests that exist.
func checkRules(t *tree) []string {
	tests := map[string]bool{}
	for _, f := range t.files {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && f.isTest && fn.Recv == nil {
				tests[fn.Name.Name] = true
			}
		}
	}
	var found []string
	for i, m := range ruleLine.FindAllStringSubmatch(string(t.texts["ARCHITECTURE.md"]), -1) {
		if m[1] != strconv.Itoa(i+1) {
			found = append(found, fmt.Sprintf("ARCHITECTURE.md: R%s where R%d is next", m[1], i+1))
		}
		names := testName.FindAllStringSubmatch(m[2], -1)
		if names == nil {
			found = append(found, fmt.Sprintf("ARCHITECTURE.md: R%s names no test", m[1]))
		}
		for _, name := range names {
			if !tests[name[1]] {
				found = append(found, fmt.Sprintf("ARCHITECTURE.md: R%s names %s, which does not exist", m[1], name[1]))
			}
		}
	}
	return found
}
