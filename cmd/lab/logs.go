package main

import "github.com/spf13/cobra"

func (a *app) logs() *cobra.Command {
	var (
		follow bool
		lines  int
	)
	c := &cobra.Command{
		Use:               "logs MACHINE[/agent]",
		Short:             "The log of a machine's service, or of its agent",
		Example:           "  lab logs todo0 -f\n  lab logs vault0/agent -n 200",
		Args:              exactly("a machine"),
		ValidArgsFunction: a.completeMachines,
		RunE: func(c *cobra.Command, args []string) error {
			l, err := a.system()
			if err != nil {
				return err
			}
			if err := l.Check(args[0]); err != nil {
				return usageError{err}
			}
			return l.Logs(c.Context(), args[0], lines, follow, a.stdout)
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is written from now on")
	c.Flags().IntVarP(&lines, "lines", "n", 50, "how many lines of the past")
	return c
}
