package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// The versions that tools/consul and tools/vault pin.
const (
	ConsulVersion = "1.22.5"
	VaultVersion  = "1.21.1"
)

// searchPath is where the lab's processes find programs; database servers often lie where only root looks.
const searchPath = "/usr/libexec:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Binaries are the programs that the lab runs, besides the database server, which is the system's.
type Binaries struct {
	Consul string
	Vault  string
	Todo   string
}

// FindBinaries names the programs: what the environment's CONSUL, VAULT and TODO name, else the pinned versions in the
// user's cache directory and the todo program beside this one. It does not ask whether they exist; Check does.
func FindBinaries(getenv func(string) string) Binaries {
	cache := cacheDir(getenv)
	pinned := func(name, version string) string {
		return filepath.Join(cache, "todo-lab", fmt.Sprintf("%s-%s-%s-%s", name, version, runtime.GOOS, runtime.GOARCH))
	}
	beside := ""
	if self, err := os.Executable(); err == nil {
		beside = filepath.Join(filepath.Dir(self), "todo")
	}
	return Binaries{
		Consul: whole(orElse(getenv("CONSUL"), pinned("consul", ConsulVersion))),
		Vault:  whole(orElse(getenv("VAULT"), pinned("vault", VaultVersion))),
		Todo:   whole(orElse(getenv("TODO"), beside)),
	}
}

// whole is the absolute path of a program that is named as in a shell, if there is one: the lab starts each of them in a
// directory of its own.
func whole(program string) string {
	path, err := exec.LookPath(program)
	if err != nil {
		return program
	}
	if path, err = filepath.Abs(path); err != nil {
		return program
	}
	return path
}

func cacheDir(getenv func(string) string) string {
	if dir := getenv("XDG_CACHE_HOME"); dir != "" {
		return dir
	}
	return filepath.Join(getenv("HOME"), ".cache")
}

// Check reports every program that a lab of this size needs and does not find, and how to get it.
func (b Binaries) Check(c Counts) error {
	var missing []error
	missing = append(missing, b.check(b.Consul, "consul"))
	if c.Vault > 0 {
		missing = append(missing, b.check(b.Vault, "vault"))
	}
	if c.MySQL > 0 {
		_, err := findDatabase()
		missing = append(missing, err)
	}
	if c.Todo > 0 {
		missing = append(missing, b.check(b.Todo, "todo"))
	}
	return errors.Join(missing...)
}

// ProgramsDir holds the lab's Consul and Vault under the names that people type.
func (l *Lab) ProgramsDir() string { return l.path("programs") }

// linkBinaries fills ProgramsDir.
func (l *Lab) linkBinaries() error {
	if err := os.MkdirAll(l.ProgramsDir(), 0o700); err != nil {
		return fmt.Errorf("link the lab's programs: %w", err)
	}
	for name, program := range map[string]string{"consul": l.binaries.Consul, "vault": l.binaries.Vault} {
		link := filepath.Join(l.ProgramsDir(), name)
		if there, err := os.Readlink(link); err == nil && there == program {
			continue
		}
		_ = os.Remove(link + ".new") // left by a run that was killed
		if err := errors.Join(os.Symlink(program, link+".new"), os.Rename(link+".new", link)); err != nil {
			return fmt.Errorf("link the lab's programs: %w", err)
		}
	}
	return nil
}

func (b Binaries) check(path, name string) error {
	how := map[string]string{
		"consul": "`make tools` builds it, once; or name another with CONSUL=",
		"vault":  "`make tools` builds it, once; or name another with VAULT=",
		"todo":   "`make build` builds it; or name another with TODO=",
	}[name]
	if path == "" {
		return fmt.Errorf("no %s program is named: %s", name, how)
	}
	if _, err := exec.LookPath(path); err != nil {
		return fmt.Errorf("no %s program at %s: %s", name, path, how)
	}
	return nil
}
