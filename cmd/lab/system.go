package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"example.com/todo/internal/lab"
	"example.com/todo/internal/vms"
)

// system is what the machines are made of: processes of this computer (internal/lab), or machines (internal/vms). What a
// command does to a machine is the same in both.
type system interface {
	Machines() []lab.Machine
	Check(ref string) error
	Stop(ctx context.Context, ref string) (killed []string, err error)
	Start(ctx context.Context, ref string) error
	Kill(ctx context.Context, ref string) error
	Pause(ctx context.Context, ref string) error
	Resume(ctx context.Context, ref string) error
	Logs(ctx context.Context, ref string, lines int, follow bool, w io.Writer) error
	Status(ctx context.Context) (lab.Board, error)
	KeysPath() string
	VaultInit(ctx context.Context) (changed bool, err error)
	Unseal(ctx context.Context, machine string) (unsealed []string, err error)
	Configure(ctx context.Context) error
	Migrate(ctx context.Context) error
	Mint(ctx context.Context, machine string) error
}

var (
	_ system = (*lab.Lab)(nil)
	_ system = (*vms.Machines)(nil)
)

// The values of --on.
const (
	onProcesses = "processes"
	onVagrant   = "vagrant"
)

// system opens what --on names, if there is any of it.
func (a *app) system() (system, error) {
	if a.on == onProcesses {
		return a.existing()
	}
	v, err := a.vagrant()
	if err != nil {
		return nil, err
	}
	if !v.Exists() {
		return nil, vms.ErrNoMachines
	}
	return v, nil
}

// vagrant opens the machines of the project that this directory is in.
func (a *app) vagrant() (*vms.Machines, error) {
	project, err := vms.Project(".")
	if err != nil {
		return nil, err
	}
	return vms.Open(project, a.say)
}

// checkOn refuses what --on cannot be, and commands that only the other kind of system has.
func (a *app) checkOn(only string) error {
	switch {
	case a.on != onProcesses && a.on != onVagrant:
		return usageError{fmt.Errorf("--on %s: want %s or %s", a.on, onProcesses, onVagrant)}
	case only == onVagrant && a.on != onVagrant:
		return usageError{errors.New("this needs machines: write `lab --on vagrant …`")}
	case only == onProcesses && a.on != onProcesses:
		return usageError{errors.New("machines are made and unmade by `vagrant up`, `vagrant halt` and `vagrant destroy`; see docs/vagrant.md")}
	case a.on == onVagrant:
		return nil
	}
	return lab.Supported()
}

// command is how a person begins to type a command for this system.
func (a *app) command() string {
	if a.on == onVagrant {
		return "lab --on vagrant"
	}
	return "lab"
}
