package main

import (
	"fmt"
	"strings"
	"time"

	"example.com/todo/internal/lab"
	"github.com/spf13/cobra"
)

// maxTodos is as many instances as one computer starts within the time that is allowed, and a typing error less than it.
const maxTodos = 20

func (a *app) up() *cobra.Command {
	var (
		want   lab.Config
		counts lab.Counts
		manual bool
	)
	c := &cobra.Command{
		Use:   "up",
		Short: "Start what is not running, and wait until all is ready",
		Long: `Starts every machine that is not running, in the order of who depends on whom, and returns when all of them are ready.
They go on running after that. Run again it changes nothing; after a crash of anything it completes what is missing.

It also takes the operator's steps: it initialises Vault, unseals the Vaults that it started, configures Vault, brings the
database's schema up to date and gives each todo instance an identity of its own. A Vault that a person restarted stays
sealed until a person unseals it. With --manual the steps are left to you, and printed.

If it fails or is interrupted it says which machine was in trouble, shows the end of that machine's log, and stops what it
had started.`,
		Example: `  lab up
  lab up --consul 1 --todo 4       a small cluster with many instances
  lab up --lease 20s --lease-max 2m    credentials that change while you watch
  lab --dir /tmp/second up --net 127.20.21    a second lab beside the first`,
		Args:        exactly(),
		Annotations: map[string]string{annotationOn: onProcesses},
		RunE: func(c *cobra.Command, _ []string) error {
			l, err := a.open()
			if err != nil {
				return err
			}
			if n := counts.Todo; c.Flags().Changed("todo") && (n < 0 || n > maxTodos) {
				return usageError{fmt.Errorf("--todo %d: want 0 to %d instances", n, maxTodos)}
			}
			// To the lab, zero means what it was before, and nobody types that.
			for _, flag := range []string{"lease", "lease-max", "token", "token-max"} {
				if d, _ := c.Flags().GetDuration(flag); c.Flags().Changed(flag) && d == 0 {
					return usageError{fmt.Errorf("--%s 0: want whole seconds, at least one", flag)}
				}
			}
			want.Counts = l.Counts()
			for flag, n := range map[string]*int{"consul": &want.Counts.Consul, "todo": &want.Counts.Todo} {
				if c.Flags().Changed(flag) {
					*n = map[string]int{"consul": counts.Consul, "todo": counts.Todo}[flag]
				}
			}
			if l, err = a.openAs(want); err != nil {
				return err
			}
			return a.runUp(c, l, manual)
		},
	}
	f := c.Flags()
	f.StringVar(&want.Net, "net", "", "begin every address with this (default "+lab.DefaultNet+")")
	f.IntVar(&counts.Consul, "consul", 0, "how many Consul servers: 1, 3 or more if the list has them (default 3)")
	f.IntVar(&counts.Todo, "todo", 0, fmt.Sprintf("how many todo instances, at most %d (default 2)", maxTodos))
	f.BoolVar(&manual, "manual", false, "leave the operator's steps to you")
	f.DurationVar(&want.Times.Lease, "lease", 0, "how long leased MySQL credentials live (default 1m)")
	f.DurationVar(&want.Times.LeaseMax, "lease-max", 0, "…however often they are renewed (default 24h)")
	f.DurationVar(&want.Times.Token, "token", 0, "how long a todo's Vault token lives (default 10m)")
	f.DurationVar(&want.Times.TokenMax, "token-max", 0, "…however often it is renewed (default 24h)")
	return c
}

func (a *app) runUp(c *cobra.Command, l *lab.Lab, manual bool) error {
	begun := time.Now()
	p := a.progress(l.Machines(), !manual)
	err := l.Up(c.Context(), lab.UpOptions{Manual: manual, Report: p.report})
	p.close()
	if err != nil {
		return err
	}
	if manual {
		a.say("\nThe machines are up. The rest is yours, in this order:\n")
		a.say("  %s\n", strings.Join(l.Steps(), "\n  "))
		return nil
	}
	a.say("up in %.1f s; `lab status` shows the board, `lab tour` walks through the API", time.Since(begun).Seconds())
	return nil
}

func (a *app) down() *cobra.Command {
	var wipe bool
	c := &cobra.Command{
		Use:   "down",
		Short: "Stop everything; the data stays unless you --wipe it",
		Long: `Stops every process of the lab, first those on which nobody depends. One that does not end in its time is killed, which is
said. The todos, Vault's secrets and its keys are there after the next ` + "`lab up`" + `, unless --wipe deletes them.`,
		Args:        exactly(),
		Annotations: map[string]string{annotationOn: onProcesses},
		RunE: func(c *cobra.Command, _ []string) error {
			l, err := a.open()
			if err != nil {
				return err
			}
			there, err := l.Remains()
			if err != nil {
				return err
			}
			begun := time.Now()
			p := a.progress(l.Machines(), false)
			err = l.Down(c.Context(), lab.DownOptions{Wipe: wipe, Report: p.report})
			p.close()
			switch took := time.Since(begun).Seconds(); {
			case err != nil:
				return err
			case !there:
				a.say("there is no lab in %s", l.Dir())
			case wipe:
				a.say("down in %.1f s, and nothing is left of it", took)
			default:
				a.say("down in %.1f s; the data stays in %s", took, a.relative(l.Dir()))
			}
			return nil
		},
	}
	c.Flags().BoolVar(&wipe, "wipe", false, "delete the lab's data too: the todos, Vault's secrets, its keys")
	return c
}
