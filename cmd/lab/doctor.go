package main

import (
	"errors"

	"github.com/spf13/cobra"
)

func (a *app) doctor() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "What is missing here, and how to get it",
		Long:  "Looks whether this computer has what the lab needs, and says what is missing and how to get it. It changes nothing.",
		Args:  exactly(),
		// The one command that has something to say everywhere.
		PersistentPreRunE: func(*cobra.Command, []string) error { return nil },
		RunE: func(c *cobra.Command, _ []string) error {
			l, err := a.open()
			if err != nil {
				return err
			}
			p, bad := a.palette(), false
			for _, f := range l.Examine(c.Context()) {
				mark := p.good("✓")
				if f.Err != nil {
					mark, bad = p.bad("✗"), true
				}
				a.say("%s %-12s %s", mark, f.What, f)
			}
			if bad {
				return errors.New("something is missing")
			}
			return nil
		},
	}
}
