package vms_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/todo/internal/lab"
	"example.com/todo/internal/vms"
)

// project is a tree with what staging needs, and none of the real programs.
func project(t *testing.T) (dir, bin string) {
	t.Helper()
	dir, bin = t.TempDir(), t.TempDir()
	for _, name := range []string{"vagrant/machines.yaml", "provision/lib.sh", "provision/consul.sh", "provision/vault.sh", "provision/mysql.sh",
		"provision/todo.sh", "provision/units/consul.service", "provision/units/vault.service", "provision/units/todo.service",
		"provision/units/mysql.service.d/todo.conf"} {
		write(t, filepath.Join(dir, name), name)
	}
	for _, name := range []string{"consul", "vault", "todo"} {
		write(t, filepath.Join(bin, name), "the program "+name)
	}
	return dir, bin
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// made does what Vagrant does when it has made a machine.
func made(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		write(t, filepath.Join(dir, ".vagrant", "machines", name, "lxc", "id"), "an id")
	}
}

func open(t *testing.T, dir string) *vms.Machines {
	t.Helper()
	v, err := vms.Open(dir, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// files are all files below a directory, with what tells one writing from another.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		i, err := d.Info()
		all[strings.TrimPrefix(path, dir+"/")] = fmt.Sprint(i.Mode(), i.ModTime().UnixNano())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestStage_GivesEachMachineItsOwnPartAndNothingElse(t *testing.T) {
	dir, bin := project(t)
	if err := open(t, dir).Stage(t.Context(), vms.StageOptions{Bin: bin}); err != nil {
		t.Fatal(err)
	}
	staged := files(t, filepath.Join(dir, ".vagrant", "lab", "machines"))
	common := []string{"lib.sh", "machine.env", "root/etc/consul.d/consul.hcl", "root/etc/profile.d/lab.sh", "root/etc/systemd/resolved.conf.d/consul.conf",
		"root/etc/systemd/system/consul.service", "root/usr/local/bin/consul"}
	for machine, own := range map[string][]string{
		"consul1": {"consul.sh"},
		"vault0":  {"vault.sh", "root/etc/vault.d/vault.hcl", "root/etc/systemd/system/vault.service", "root/usr/local/bin/vault"},
		"mysql":   {"mysql.sh", "root/etc/mysql/todo.cnf", "root/etc/consul.d/mysql.hcl", "root/etc/systemd/system/mysql.service.d/todo.conf"},
		"todo1":   {"todo.sh", "root/etc/systemd/system/todo.service", "root/usr/local/bin/todo"},
	} {
		want := append(slices.Clone(common), own...)
		var got []string
		for name, is := range staged {
			if below, mine := strings.CutPrefix(name, machine+"/"); mine {
				got = append(got, below)
				program := strings.Contains(below, "/bin/")
				if executable := strings.HasPrefix(is, "-rwxr-xr-x"); executable != program {
					t.Errorf("%s has the mode %s", name, is)
				}
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s is given\n%q, want\n%q", machine, got, want)
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, ".vagrant", "lab", "machines", "todo0", "root/etc/consul.d/consul.hcl"))
	if err != nil || !strings.Contains(string(text), `"192.168.56.14"`) || !strings.Contains(string(text), `"192.168.56.17"`) {
		t.Errorf("todo0's agent knows neither its own address nor the servers': %v\n%s", err, text)
	}
}

func TestStage_ASecondTimeWritesOnlyWhatDiffers(t *testing.T) {
	dir, bin := project(t)
	o := vms.StageOptions{Bin: bin}
	if err := open(t, dir).Stage(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	machines := filepath.Join(dir, ".vagrant", "lab", "machines")
	before := files(t, machines)
	write(t, filepath.Join(bin, "todo"), "the program TODO") // of the same length
	write(t, filepath.Join(machines, "todo0", "root", "etc", "of-an-earlier-version"), "")
	if err := open(t, dir).Stage(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	after := files(t, machines)
	for name, is := range after {
		if changed := before[name] != is; changed != strings.HasSuffix(name, "/bin/todo") {
			t.Errorf("%s: changed is %v", name, changed)
		}
	}
	if len(after) != len(before) {
		t.Errorf("%d files became %d", len(before), len(after))
	}
}

func TestStage_KeepsWhatTheDataOfExistingMachinesDependsOn(t *testing.T) {
	dir, bin := project(t)
	first := vms.StageOptions{Bin: bin, Net: "192.168.57", Counts: lab.Counts{Consul: 3, Vault: 2, MySQL: 1, Todo: 4}}
	if err := open(t, dir).Stage(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	made(t, dir, "consul0", "todo3")
	for name, o := range map[string]vms.StageOptions{
		"another network":         {Bin: bin, Counts: first.Counts},
		"another number of votes": {Bin: bin, Net: first.Net, Counts: lab.Counts{Consul: 1, Vault: 2, MySQL: 1, Todo: 4}},
	} {
		if err := open(t, dir).Stage(t.Context(), o); err == nil || !strings.Contains(err.Error(), "vagrant destroy") {
			t.Errorf("%s: %v", name, err)
		}
	}
	fewer := first
	fewer.Counts.Todo = 2
	if err := open(t, dir).Stage(t.Context(), fewer); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, dir).Stop(t.Context(), "todo9"); err == nil || !strings.Contains(err.Error(), "there are consul0, todo3") {
		t.Errorf("a machine that exists is forgotten: %v", err)
	}
	if err := open(t, dir).Stage(t.Context(), vms.StageOptions{Bin: bin, Net: "8.8.8"}); err == nil {
		t.Error("a public network is accepted")
	}
}

// The keys of a Vault whose machines are gone open nothing, and would make the next one look like somebody else's.
func TestStage_ForgetsTheKeysOnlyWhenEveryMachineIsGone(t *testing.T) {
	dir, bin := project(t)
	keys := open(t, dir).KeysPath()
	for _, machines := range [][]string{{"vault0"}, nil} {
		made(t, dir, machines...)
		write(t, keys, "keys")
		if err := open(t, dir).Stage(t.Context(), vms.StageOptions{Bin: bin}); err != nil {
			t.Fatal(err)
		}
		_, err := os.Stat(keys)
		if kept := err == nil; kept != (machines != nil) {
			t.Errorf("with the machines %q the keys are kept: %v", machines, kept)
		}
		if err := os.RemoveAll(filepath.Join(dir, ".vagrant", "machines")); err != nil {
			t.Fatal(err)
		}
	}
}

func TestProject_IsFoundFromBelowAndOnlyThere(t *testing.T) {
	dir, _ := project(t)
	below := filepath.Join(dir, "a", "b")
	if err := os.MkdirAll(below, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := vms.Project(below); err != nil || got != dir {
		t.Errorf("found %q, %v", got, err)
	}
	if got, err := vms.Project(t.TempDir()); err == nil {
		t.Errorf("found %q where there is none", got)
	}
}

// Two `vagrant up` at once stage one after the other.
func TestStage_WaitsItsTurn(t *testing.T) {
	dir, bin := project(t)
	v := open(t, dir)
	if err := v.Stage(t.Context(), vms.StageOptions{Bin: bin}); err != nil {
		t.Fatal(err)
	}
	lock, err := lab.TryLock(filepath.Join(v.Dir(), "lock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := v.Stage(ctx, vms.StageOptions{Bin: bin}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("staged beside another: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if err := v.Stage(t.Context(), vms.StageOptions{Bin: bin}); err != nil {
		t.Error(err)
	}
}
