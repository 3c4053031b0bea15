// Package vms runs the machines of the demo as machines: what internal/lab does to processes of one computer, this does to
// what Vagrant made, over ssh and systemd. Vagrant itself makes, starts and deletes them; the Vagrantfile calls this package
// for what has to be there before (Stage) and for what is left to do after (Operate).
//
// What it guarantees:
//
//   - A machine is given what it installs, and nothing else of this computer: its own configuration, rendered here from the
//     templates that the one-machine lab uses, and the programs it runs. Nothing secret is among it.
//   - Secrets that only the operator may hold stay in the operator's directory here. A todo machine gets its own identity,
//     through the standard input of ssh; no secret is ever an argument of a program.
//   - Every step may be repeated, and then changes nothing.
//
// State lies in .vagrant/lab of the project, readable by its owner only. Which machines there are is Vagrant's to say: it
// is looked up each time and never recorded.
package vms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"example.com/todo/internal/lab"
	"example.com/todo/internal/lab/wait"
	"example.com/todo/internal/operator"
)

// DefaultNet is where machines live unless NET says otherwise: the range that VirtualBox allows without being told.
const DefaultNet = "192.168.56"

// ErrNoMachines means that Vagrant has made no machine of this project.
var ErrNoMachines = errors.New("there are no machines: `vagrant up` makes them")

// Machines are the machines that Vagrant has made. Methods may be called concurrently; those that change something on more
// than one machine take their turns, among processes too.
type Machines struct {
	project  string
	record   record
	machines []lab.Machine
	report   func(format string, args ...any)
}

// record is what the machines that exist were staged with. Consul's data and Vault's depend on it, so it cannot change while
// there are machines.
type record struct {
	Net    string     `json:"net"`
	Counts lab.Counts `json:"machines"`
}

// Project finds the directory of the Vagrantfile: the given one or the nearest above it.
func Project(from string) (string, error) {
	dir, err := filepath.Abs(from)
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "vagrant", "machines.yaml")); err == nil {
			return filepath.EvalSymlinks(dir)
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not inside the project: no directory above it has a Vagrantfile of these machines", from)
		}
		dir = filepath.Dir(dir)
	}
}

// Open looks which machines there are. It changes nothing. report is told each step of a long operation as a line.
func Open(project string, report func(format string, args ...any)) (*Machines, error) {
	var one sync.Mutex
	v := &Machines{project: project, report: func(format string, args ...any) {
		one.Lock()
		defer one.Unlock()
		report(format, args...)
	}}
	text, err := os.ReadFile(v.path("lab.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return v, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what the machines were staged with: %w", err)
	}
	if err := json.Unmarshal(text, &v.record); err != nil {
		return nil, fmt.Errorf("%s: %w; `vagrant up` writes it anew once it is deleted", v.path("lab.json"), err)
	}
	all, err := lab.Inventory(v.record.Net, v.record.Counts)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		if v.made(m.Name) {
			v.machines = append(v.machines, m)
		}
	}
	return v, nil
}

// made reports whether Vagrant has made a machine, under whichever provider, running or not. "*" is any machine.
func (v *Machines) made(name string) bool {
	ids, _ := filepath.Glob(filepath.Join(v.project, ".vagrant", "machines", name, "*", "id"))
	for _, id := range ids {
		if i, err := os.Stat(id); err == nil && i.Size() > 0 {
			return true
		}
	}
	return false
}

// Dir is where everything about the machines lies on this computer.
func (v *Machines) Dir() string { return v.path() }

func (v *Machines) path(parts ...string) string {
	return filepath.Join(append([]string{v.project, ".vagrant", "lab"}, parts...)...)
}

// Exists reports whether there is any machine.
func (v *Machines) Exists() bool { return len(v.machines) > 0 }

// Machines lists the machines that there are, in the order of the board.
func (v *Machines) Machines() []lab.Machine { return append([]lab.Machine(nil), v.machines...) }

// Check says what is wrong with a reference to a machine's units, if anything is.
func (v *Machines) Check(ref string) error {
	_, _, err := lab.Resolve(v.machines, ref)
	return err
}

// KeysPath is the file with Vault's unseal keys and root token.
func (v *Machines) KeysPath() string { return operator.KeysPath(v.path("operator")) }

func (v *Machines) role(role string) []lab.Machine {
	var ms []lab.Machine
	for _, m := range v.machines {
		if m.Role == role {
			ms = append(ms, m)
		}
	}
	return ms
}

// turn waits until nobody else changes the machines, and returns the function that lets the next one in.
func (v *Machines) turn(ctx context.Context) (done func(), err error) {
	if err := os.MkdirAll(v.path(), 0o700); err != nil {
		return nil, err
	}
	said := false
	var lock *os.File
	err = wait.Until(ctx, askEvery, func(context.Context) (err error) {
		lock, err = lab.TryLock(v.path("lock"))
		if errors.Is(err, lab.ErrLocked) && !said {
			said = true
			v.report("another `lab` is at work on these machines; waiting for it")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return func() { _ = lock.Close() }, nil
}
