package deptest

import (
	"go/ast"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
)

// TestVersions_OfTheServersAreThoseOfTheToolsModules: go.mod of tools/consul and tools/vault say which versions there are; the
// lab repeats them to find the programs in the cache, where `make tools` has put them under that name.
func TestVersions_OfTheServersAreThoseOfTheToolsModules(t *testing.T) {
	constants := stringConstants(readSource(t), "internal/lab")
	for name, module := range map[string]string{"Consul": "consul", "Vault": "vault"} {
		goMod := read(t, filepath.Join(moduleRoot(t), "tools", module, "go.mod"))
		required := regexp.MustCompile(`(?m)^\s*(?:require )?github\.com/hashicorp/` + module + ` v(\S+)`).FindStringSubmatch(goMod)
		if required == nil {
			t.Errorf("tools/%s/go.mod requires no github.com/hashicorp/%s", module, module)
			continue
		}
		if got := constants[name+"Version"]; got != required[1] {
			t.Errorf("internal/lab looks for %s %q, but tools/%s/go.mod builds %s", name, got, module, required[1])
		}
	}
}

func stringConstants(s *source, path string) map[string]string {
	constants := map[string]string{}
	p := s.packages[path]
	if p == nil {
		return constants
	}
	for _, f := range p.files {
		ast.Inspect(f.File, func(n ast.Node) bool {
			if v, ok := n.(*ast.ValueSpec); ok && len(v.Values) == len(v.Names) {
				for i, name := range v.Names {
					if lit, ok := v.Values[i].(*ast.BasicLit); ok {
						constants[name.Name], _ = strconv.Unquote(lit.Value)
					}
				}
			}
			return true
		})
	}
	return constants
}
