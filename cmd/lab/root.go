package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"example.com/todo/internal/lab"
	"github.com/spf13/cobra"
)

// app is one run of the program.
type app struct {
	surroundings
	dir string // --dir
	on  string // --on
}

const about = `lab runs a whole service, and all that it lives on, on this one computer: three Consul servers, two Vaults, a
MySQL database and two instances of a todo service. Each is a machine of its own, with its own loopback address,
the standard ports and its own Consul agent. Break them, and watch the service survive.

  lab up                    start everything that is not running
  lab status --watch        the board
  lab tour                  a walk through the service's API
  lab stop todo0            …and see the other one serve
  lab kill vault0           …and see the standby take over
  lab down                  stop everything; the data stays

A MACHINE is consul0, consul1, consul2, vault0, vault1, mysql, todo0 or todo1, and means its service; MACHINE/agent is its
Consul agent, MACHINE/all is both. On a consul machine the server is the agent.

Everything lies in one directory, .lab here or what --dir names. Exit codes: 0 done, 1 failed, 2 wrong arguments.

With --on vagrant the same commands are for the machines that ` + "`vagrant up`" + ` made, and for their services and agents.`

// annotationOn marks a command that only one kind of system has.
const annotationOn = "on"

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "lab",
		Short:         "The demo's machines as processes of this computer",
		Long:          about,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          a.subcommand,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			return a.checkOn(c.Annotations[annotationOn])
		},
	}
	root.PersistentFlags().StringVar(&a.dir, "dir", lab.DefaultDir, "the lab's directory")
	root.PersistentFlags().StringVar(&a.on, "on", onProcesses, "which machines: processes (of this computer) or vagrant (made by Vagrant)")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see `%s --help`", err, c.CommandPath())}
	})
	root.AddGroup(
		&cobra.Group{ID: "lab", Title: "The lab as a whole:"},
		&cobra.Group{ID: "machines", Title: "One machine:"},
		&cobra.Group{ID: "vagrant", Title: "Only --on vagrant:"},
		&cobra.Group{ID: "operator", Title: "The operator's steps, which `lab up` takes unless it is told --manual:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("lab", a.up(), a.down(), a.status(), a.tour(), a.env(), a.doctor())
	add("machines", a.stop(), a.start(), a.kill(), a.pause(), a.resume(), a.logs())
	add("vagrant", a.powerOff(), a.cut(), a.heal(), a.stage(), a.operate())
	add("operator", a.vault(), a.migrate(), a.mint())
	return root
}

// subcommand refuses what is no command, and names the nearest that is one.
func (a *app) subcommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("%q is no command of `%s`; see `%s --help`", args[0], c.CommandPath(), c.CommandPath())
	c.SuggestionsMinimumDistance = 2
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		text = fmt.Sprintf("%q is no command of `%s`; did you mean %s?", args[0], c.CommandPath(), strings.Join(near, " or "))
	}
	return usageError{errors.New(text)}
}

// exactly wants this many arguments, called so.
func exactly(what ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < len(what):
			return usageError{fmt.Errorf("`%s` needs %s; see `%s --help`", c.CommandPath(), strings.Join(what[len(args):], " and "), c.CommandPath())}
		case len(args) > len(what):
			return usageError{fmt.Errorf("`%s` has no use for %q", c.CommandPath(), args[len(what)])}
		}
		return nil
	}
}

// atMost allows one argument.
func atMost(n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) > n {
			return usageError{fmt.Errorf("`%s` has no use for %q", c.CommandPath(), args[n])}
		}
		return nil
	}
}

// open opens the lab as it is recorded.
func (a *app) open() (*lab.Lab, error) { return a.openAs(lab.Config{}) }

func (a *app) openAs(c lab.Config) (*lab.Lab, error) {
	c.Dir, c.Binaries = a.dir, lab.FindBinaries(a.getenv)
	return lab.Open(c)
}

// existing opens a lab that there is.
func (a *app) existing() (*lab.Lab, error) {
	l, err := a.open()
	if err != nil {
		return nil, err
	}
	if !l.Exists() {
		return nil, fmt.Errorf("%w in %s: `lab up` makes one, --dir names another", lab.ErrNoLab, l.Dir())
	}
	return l, nil
}

// relative shortens a path for reading.
func (a *app) relative(path string) string {
	here, err := os.Getwd()
	if err != nil {
		return path
	}
	if r, err := filepath.Rel(here, path); err == nil && !strings.HasPrefix(r, "..") {
		return r
	}
	return path
}

// say prints a line.
func (a *app) say(format string, args ...any) { fmt.Fprintf(a.stdout, format+"\n", args...) }
