package deptest

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRename_GivesAModuleThatBuildsAndPassesItsTests takes the new path in a copy of the tree. Under -short it stops before
// what takes a minute: building the copy and running its short tests.
func TestRename_GivesAModuleThatBuildsAndPassesItsTests(t *testing.T) {
	root := moduleRoot(t)
	old, renamed := modulePath(t, root), "github.com/acme/renamed/v2"
	if old == renamed { // as in the copy, whose short tests run below
		renamed = "github.com/acme/again"
	}
	tree := filepath.Join(t.TempDir(), "tree")
	copyTree(t, root, tree)

	for _, wrong := range []string{"", "todo", "https://github.com/acme/todo", "github.com", "github.com/acme/a b", "github.com/acme/todo/v1"} {
		if out, err := rename(tree, wrong); err == nil {
			t.Errorf("rename to %q went through: %s", wrong, out)
		}
	}
	if out, err := rename(tree, renamed); err != nil {
		t.Fatalf("rename: %v\n%s", err, out)
	}
	if got := modulePath(t, tree); got != renamed {
		t.Errorf("go.mod names %s, want %s", got, renamed)
	}
	noFileSays(t, tree, old)
	before := contents(t, tree)
	if out, err := rename(tree, renamed); err != nil {
		t.Fatalf("rename again: %v\n%s", err, out)
	}
	for name, content := range contents(t, tree) {
		if before[name] != content {
			t.Errorf("a second rename changed %s", name)
		}
	}

	inTree(t, tree, "gofmt", "-l", ".")
	if testing.Short() {
		return
	}
	// -trimpath: go's cache then serves the next run too, whatever directory that copies to.
	inTree(t, tree, "go", "build", "-trimpath", "./...")
	inTree(t, tree, "go", "vet", "-trimpath", "./...")
	inTree(t, tree, "go", "test", "-trimpath", "-short", "-timeout=5m", "./...")
}

// TestRename_FinishesWhatAnInterruptedOneBegan to a path that begins with the old one, where replacing twice would show.
func TestRename_FinishesWhatAnInterruptedOneBegan(t *testing.T) {
	tree := t.TempDir()
	copyTree(t, filepath.Join(moduleRoot(t), "scripts"), filepath.Join(tree, "scripts"))
	write(t, tree, "go.mod", "module example.com/a\n\ngo 1.26\n")
	write(t, tree, "tools/x/go.mod", "module example.com/a/tools/x\n")
	write(t, tree, "done.go", "package a\n\nimport _ \"example.com/a/v2/b\"\n")
	write(t, tree, "b/b.go", "package b\n\nimport (\n\t_ \"example.com/a/c\"\n\t_ \"example.com/ab\"\n)\n")
	write(t, tree, "README.md", "`example.com/a`, example.com/a example.com/a. https://example.com/a and www.example.com/a stay.\n")
	write(t, tree, "broken.go", "package a\n\nfunc {\n")

	if out, err := rename(tree, "example.com/a/v2"); err == nil {
		t.Fatalf("gofmt took a broken file: %s", out)
	}
	if got := modulePath(t, tree); got != "example.com/a" {
		t.Fatalf("an unfinished rename changed go.mod, from which the next one learns the old path, to %s", got)
	}
	write(t, tree, "broken.go", "package a\n")
	if out, err := rename(tree, "example.com/a/v2"); err != nil {
		t.Fatalf("rename: %v\n%s", err, out)
	}
	for name, want := range map[string]string{
		"go.mod":         "module example.com/a/v2\n\ngo 1.26\n",
		"tools/x/go.mod": "module example.com/a/v2/tools/x\n",
		"done.go":        "package a\n\nimport _ \"example.com/a/v2/b\"\n",
		"b/b.go":         "package b\n\nimport (\n\t_ \"example.com/a/v2/c\"\n\t_ \"example.com/ab\"\n)\n",
		"README.md":      "`example.com/a/v2`, example.com/a/v2 example.com/a/v2. https://example.com/a and www.example.com/a stay.\n",
	} {
		if got := read(t, filepath.Join(tree, name)); got != want {
			t.Errorf("%s is\n%swant\n%s", name, got, want)
		}
	}
}

func rename(tree, module string) (string, error) {
	cmd := exec.Command("scripts/rename", module)
	cmd.Dir = tree
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// inTree runs a command that must end well and print nothing but results of tests.
func inTree(t *testing.T, tree string, args ...string) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = tree
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=readonly -buildvcs=false", "GOWORK=off")
	out, err := cmd.CombinedOutput()
	if err != nil || args[0] == "gofmt" && len(bytes.TrimSpace(out)) > 0 {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// noFileSays: the old path is nowhere but in longer names, such as addresses, and in these tests' examples.
func noFileSays(t *testing.T, tree, old string) {
	t.Helper()
	for name, content := range contents(t, tree) {
		for rest := content; ; {
			i := strings.Index(rest, old)
			if i < 0 {
				break
			}
			longer := i > 0 && strings.ContainsRune("/.-_", rune(rest[i-1]))
			after := strings.TrimPrefix(rest[i:], old)
			if !longer && (after == "" || !strings.ContainsRune("-_abcdefghijklmnopqrstuvwxyz", rune(after[0]))) {
				t.Errorf("%s still says %s", name, old)
				break
			}
			rest = after
		}
	}
}

func contents(t *testing.T, tree string) map[string]string {
	t.Helper()
	all := map[string]string{}
	walk(t, tree, func(name, below string) { all[below] = read(t, name) })
	return all
}

// copyTree copies what belongs to the project, as it is now: not git's directory, not what is built or lives in the lab.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	walk(t, from, func(name, below string) {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		target := filepath.Join(to, below)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(target, []byte(read(t, name)), info.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	})
}

func walk(t *testing.T, tree string, visit func(name, below string)) {
	t.Helper()
	err := filepath.WalkDir(tree, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(tree, name)
		if err != nil {
			return err
		}
		switch below {
		case ".git", "bin", ".lab", ".vagrant":
			if entry.IsDir() { // in a git worktree .git is a file, where SkipDir would mean all the rest
				return fs.SkipDir
			}
			return nil
		}
		if entry.Type().IsRegular() {
			visit(name, below)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func write(t *testing.T, tree, name, content string) {
	t.Helper()
	name = filepath.Join(tree, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
