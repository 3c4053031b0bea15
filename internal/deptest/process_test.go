package deptest

import (
	"fmt"
	"go/ast"
	"slices"
	"strings"
	"testing"
)

// callRule forbids names of a package, such as os.Getenv, in some files.
type callRule struct {
	pkg    string   // import path
	names  []string // what may not be used from it
	binds  func(*file) bool
	reason string
}

func callRules() []callRule {
	return []callRule{
		{
			pkg: "os", names: []string{"Getenv", "LookupEnv", "Environ", "ExpandEnv", "Setenv", "Unsetenv", "Clearenv"}, binds: outsideCommands,
			reason: "the environment is read once, in cmd/, into one table of settings; a package takes a Config",
		},
		{
			pkg: "syscall", names: []string{"Getenv", "Environ", "Exit"}, binds: outsideCommands,
			reason: "the environment and the exit belong to the process, so to cmd/",
		},
		{
			pkg: "os", names: []string{"Exit"}, binds: outsideCommands,
			reason: "whoever exits skips everybody's deferred calls; return an error and let cmd/ decide",
		},
		{
			pkg: "log", names: []string{"Fatal", "Fatalf", "Fatalln"}, binds: outsideCommands,
			reason: "log.Fatal exits; return an error and let cmd/ decide",
		},
		{
			pkg: "time", names: []string{"Sleep"}, binds: func(f *file) bool { return !importsAny(f, "testing/synctest") },
			reason: "a sleep guesses; wait for the condition, select on ctx, or use testing/synctest, whose clock may sleep",
		},
	}
}

// outsideCommands: everything but commands, tests, and what only tests use.
func outsideCommands(f *file) bool {
	return !f.isTest() && !strings.HasPrefix(f.name, "cmd/") && !strings.HasPrefix(f.name, "internal/labtest/")
}

func importsAny(f *file, paths ...string) bool {
	return slices.ContainsFunc(f.Imports, func(spec *ast.ImportSpec) bool {
		return slices.Contains(paths, strings.Trim(spec.Path.Value, `"`))
	})
}

func TestSource_LeavesTheProcessToCommandsAndNeverSleeps(t *testing.T) {
	for _, broken := range forbiddenCalls(readSource(t), callRules()) {
		t.Error(broken)
	}
}

func forbiddenCalls(s *source, rules []callRule) []string {
	var broken []string
	for _, p := range s.sorted() {
		for _, f := range p.files {
			for _, rule := range rules {
				if !rule.binds(f) {
					continue
				}
				for _, use := range uses(f, rule.pkg, rule.names) {
					broken = append(broken, fmt.Sprintf("%s: %s.%s: %s", s.at(use), rule.pkg, use.Sel.Name, rule.reason))
				}
			}
		}
	}
	return broken
}

// uses finds pkg.name for any of names, called or passed on, under whatever name the file imports pkg.
func uses(f *file, pkg string, names []string) []*ast.SelectorExpr {
	local := ""
	for _, spec := range f.Imports {
		if strings.Trim(spec.Path.Value, `"`) != pkg {
			continue
		}
		local = pkg[strings.LastIndex(pkg, "/")+1:]
		if spec.Name != nil {
			local = spec.Name.Name
		}
	}
	if local == "" {
		return nil
	}
	var found []*ast.SelectorExpr
	ast.Inspect(f.File, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == local && slices.Contains(names, sel.Sel.Name) {
				found = append(found, sel)
			}
		}
		return true
	})
	return found
}

func TestSource_SkipsATestInOnePlaceOnly(t *testing.T) {
	for _, broken := range skips(readSource(t)) {
		t.Error(broken)
	}
}

// skips finds x.Skip("…"), x.Skipf and x.SkipNow where x is a test's t, b or f: those are the names Go's testers use, and
// no type is known here.
func skips(s *source) []string {
	var broken []string
	for _, p := range s.sorted() {
		if p.path == "internal/labtest" {
			continue
		}
		for _, f := range p.files {
			ast.Inspect(f.File, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok || !slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name) {
					return true
				}
				if x, ok := sel.X.(*ast.Ident); ok && slices.Contains([]string{"t", "b", "f", "tb", "tt"}, x.Name) {
					broken = append(broken, fmt.Sprintf("%s: a skipped test claims nothing; only internal/labtest skips, for -short", s.at(n)))
				}
				return true
			})
		}
	}
	return broken
}

func TestSource_FindsProcessCallsSleepsAndSkips(t *testing.T) {
	s := newSource(t, "m", map[string]string{
		"creds/a.go":              `package creds; import env "os"; var get = env.Getenv; func f() { env.Exit(1); _ = env.Args }`,
		"creds/a_test.go":         `package creds; import ("os"; "time"); func g() { os.Getenv("SOAK"); time.Sleep(1) }`,
		"creds/b_test.go":         `package creds; import ("testing/synctest"; "time"); func h() { synctest.Wait(); time.Sleep(1) }`,
		"creds/c_test.go":         `package creds; import "testing"; func TestX(t *testing.T) { t.Skipf("no server") }`,
		"cmd/todo/main.go":        `package main; import ("os"; "time"); func main() { os.Exit(2); time.Sleep(1) }`,
		"internal/labtest/lab.go": `package labtest; import ("os"; "testing"); func f(t *testing.T) { os.Getenv("X"); t.Skip() }`,
		"todo/http.go":            `package todo; import "log"; func f() { log.Fatalf("x") }`,
	})
	got := append(forbiddenCalls(s, callRules()), skips(s)...)
	wantPrefixes(t, got,
		"cmd/todo/main.go:1: time.Sleep: a sleep guesses",
		"creds/a.go:1: os.Getenv: the environment is read once",
		"creds/a.go:1: os.Exit: whoever exits",
		"creds/a_test.go:1: time.Sleep: a sleep guesses",
		"todo/http.go:1: log.Fatalf: log.Fatal exits",
		"creds/c_test.go:1: a skipped test claims nothing",
	)
}

// wantPrefixes: each line of got begins with the line of want at its place; files of one package come in any order.
func wantPrefixes(t *testing.T, got []string, want ...string) {
	t.Helper()
	for _, line := range got {
		i := slices.IndexFunc(want, func(prefix string) bool { return strings.HasPrefix(line, prefix) })
		if i < 0 {
			t.Errorf("unexpected: %s", line)
			continue
		}
		want = slices.Delete(want, i, i+1)
	}
	for _, prefix := range want {
		t.Errorf("missing: %s…", prefix)
	}
}
