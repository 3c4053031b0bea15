package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"example.com/todo/internal/lab"
	"example.com/todo/internal/operator"
	"github.com/spf13/cobra"
)

// longestSocketPath is the kernel's limit.
const longestSocketPath = 107

func (a *app) env() *cobra.Command {
	return &cobra.Command{
		Use:   "env",
		Short: "What the stock consul, vault and mysql clients need to talk to the lab",
		Long: `Prints the exports with which HashiCorp's own consul and vault programs and the database's mysql client talk to the lab, and
puts the two programs that the lab runs first on your PATH.
Vault's root token is not printed: the line reads it from the operator's file when your shell runs it. With it you can do
everything, so think of it as the operator's hat.`,
		Example: "  eval \"$(lab env)\"\n  consul members\n  vault list sys/leases/lookup/database/creds/todo\n  mysql -e 'SELECT * FROM todo.todo'",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			l, err := a.system()
			if err != nil {
				return err
			}
			p, processes := l.(*lab.Lab)
			if processes {
				a.export("PATH", quote(p.ProgramsDir())+`:"$PATH"`)
			}
			a.printEnv(c.Context(), l)
			if processes {
				return a.printSocket(p)
			}
			a.say("# the database's root is let in on its own machine only: vagrant ssh mysql -c 'sudo mysql'")
			return nil
		},
	}
}

func (a *app) export(name, value string) { a.say("export %s=%s", name, value) }

func (a *app) printEnv(ctx context.Context, l system) {
	a.export("CONSUL_HTTP_ADDR", l.Machines()[0].Addr+":8500")
	if address := activeVault(ctx, l); address != "" {
		a.export("VAULT_ADDR", address)
		a.say(`export VAULT_TOKEN="$(sed -n 's/.*"root_token": "\([^"]*\)".*/\1/p' %s)"`, quote(l.KeysPath()))
	}
}

func (a *app) printSocket(l *lab.Lab) error {
	if l.Counts().MySQL == 0 {
		return nil
	}
	socket, err := l.MySQLSocket()
	if err != nil {
		return err
	}
	if len(socket) > longestSocketPath {
		a.say("# the database's socket has too long a path: (cd %s && mysql --socket=mysql.sock)", quote(strings.TrimSuffix(socket, "/mysql.sock")))
		return nil
	}
	a.say("# mysql and its relatives find the socket there, behind which we are the database's root")
	a.export("MYSQL_HOME", quote(l.MySQLHome()))
	return nil
}

// activeVault is the address of the active Vault, or of the first if none is active now.
func activeVault(ctx context.Context, l system) string {
	const patience = time.Second
	first := ""
	for _, m := range l.Machines() {
		if m.Role != lab.RoleVault {
			continue
		}
		address := fmt.Sprintf("http://%s:8200", m.Addr)
		first = orFirst(first, address)
		ctx, cancel := context.WithTimeout(ctx, patience)
		h, err := operator.AskHealth(ctx, address)
		cancel()
		if err == nil && h.Active() {
			return address
		}
	}
	return first
}

func orFirst(first, other string) string {
	if first == "" {
		return other
	}
	return first
}

// quote makes one word of the shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
