package deptest

import (
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
	"slices"
	"strings"
	"testing"
)

const (
	noInit    = "init() runs before anybody can pass it a setting, a context or an error to return; call a constructor"
	noMutable = "a mutable global is shared by every test and every instance in a process; make it a field"
)

func TestSource_HasNoInitAndNoMutableGlobals(t *testing.T) {
	for _, broken := range globals(readSource(t)) {
		t.Error(broken)
	}
}

// globals finds init functions and package variables that can change, in all code but tests. A variable is fine if it is
// never assigned to nor its address taken, in its package and its tests, and begins as a value that holds still: error
// sentinels, compiled expressions, embedded files, tables, what the linker sets.
func globals(s *source) []string {
	var broken []string
	for _, p := range s.sorted() {
		var files []*ast.File
		for _, f := range p.files {
			if !strings.HasSuffix(f.Name.Name, "_test") {
				files = append(files, f.File)
			}
			for _, decl := range f.Decls {
				if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" && !f.isTest() {
					broken = append(broken, fmt.Sprintf("%s: %s", s.at(fn), noInit))
				}
			}
		}
		changed := changedVariables(s, files)
		for _, f := range p.files {
			if f.isTest() {
				continue
			}
			for _, decl := range f.Decls {
				if gen, ok := decl.(*ast.GenDecl); ok && gen.Tok == token.VAR {
					broken = append(broken, mutable(s, gen, changed)...)
				}
			}
		}
	}
	return broken
}

// mutable says what is wrong with the variables of one declaration.
func mutable(s *source, gen *ast.GenDecl, changed map[string]ast.Node) []string {
	var broken []string
	for _, spec := range gen.Specs {
		v := spec.(*ast.ValueSpec)
		for i, name := range v.Names {
			var value ast.Expr
			if i < len(v.Values) {
				value = v.Values[i]
			}
			why := ""
			switch by, isChanged := changed[name.Name]; {
			case name.Name == "_":
			case isChanged:
				why = "is changed at " + s.at(by)
			case value == nil && !embedded(gen, v):
				why = "begins empty, so something has to fill it"
			case stateful(v.Type) || stateful(value):
				why = "holds state"
			}
			if why != "" {
				broken = append(broken, fmt.Sprintf("%s: %s %s: %s", s.at(name), name.Name, why, noMutable))
			}
		}
	}
	return broken
}

func embedded(gen *ast.GenDecl, v *ast.ValueSpec) bool {
	for _, doc := range []*ast.CommentGroup{gen.Doc, v.Doc} {
		if doc != nil && slices.ContainsFunc(doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed ") }) {
			return true
		}
	}
	return false
}

// stateful: whether an expression, a variable's type or first value, is one that exists to be changed: locks and atomics,
// channels, pointers to something made here, and the results of calls, except of functions that make values that hold still.
func stateful(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.ChanType:
		return true
	case *ast.StarExpr:
		return false // a type such as *regexp.Regexp; its value decides
	case *ast.SelectorExpr:
		x, ok := e.X.(*ast.Ident)
		return ok && (x.Name == "sync" || x.Name == "atomic")
	case *ast.IndexExpr:
		return stateful(e.X) // atomic.Pointer[T]
	case *ast.CompositeLit:
		return stateful(e.Type)
	case *ast.UnaryExpr:
		return e.Op == token.AND
	case *ast.CallExpr:
		return !holdsStill(e.Fun)
	}
	return false
}

// holdsStill: whether a call of fn makes a value that does not change afterwards.
func holdsStill(fn ast.Expr) bool {
	switch fn := fn.(type) {
	case *ast.ParenExpr:
		return true // (*T)(nil)
	case *ast.ArrayType:
		return true // []byte("…")
	case *ast.Ident:
		return strings.HasPrefix(fn.Name, "must") || slices.Contains([]string{"string", "len", "min", "max"}, fn.Name)
	case *ast.SelectorExpr:
		if strings.HasPrefix(fn.Sel.Name, "Must") {
			return true // regexp.MustCompile, template.Must, netip.MustParseAddr
		}
		x, ok := fn.X.(*ast.Ident)
		return ok && slices.Contains([]string{
			"errors.New", "fmt.Errorf", "time.Duration", "time.Unix", "time.Date",
			"strings.NewReplacer", "strings.Repeat", "netip.AddrFrom4", "reflect.TypeFor",
		}, x.Name+"."+fn.Sel.Name)
	}
	return false
}

// changedVariables finds package variables that are assigned to, also in part, counted up or down, or whose address is taken.
// Types of other packages are not loaded: names resolve without them, and that is all this needs.
func changedVariables(s *source, files []*ast.File) map[string]ast.Node {
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	config := types.Config{Importer: noImports{}, Error: func(error) {}}
	checked, _ := config.Check("p", s.fset, files, info) // errors about missing imports are expected
	changed := map[string]ast.Node{}
	if checked == nil {
		return changed
	}
	mark := func(target ast.Expr) {
		if name := root(target); name != nil {
			if v, ok := info.Uses[name].(*types.Var); ok && v.Parent() == checked.Scope() {
				changed[name.Name] = target
			}
		}
	}
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				for _, target := range n.Lhs {
					mark(target)
				}
			case *ast.IncDecStmt:
				mark(n.X)
			case *ast.RangeStmt:
				mark(n.Key)
				mark(n.Value)
			case *ast.UnaryExpr:
				if n.Op == token.AND {
					mark(n.X)
				}
			case *ast.CallExpr:
				if fn, ok := n.Fun.(*ast.Ident); ok && (fn.Name == "delete" || fn.Name == "clear") && len(n.Args) > 0 {
					mark(n.Args[0])
				}
			}
			return true
		})
	}
	return changed
}

// root is the variable at the bottom of x, x.f, x[i], *x and (x).
func root(e ast.Expr) *ast.Ident {
	switch e := e.(type) {
	case *ast.Ident:
		return e
	case *ast.SelectorExpr:
		return root(e.X)
	case *ast.IndexExpr:
		return root(e.X)
	case *ast.StarExpr:
		return root(e.X)
	case *ast.ParenExpr:
		return root(e.X)
	}
	return nil
}

type noImports struct{}

func (noImports) Import(path string) (*types.Package, error) {
	return nil, fmt.Errorf("%s is not loaded", path)
}

func TestSource_FindsInitAndMutableGlobals(t *testing.T) {
	s := newSource(t, "m", map[string]string{
		"todo/good.go": `package todo
import ("embed"; "errors"; "regexp"; "time")
// ErrGone has a comment.
var ErrGone = errors.New("gone")
var number = regexp.MustCompile("[0-9]+")
//go:embed x.sql
var files embed.FS
var codes = map[string]int{"a": 1}
var version = "dev"
var wait = 3 * time.Second
var _ error = (*E)(nil)
type E struct{ codes map[string]int }
func (e *E) Error() string { codes := e.codes; codes["b"] = 1; for version := range codes { _ = version }; return "" }
func (e *E) init() {}
`,
		"todo/bad.go": `package todo
import ("net/http"; "sync"; "sync/atomic"; "time")
var mu sync.Mutex
var count int = 1
var calls = atomic.Int64{}
var table = map[string]int{}
var client = &http.Client{}
var started = time.Now()
var now = time.Now
var later chan int
var part = struct{ n int }{}
var hit atomic.Pointer[int]
func init() {}
func f() { count++; table["a"] = 1; part.n = 2 }
`,
		"todo/bad_test.go": `package todo
import "time"
var fixture int
func init() {}
func g() { now = func() time.Time { return time.Time{} }; fixture = 1 }
`,
	})
	wantPrefixes(t, globals(s),
		"todo/bad.go:3: mu begins empty",
		"todo/bad.go:4: count is changed at todo/bad.go:14",
		"todo/bad.go:5: calls holds state",
		"todo/bad.go:6: table is changed at todo/bad.go:14",
		"todo/bad.go:7: client holds state",
		"todo/bad.go:8: started holds state",
		"todo/bad.go:9: now is changed at todo/bad_test.go:5",
		"todo/bad.go:10: later begins empty",
		"todo/bad.go:11: part is changed at todo/bad.go:14",
		"todo/bad.go:12: hit begins empty",
		"todo/bad.go:13: init() runs",
	)
}
