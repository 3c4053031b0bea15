package deptest

import (
	"bufio"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// source is a module's Go source, by package.
type source struct {
	module   string
	fset     *token.FileSet
	packages map[string]*pkg // by the path below the module: "creds", "internal/lab", "" for the top
}

// pkg is one directory of Go files, its tests among them.
type pkg struct {
	path  string
	files []*file
}

type file struct {
	*ast.File
	name string // below the module, with slashes
}

func (f *file) isTest() bool { return strings.HasSuffix(f.name, "_test.go") }

// imports lists what the file imports: path below the module for packages of ours, full path for others.
func (s *source) imports(f *file) []string {
	var paths []string
	for _, spec := range f.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue // then it does not compile, and the compiler says so better
		}
		if rest, ours := strings.CutPrefix(p, s.module+"/"); ours {
			p = "./" + rest
		}
		paths = append(paths, p)
	}
	return paths
}

func (s *source) at(n ast.Node) string {
	p := s.fset.Position(n.Pos())
	return fmt.Sprintf("%s:%d", p.Filename, p.Line)
}

// sorted returns the packages in a stable order.
func (s *source) sorted() []*pkg {
	all := make([]*pkg, 0, len(s.packages))
	for _, p := range s.packages {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *pkg) int { return strings.Compare(a.path, b.path) })
	return all
}

// newSource parses files given as name → content, for the tests of the rules themselves.
func newSource(t *testing.T, module string, files map[string]string) *source {
	t.Helper()
	s := &source{module: module, fset: token.NewFileSet(), packages: map[string]*pkg{}}
	for name, content := range files {
		s.add(t, name, content)
	}
	return s
}

func (s *source) add(t *testing.T, name, content string) {
	t.Helper()
	parsed, err := parser.ParseFile(s.fset, name, content, parser.SkipObjectResolution|parser.ParseComments)
	if err != nil {
		t.Fatalf("parse: %v", err)
	}
	dir := path.Dir(name)
	if dir == "." {
		dir = ""
	}
	if s.packages[dir] == nil {
		s.packages[dir] = &pkg{path: dir}
	}
	s.packages[dir].files = append(s.packages[dir].files, &file{File: parsed, name: name})
}

// readSource parses the module this test belongs to, without the modules nested in it.
func readSource(t *testing.T) *source {
	t.Helper()
	root := moduleRoot(t)
	files := map[string]string{}
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir():
			return skipDir(root, name, entry)
		case filepath.Ext(name) != ".go":
			return nil
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		below, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		files[filepath.ToSlash(below)] = string(content)
		return nil
	})
	if err != nil {
		t.Fatalf("read the source: %v", err)
	}
	return newSource(t, modulePath(t, root), files)
}

// skipDir skips what the go command skips: hidden and underscored directories, testdata, nested modules.
func skipDir(root, name string, entry fs.DirEntry) error {
	if name == root {
		return nil
	}
	base := entry.Name()
	if base == "testdata" || base == "bin" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") {
		return fs.SkipDir
	}
	if _, err := os.Stat(filepath.Join(name, "go.mod")); err == nil {
		return fs.SkipDir
	}
	return nil
}

// moduleRoot is the directory of the go.mod above this package.
func moduleRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if filepath.Dir(dir) == dir {
			t.Fatal("no go.mod above this package")
		}
		dir = filepath.Dir(dir)
	}
}

func modulePath(t *testing.T, root string) string {
	t.Helper()
	content, err := os.Open(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	for lines := bufio.NewScanner(content); lines.Scan(); {
		if module, found := strings.CutPrefix(lines.Text(), "module "); found {
			return strings.TrimSpace(module)
		}
	}
	t.Fatal("go.mod names no module")
	return ""
}
