package deptest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Paths of our own packages begin with "./"; a pattern that ends in "/..." also matches everything below.
type importRule struct {
	from   []string // the packages it binds
	except []string // …apart from these
	never  []string // what they may not import
	tests  bool     // whether it binds their tests too
	reason string
}

func product() []string {
	return []string{"./cmd/todo/...", "./todo/...", "./creds/...", "./discovery/..."}
}

func everything() []string { return []string{"./..."} }

// importRules is who may import whom. The first group is about this module's packages and follows imports through others; the
// second keeps each large dependency in the rooms that are built around it.
func importRules() []importRule {
	return []importRule{
		{
			from: product(), never: []string{"./internal/lab/...", "./internal/vms/...", "./internal/labtest/...", "./internal/operator/...", "./internal/drill/..."},
			reason: "the product never knows the lab: whoever copies the service would copy a demonstration's short cuts",
		},
		{
			from: everything(), never: []string{"./cmd/..."}, tests: true,
			reason: "a command is a caller of packages, never one itself",
		},
		{
			from: []string{"./todo/..."}, never: []string{"./creds/...", "./discovery/..."}, tests: true,
			reason: "todo takes a *sql.DB and asks nobody where it comes from; cmd/todo alone sees all three",
		},
		{
			from: []string{"./creds/..."}, never: []string{"./todo/...", "./discovery/..."}, tests: true,
			reason: "creds takes the database's address as a function, so that it serves any program; cmd/todo alone sees all three",
		},
		{
			from: []string{"./discovery/..."}, never: []string{"./todo/...", "./creds/..."}, tests: true,
			reason: "discovery answers where things are, whatever they are; cmd/todo alone sees all three",
		},
		room("github.com/hashicorp/vault/api", "./creds/...", "./internal/operator/...", "./internal/lab/..."),
		room("github.com/hashicorp/consul/api", "./discovery/...", "./internal/operator/...", "./internal/lab/..."),
		room("github.com/go-sql-driver/mysql", "./creds/...", "./todo/...", "./cmd/todo/...", "./internal/..."),
		room("github.com/gorilla/mux", "./todo/..."),
		room("github.com/sethvargo/go-envconfig", "./cmd/todo/..."),
		room("github.com/spf13/cobra", "./cmd/lab/..."),
		{
			from: everything(), never: []string{"github.com/getkin/kin-openapi/..."},
			reason: "the API's description is checked by tests; no program carries its parser",
		},
		{
			from: everything(), except: []string{"./cmd/..."}, never: []string{"flag", "os/signal", "github.com/spf13/pflag"},
			reason: "flags and signals belong to the process, so to cmd/: a package takes a Config and a ctx",
		},
	}
}

func room(dependency string, rooms ...string) importRule {
	return importRule{
		from: everything(), except: rooms, never: []string{dependency + "/..."},
		reason: fmt.Sprintf("%s stays in its room (%s): one place to change when it changes", dependency, strings.Join(rooms, ", ")),
	}
}

func TestImports_FollowTheRules(t *testing.T) {
	for _, broken := range brokenImports(readSource(t), importRules()) {
		t.Error(broken)
	}
}

// brokenImports says for each broken rule who imports what, through whom, and why that must not be.
func brokenImports(s *source, rules []importRule) []string {
	var broken []string
	for _, rule := range rules {
		for _, p := range s.sorted() {
			own := "./" + p.path
			if !matches(own, rule.from) || matches(own, rule.except) {
				continue
			}
			if chain := forbidden(s, p, rule); chain != nil {
				broken = append(broken, fmt.Sprintf("%s imports %s: %s", own, strings.Join(chain, ", which imports "), rule.reason))
			}
		}
	}
	return broken
}

// forbidden returns the shortest chain of imports from p to what the rule forbids. It goes through packages of ours, which
// is how a forbidden package would come in by the back door; a dependency's own imports are its own business.
func forbidden(s *source, p *pkg, rule importRule) []string {
	type step struct {
		pkg   *pkg
		chain []string
	}
	seen := map[string]bool{p.path: true}
	for queue := []step{{p, nil}}; len(queue) > 0; queue = queue[1:] {
		here := queue[0]
		direct := here.pkg == p
		for _, f := range here.pkg.files {
			if f.isTest() && (!direct || !rule.tests) {
				continue
			}
			for _, imported := range s.imports(f) {
				// A command's own tests and sub-packages are the command.
				if matches(imported, rule.never) && !within(p.path, imported) {
					if direct || strings.HasPrefix(imported, "./") {
						return append(slices.Clone(here.chain), imported)
					}
				}
				below, ours := strings.CutPrefix(imported, "./")
				if next := s.packages[below]; ours && next != nil && !seen[below] {
					seen[below] = true
					queue = append(queue, step{next, append(slices.Clone(here.chain), imported)})
				}
			}
		}
	}
	return nil
}

// within: whether imported belongs to the same command as the package at path p.
func within(p, imported string) bool {
	parts := strings.SplitN(p, "/", 3)
	return len(parts) >= 2 && parts[0] == "cmd" && matches(imported, []string{"./cmd/" + parts[1] + "/..."})
}

func matches(p string, patterns []string) bool {
	for _, pattern := range patterns {
		prefix, wide := strings.CutSuffix(pattern, "/...")
		if p == prefix || wide && strings.HasPrefix(p, prefix+"/") {
			return true
		}
	}
	return false
}

func TestImports_BreakingARuleNamesTheChainAndTheReason(t *testing.T) {
	s := newSource(t, "m", map[string]string{
		"creds/a.go":          `package creds; import _ "m/internal/mid"`,
		"internal/mid/a.go":   `package mid; import _ "m/internal/lab/wait"`,
		"internal/lab/a.go":   `package lab; import _ "flag"`,
		"todo/a.go":           `package todo; import _ "github.com/hashicorp/vault/api"`,
		"todo/a_test.go":      `package todo; import (_ "m/discovery"; _ "m/internal/labtest"; _ "flag")`,
		"discovery/a.go":      `package discovery; import _ "github.com/hashicorp/consul/api/watch"`,
		"internal/lab/b.go":   `package lab; import _ "m/cmd/lab/board"`,
		"cmd/lab/main.go":     `package main; import (_ "m/cmd/lab/board"; _ "os/signal")`,
		"cmd/lab/board/a.go":  `package board`,
		"internal/lab2/a.go":  `package lab2; import _ "m/internal/laboratory"`,
		"internal/lab2/b.go":  `package lab2; import _ "github.com/gorilla/muxer"`,
		"cmd/todo/serve.go":   `package main; import _ "m/internal/lab2"`,
		"cmd/todo/hello.go":   `package main; import (_ "m/todo"; _ "m/creds"; _ "m/discovery")`,
		"internal/x/a_cgo.go": `package x; import _ "github.com/getkin/kin-openapi/openapi3"`,
	})
	wantPrefixes(t, brokenImports(s, importRules()),
		"./cmd/todo imports ./creds, which imports ./internal/mid, which imports ./internal/lab/wait: the product never knows the lab",
		"./creds imports ./internal/mid, which imports ./internal/lab/wait: the product never knows the lab",
		"./internal/lab imports ./cmd/lab/board: a command is a caller",
		"./todo imports ./discovery: todo takes a *sql.DB",
		"./todo imports github.com/hashicorp/vault/api: github.com/hashicorp/vault/api stays in its room",
		"./internal/x imports github.com/getkin/kin-openapi/openapi3: the API's description",
		"./internal/lab imports flag: flags and signals",
	)
}
