package main

import (
	"context"
	"errors"
	"slices"
	"time"

	"example.com/todo/internal/lab"
	"example.com/todo/internal/operator"
	"github.com/spf13/cobra"
)

// onMachines makes a command that does one thing to the service of each machine it is given, or to another unit of its.
func (a *app) onMachines(c *cobra.Command, do func(context.Context, system, string) error) *cobra.Command {
	c.Use += " MACHINE[/agent|/all]…"
	return a.onEach(c, do)
}

// onEach lets a command do one thing to all that it is given, if each of them is a machine or a unit of one.
func (a *app) onEach(c *cobra.Command, do func(context.Context, system, string) error) *cobra.Command {
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return exactly("a machine")(c, args)
		}
		return nil
	}
	c.ValidArgsFunction = a.completeMachines
	c.RunE = func(c *cobra.Command, args []string) error {
		l, err := a.system()
		if err != nil {
			return err
		}
		for _, ref := range args {
			if err := l.Check(ref); err != nil {
				return usageError{err}
			}
		}
		var errs []error
		for _, ref := range args {
			errs = append(errs, do(c.Context(), l, ref))
		}
		return errors.Join(errs...)
	}
	return c
}

func (a *app) completeMachines(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	l, err := a.system()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var refs []string
	for _, m := range l.Machines() {
		refs = append(refs, m.Name, m.Name+"/agent", m.Name+"/all")
	}
	return refs, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) stop() *cobra.Command {
	return a.onMachines(&cobra.Command{
		Use:     "stop",
		Short:   "Ask a machine's service to end (SIGTERM), and wait until it has",
		Long:    "Asks a machine's service to end, as its system would at a shutdown, and waits until it has. One that does not is killed, which is said.",
		Example: "  lab stop todo0\n  lab stop vault1/all",
	}, func(ctx context.Context, l system, ref string) error {
		begun := time.Now()
		killed, err := l.Stop(ctx, ref)
		if err != nil {
			return err
		}
		for _, unit := range killed {
			a.say("%s did not end when asked, and was killed", unit)
		}
		a.say("%s stopped in %.1f s", ref, time.Since(begun).Seconds())
		return nil
	})
}

func (a *app) start() *cobra.Command {
	return a.onMachines(&cobra.Command{
		Use:   "start",
		Short: "Start a machine's service, and wait until it answers",
		Long: `Starts a machine's service if it is not running, and waits until it answers. That is less than being ready: a todo without
Vault waits, and a Vault is sealed until somebody unseals it, because a service that could unseal itself would have to
hold its own keys.`,
		Example: "  lab start todo0\n  lab start vault1 && lab vault unseal vault1",
	}, func(ctx context.Context, l system, ref string) error {
		begun := time.Now()
		if err := l.Start(ctx, ref); err != nil {
			return err
		}
		a.say("%s answers after %.1f s", ref, time.Since(begun).Seconds())
		return a.tellSealed(ctx, l, ref)
	})
}

// tellSealed says what a started Vault still needs.
func (a *app) tellSealed(ctx context.Context, l system, ref string) error {
	m, units, err := lab.Resolve(l.Machines(), ref)
	if err != nil || !slices.Contains(units, lab.RoleVault) {
		return err
	}
	h, err := operator.AskHealth(ctx, "http://"+m.Addr+":8200")
	if err == nil && h.Initialized && h.Sealed {
		a.say("%s is sealed: `%s vault unseal %s` opens it", m.Name, a.command(), m.Name)
	}
	return nil
}

func (a *app) kill() *cobra.Command {
	return a.onMachines(&cobra.Command{
		Use:     "kill",
		Short:   "End a machine's service at once (SIGKILL)",
		Long:    "Ends a machine's service at once, as a crash would: it can clean up nothing. On a machine of Vagrant's, systemd then starts it again.",
		Example: "  lab kill vault0      the standby takes over when the dead one's lock has run out: up to 45 s\n  lab kill mysql/all",
	}, a.signalled(system.Kill, "killed"))
}

func (a *app) pause() *cobra.Command {
	return a.onMachines(&cobra.Command{
		Use:     "pause",
		Short:   "Hold a machine's service where it is (SIGSTOP)",
		Long:    "Holds a machine's service where it is: its connections stay open, new ones are accepted, and nothing answers.",
		Example: "  lab pause mysql",
	}, a.signalled(system.Pause, "paused"))
}

func (a *app) resume() *cobra.Command {
	return a.onMachines(&cobra.Command{
		Use:     "resume",
		Short:   "Let a paused service go on (SIGCONT)",
		Example: "  lab resume mysql",
	}, a.signalled(system.Resume, "goes on"))
}

func (a *app) signalled(do func(system, context.Context, string) error, done string) func(context.Context, system, string) error {
	return func(ctx context.Context, l system, ref string) error {
		if err := do(l, ctx, ref); err != nil {
			return err
		}
		a.say("%s %s", ref, done)
		return nil
	}
}
