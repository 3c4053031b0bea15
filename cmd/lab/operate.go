package main

import (
	"fmt"
	"slices"
	"strings"

	"example.com/todo/internal/lab"
	"github.com/spf13/cobra"
)

func (a *app) vault() *cobra.Command {
	c := &cobra.Command{
		Use:   "vault",
		Short: "Initialise, unseal and configure Vault",
		Long: `The steps that a person takes, because whoever takes them holds the keys. Each may be repeated and then changes nothing;
out of order it says which step is missing.`,
		Args: a.subcommand,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.vaultInit(), a.vaultUnseal(), a.vaultConfigure())
	return c
}

func (a *app) vaultInit() *cobra.Command {
	return &cobra.Command{
		Use:   "init",
		Short: "Make Vault's keys: five shares, of which three unseal it",
		Long: `Makes Vault's master key, divided into five shares of which any three give it back (Shamir), and the root token. They are
kept in the operator's file and nowhere else; in the real world each share would go to another person.`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			l, err := a.system()
			if err != nil {
				return err
			}
			changed, err := l.VaultInit(c.Context())
			if err != nil {
				return err
			}
			keys := a.relative(l.KeysPath())
			if !changed {
				a.say("vault was initialised already; its keys are in %s", keys)
				return nil
			}
			a.say("initialised: five key shares, of which three unseal, and the root token are in %s", keys)
			a.say("every vault is sealed now: `%s vault unseal`", a.command())
			return nil
		},
	}
}

func (a *app) vaultUnseal() *cobra.Command {
	return &cobra.Command{
		Use:               "unseal [vaultN]",
		Short:             "Unseal one Vault, or all of them",
		Long:              "Gives a Vault three of the key shares. A Vault comes back sealed from every restart, and only somebody with the shares can open it.",
		Example:           "  lab vault unseal\n  lab vault unseal vault1",
		Args:              atMost(1),
		ValidArgsFunction: a.completeMachines,
		RunE: func(c *cobra.Command, args []string) error {
			l, err := a.system()
			if err != nil {
				return err
			}
			if len(args) > 0 {
				if err := named(l, lab.RoleVault, args[0]); err != nil {
					return err
				}
			}
			unsealed, err := l.Unseal(c.Context(), strings.Join(args, ""))
			if len(unsealed) > 0 {
				a.say("unsealed %s", strings.Join(unsealed, ", "))
			}
			if err == nil && len(unsealed) == 0 {
				a.say("nothing was sealed")
			}
			return err
		},
	}
}

func (a *app) vaultConfigure() *cobra.Command {
	return &cobra.Command{
		Use:   "configure",
		Short: "Give Vault the policies, the database and the identities' roles",
		Long: `Writes what the service needs into Vault: two policies, the database engine with an account of its own in the database (whose
password only Vault knows), the role that leases a todo's credentials and the one that may change the schema, and an
AppRole for each.`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			l, err := a.system()
			if err != nil {
				return err
			}
			if err := l.Configure(c.Context()); err != nil {
				return err
			}
			a.say("configured: policies, database engine, roles todo and todo-migrate, AppRole")
			return nil
		},
	}
}

func (a *app) migrate() *cobra.Command {
	return &cobra.Command{
		Use:   "migrate",
		Short: "Bring the database's schema up to date",
		Long: `Runs ` + "`todo migrate`" + ` once, with an identity that is minted for it, works one time and lasts for minutes. The todo instances
themselves may not change the schema.`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			l, err := a.system()
			if err != nil {
				return err
			}
			if err := l.Migrate(c.Context()); err != nil {
				return err
			}
			a.say("the schema is up to date")
			return nil
		},
	}
}

func (a *app) mint() *cobra.Command {
	return &cobra.Command{
		Use:   "mint todoN",
		Short: "Give one todo instance an identity of its own",
		Long: `Makes an identity in Vault for one instance, hands it to that machine only, and destroys the one it had before. A running
instance reads it at its next login.`,
		Example:           "  lab mint todo0 && lab start todo0",
		Args:              exactly("a todo machine"),
		ValidArgsFunction: a.completeMachines,
		RunE: func(c *cobra.Command, args []string) error {
			l, err := a.system()
			if err != nil {
				return err
			}
			if err := named(l, lab.RoleTodo, args[0]); err != nil {
				return err
			}
			if err := l.Mint(c.Context(), args[0]); err != nil {
				return err
			}
			a.say("minted an identity for %s", args[0])
			return nil
		},
	}
}

// named refuses what is no machine of a role.
func named(l system, role, name string) error {
	var there []string
	for _, m := range l.Machines() {
		if m.Role == role {
			there = append(there, m.Name)
		}
	}
	if slices.Contains(there, name) {
		return nil
	}
	return usageError{fmt.Errorf("no %s machine is called %q; there are %s", role, name, orDash(strings.Join(there, ", ")))}
}
