package main

import (
	"context"
	"path/filepath"
	"runtime"
	"strings"

	"example.com/todo/internal/lab"
	"example.com/todo/internal/vms"
	"github.com/spf13/cobra"
)

// onWhole makes a command that does one thing to each machine of Vagrant's that it is given, as a whole.
func (a *app) onWhole(c *cobra.Command, done string, do func(*vms.Machines, context.Context, string) error) *cobra.Command {
	c.Use += " MACHINE…"
	c.Annotations = map[string]string{annotationOn: onVagrant} // so the system is what it is taken for
	return a.onEach(c, a.signalled(func(s system, ctx context.Context, name string) error { return do(s.(*vms.Machines), ctx, name) }, done))
}

func (a *app) powerOff() *cobra.Command {
	return a.onWhole(&cobra.Command{
		Use:     "poweroff",
		Short:   "Pull a machine's plug",
		Long:    "Takes a machine's power away: nothing on it can clean up. `vagrant up MACHINE` switches it on again.",
		Example: "  lab --on vagrant poweroff vault0\n  vagrant up vault0",
	}, "has no power", (*vms.Machines).PowerOff)
}

func (a *app) cut() *cobra.Command {
	return a.onWhole(&cobra.Command{
		Use:   "cut",
		Short: "Take a machine's private network away",
		Long: `Loses all that a machine sends to the others and they to it, without a word to anybody, as when a switch dies. Only ssh still
works. It lasts until ` + "`heal`" + `, or until the machine starts again.`,
		Example: "  lab --on vagrant cut consul1\n  lab --on vagrant heal consul1",
	}, "is cut off", (*vms.Machines).Cut)
}

func (a *app) heal() *cobra.Command {
	return a.onWhole(&cobra.Command{
		Use:     "heal",
		Short:   "Give a machine its private network back",
		Example: "  lab --on vagrant heal consul1",
	}, "has its network", (*vms.Machines).Heal)
}

// stage and operate are what the Vagrantfile calls before and after it makes machines.
func (a *app) stage() *cobra.Command {
	var o vms.StageOptions
	counts := lab.Demo()
	c := &cobra.Command{
		Use:         "stage",
		Short:       "Lay out what each machine installs (`vagrant up` calls it)",
		Long:        "Renders every machine's configuration and lays it out with its programs, in .vagrant/lab/machines. A machine sees its own part, as /vagrant.",
		Args:        exactly(),
		Annotations: map[string]string{annotationOn: onVagrant},
		RunE: func(c *cobra.Command, _ []string) error {
			v, err := a.vagrant()
			if err != nil {
				return err
			}
			o.Counts = counts
			if o.Bin, err = filepath.Abs(o.Bin); err != nil {
				return err
			}
			return v.Stage(c.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Net, "net", "", "begin every address with this (default "+vms.DefaultNet+")")
	f.IntVar(&counts.Consul, "consul", counts.Consul, "how many Consul servers")
	f.IntVar(&counts.Todo, "todo", counts.Todo, "how many todo instances may be made")
	f.BoolVar(&o.Slow, "slow", false, "the machines' processors are emulated: be patient with them")
	f.StringVar(&o.Bin, "bin", filepath.Join("bin", "linux-"+runtime.GOARCH), "where the machines' programs are")
	return c
}

func (a *app) operate() *cobra.Command {
	manual := false
	c := &cobra.Command{
		Use:   "operate",
		Short: "Take every operator's step that is due (`vagrant up` calls it)",
		Long: `Initialises Vault, unseals every Vault, configures Vault, brings the database's schema up to date, gives each todo machine an
identity of its own and starts its service: each of these only where it was not done. Returns when every service is well.
Before all that it finishes the provisioning of machines where it was cut off.`,
		Args:        exactly(),
		Annotations: map[string]string{annotationOn: onVagrant},
		RunE: func(c *cobra.Command, _ []string) error {
			v, err := a.vagrant()
			if err != nil {
				return err
			}
			if err := v.Converge(c.Context()); err != nil || !v.Exists() {
				return err
			}
			if manual {
				a.say("\nThe machines are up. The rest is yours, in this order:\n\n  %s\n", strings.Join(v.Steps(), "\n  "))
				return nil
			}
			b, err := v.Operate(c.Context())
			if err != nil {
				return err
			}
			return a.print(b, false)
		},
	}
	c.Flags().BoolVar(&manual, "manual", false, "leave the steps to you, and say which there are")
	return c
}
