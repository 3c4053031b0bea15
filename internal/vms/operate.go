package vms

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"example.com/todo/internal/lab"
	"example.com/todo/internal/lab/wait"
	"example.com/todo/internal/operator"
	"example.com/todo/provision"
	"golang.org/x/sync/errgroup"
)

// A todo machine's identity. Only root reads it there; systemd hands the service a copy of the second part when it starts.
const (
	todoEnvFile  = "/etc/todo/todo.env"
	secretIDFile = "/etc/todo/secret-id"
	secretIDCopy = "/run/credentials/todo.service/secret-id"
)

// greenWithin bounds the wait for the whole to be well after the last step, on emulated processors too.
const greenWithin = 5 * time.Minute

// operator is the operator of these machines' Vaults and database.
func (v *Machines) operator() (*operator.Operator, error) {
	c := operator.Config{Dir: v.path("operator"), SQL: v.sql, ResetStorage: v.resetVaultStorage}
	for _, m := range v.role(lab.RoleVault) {
		c.Vaults = append(c.Vaults, lab.VaultURL(m))
	}
	for _, m := range v.role(lab.RoleMySQL) {
		c.MySQLAddress = m.Addr + ":3306"
	}
	if len(c.Vaults) == 0 {
		return nil, errors.New("there is no vault machine: `vagrant up` makes them")
	}
	return operator.New(c)
}

// sql runs statements as the database's root, who on its machine needs no password.
func (v *Machines) sql(ctx context.Context, statements ...string) error {
	ms := v.role(lab.RoleMySQL)
	if len(ms) == 0 {
		return errors.New("there is no database machine: `vagrant up mysql` makes it")
	}
	if _, err := v.sh(ctx, ms[0], strings.Join(statements, ";\n")+";\n", "mysql --batch"); err != nil {
		return fmt.Errorf("as the database's root: %w", err)
	}
	return nil
}

// resetVaultStorage stops the Vaults, deletes what they stored, and starts those again that ran.
func (v *Machines) resetVaultStorage(ctx context.Context) error {
	var ran []lab.Machine
	for _, m := range v.role(lab.RoleVault) {
		_, err := v.Stop(ctx, m.Name)
		if err == nil {
			ran = append(ran, m)
		} else if !errors.Is(err, lab.ErrNotRunning) {
			return err
		}
	}
	if err := lab.EmptyVaultStorage(ctx, v.role(lab.RoleConsul)[0]); err != nil {
		return fmt.Errorf("delete vault's storage: %w", err)
	}
	for _, m := range ran {
		if err := v.Start(ctx, m.Name); err != nil {
			return err
		}
	}
	return nil
}

// step takes one of the operator's steps.
func (v *Machines) step(ctx context.Context, do func(*operator.Operator) error) error {
	if !v.Exists() {
		return ErrNoMachines
	}
	done, err := v.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	o, err := v.operator()
	if err != nil {
		return err
	}
	return do(o)
}

// VaultInit initialises Vault and keeps its keys. It reports whether there was anything to do.
func (v *Machines) VaultInit(ctx context.Context) (changed bool, err error) {
	err = v.step(ctx, func(o *operator.Operator) error {
		changed, err = o.Init(ctx)
		return err
	})
	return changed, err
}

// Unseal unseals one Vault, or all of them if machine is "". It reports which of them were sealed.
func (v *Machines) Unseal(ctx context.Context, machine string) (unsealed []string, err error) {
	vaults := v.role(lab.RoleVault)
	if machine != "" {
		i := slices.IndexFunc(vaults, func(m lab.Machine) bool { return m.Name == machine })
		if i < 0 {
			return nil, fmt.Errorf("there is no vault machine %q", machine)
		}
		vaults = vaults[i : i+1]
	}
	err = v.step(ctx, func(o *operator.Operator) error {
		unsealed, err = lab.Unseal(ctx, o, vaults)
		return err
	})
	return unsealed, err
}

// Configure gives Vault what the service needs.
func (v *Machines) Configure(ctx context.Context) error {
	return v.step(ctx, func(o *operator.Operator) error { return o.Configure(ctx) })
}

// Migrate brings the database's schema up to date.
func (v *Machines) Migrate(ctx context.Context) error {
	return v.step(ctx, func(o *operator.Operator) error { return v.migrate(ctx, o) })
}

// Mint gives one todo machine an identity, in place of the one it had.
func (v *Machines) Mint(ctx context.Context, machine string) error {
	todos := v.role(lab.RoleTodo)
	i := slices.IndexFunc(todos, func(m lab.Machine) bool { return m.Name == machine })
	if i < 0 {
		return fmt.Errorf("there is no todo machine %q", machine)
	}
	return v.step(ctx, func(o *operator.Operator) error { return v.mint(ctx, o, todos[i]) })
}

// migrate runs `todo migrate` on a todo machine, with an identity that can be used once. It travels on standard input.
func (v *Machines) migrate(ctx context.Context, o *operator.Operator) error {
	todos := v.role(lab.RoleTodo)
	if len(todos) == 0 {
		return errors.New("there is no todo machine to migrate from: `vagrant up todo0` makes one")
	}
	m := todos[0]
	id, err := o.MintMigration(ctx)
	if err != nil {
		return err
	}
	env := fmt.Sprintf("TODO_INSTANCE=migrate\nCONSUL_HTTP_ADDR=%s:8500\nTODO_CONSUL_DNS=%s:8600\nVAULT_ROLE_ID=%s\nVAULT_SECRET_ID=%s\n",
		m.Addr, m.Addr, reveal(id.RoleID), reveal(id.SecretID))
	_, err = v.sh(ctx, m, env, `set -a
. /dev/stdin
exec setpriv --reuid todo --regid todo --clear-groups /usr/local/bin/todo migrate >/dev/null </dev/null`)
	if err != nil {
		return fmt.Errorf("migrate the database: %w", err)
	}
	return nil
}

// mint gives a todo machine an identity of its own, and nothing that another machine could use.
func (v *Machines) mint(ctx context.Context, o *operator.Operator, m lab.Machine) error {
	out, err := v.sh(ctx, v.role(lab.RoleMySQL)[0], "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = 'todo' AND table_name = 'todo_write'", "mysql -BN")
	if err != nil {
		return fmt.Errorf("look for the tables: %w", err)
	}
	if out == "0" {
		return errors.New("the database lacks tables: the step `lab --on vagrant migrate` comes first")
	}
	id, err := o.Mint(ctx, m.Name)
	if err != nil {
		return err
	}
	env, err := provision.Render("todo.env", provision.Todo{
		Instance: m.Name, Address: m.Addr, RoleID: reveal(id.RoleID), SecretIDFile: secretIDCopy,
	})
	if err != nil {
		return err
	}
	for _, f := range []struct{ path, text string }{{todoEnvFile, string(env)}, {secretIDFile, reveal(id.SecretID) + "\n"}} {
		// The file is there whole or not at all, and for root's eyes only.
		script := "set -e; umask 077; mkdir -p " + path.Dir(f.path) + "; cat > " + f.path + ".new; mv " + f.path + ".new " + f.path
		if _, err := v.sh(ctx, m, f.text, script); err != nil {
			return fmt.Errorf("hand %s its identity: %w", m.Name, err)
		}
	}
	// An instance that runs has the identity that was destroyed just now, and would find out at its next login.
	_, err = v.sh(ctx, m, "", "systemctl try-restart todo")
	return err
}

// reveal is the one place where a secret is taken out of its wrapping, to put it where it belongs.
func reveal(s operator.Secret) string { return string(s) }

// Steps are the operator's steps as a person types them after `MANUAL=1 vagrant up`.
func (v *Machines) Steps() []string {
	steps := []string{"vagrant/01-init.sh", "vagrant/02-unseal.sh", "vagrant/03-configure.sh"}
	for _, m := range v.role(lab.RoleTodo) {
		steps = append(steps, "vagrant/04-provision-todo.sh "+m.Name)
	}
	return append(steps, "vagrant/status.sh")
}

// Converge runs every machine's provisioning again. Vagrant does it once in a machine's life, and takes it for done when it was
// killed or failed half way. A machine that has power and cannot be reached is an error.
func (v *Machines) Converge(ctx context.Context) error {
	const atOnce = 4 // or emulated processors would be busy with ssh's key exchanges alone
	var all errgroup.Group
	all.SetLimit(atOnce)
	for _, m := range v.machines {
		all.Go(func() error {
			out, err := v.sh(ctx, m, "", "bash /vagrant/"+m.Role+".sh 2>&1")
			switch {
			case errors.Is(err, errUnreachable) && v.isOff(ctx, m):
				v.report("%s is off", m.Name)
				return nil
			case err != nil:
				return fmt.Errorf("provision %s: %w\n%s", m.Name, err, out)
			}
			lines := strings.Split(out, "\n")
			for _, line := range lines[:len(lines)-1] {
				v.report("%s: %s", m.Name, line)
			}
			v.report("%s", lines[len(lines)-1]) // which names the machine itself
			return nil
		})
	}
	return all.Wait()
}

// Operate takes all of the operator's steps that are due, saying each, and returns when everything that has power is well, with the
// board that shows it. Unlike a person, who may want to look first, it unseals every Vault.
func (v *Machines) Operate(ctx context.Context) (b lab.Board, err error) {
	err = v.step(ctx, func(o *operator.Operator) error {
		if err := v.openVault(ctx, o); err != nil {
			return err
		}
		if len(v.role(lab.RoleMySQL)) == 0 || len(v.role(lab.RoleTodo)) == 0 {
			v.report("there is no database machine or no todo machine yet; the rest comes with them")
			b, err = v.Status(ctx)
			return err
		}
		if err := v.configure(ctx, o); err != nil {
			return err
		}
		if err := v.admit(ctx, o); err != nil {
			return err
		}
		b, err = v.green(ctx)
		return err
	})
	return b, err
}

// openVault initialises Vault and unseals every Vault that answers.
func (v *Machines) openVault(ctx context.Context, o *operator.Operator) error {
	vaults := v.role(lab.RoleVault)
	var there []lab.Machine
	v.report("vault: waiting for an answer")
	err := wait.Within(ctx, answerWithin, askEvery, func(ctx context.Context) error {
		there = nil
		var last error
		for _, m := range vaults {
			ctx, cancel := context.WithTimeout(ctx, askTimeout)
			err := lab.Answers(ctx, m, lab.RoleVault)
			cancel()
			if err != nil {
				last = fmt.Errorf("%s: %w", m.Name, err)
				continue
			}
			there = append(there, m)
		}
		if len(there) > 0 && v.expected(ctx, vaults, there) {
			return nil
		}
		return last
	})
	if err != nil && len(there) == 0 {
		return fmt.Errorf("no vault answers: %w; is a majority of the Consul servers up? `lab --on vagrant status`", err)
	}
	changed, err := o.Init(ctx)
	if err != nil {
		return err
	}
	if changed {
		v.report("vault init: five key shares, of which three unseal, and the root token are in %s", v.KeysPath())
	}
	unsealed, err := lab.Unseal(ctx, o, there)
	for _, name := range unsealed {
		v.report("vault unseal: %s", name)
	}
	return err
}

// expected reports whether the Vaults that do not answer are off, so that waiting for them is in vain.
func (v *Machines) expected(ctx context.Context, vaults, there []lab.Machine) bool {
	for _, m := range vaults {
		if !slices.Contains(there, m) && !v.isOff(ctx, m) {
			return false
		}
	}
	return true
}

// configure configures Vault if that was not done, and brings the schema up to date.
func (v *Machines) configure(ctx context.Context, o *operator.Operator) error {
	v.report("vault: waiting for an active one (after a crash the lock of the dead one lasts up to 45 s)")
	configured, err := o.Configured(ctx)
	if err != nil {
		return err
	}
	if !configured {
		if err := o.Configure(ctx); err != nil {
			return err
		}
		v.report("vault configure: policies, database engine, roles todo and todo-migrate, AppRole")
	}
	if err := v.migrate(ctx, o); err != nil {
		return err
	}
	v.report("migrate: the schema is up to date")
	return nil
}

// admit gives each todo machine that can be reached an identity if it has none that Vault knows, and starts it.
func (v *Machines) admit(ctx context.Context, o *operator.Operator) error {
	for _, m := range v.role(lab.RoleTodo) {
		secret, err := v.sh(ctx, m, "", "cat "+secretIDFile+" 2>/dev/null || true")
		if errors.Is(err, errUnreachable) && v.isOff(ctx, m) {
			v.report("%s is off", m.Name)
			continue
		}
		if err != nil {
			return err
		}
		valid := false
		if secret != "" {
			if valid, err = o.Valid(ctx, operator.Identity{SecretID: operator.Secret(secret)}); err != nil {
				return err
			}
		}
		if !valid {
			if err := v.mint(ctx, o, m); err != nil {
				return err
			}
			v.report("mint: %s has an identity of its own", m.Name)
		}
		if err := v.start(ctx, m, lab.RoleTodo); err != nil {
			return err
		}
	}
	return nil
}

// green waits until the board of the machines that have power has nothing to say, and returns the board of all.
func (v *Machines) green(ctx context.Context) (b lab.Board, err error) {
	v.report("waiting until every service is well")
	off := v.off(ctx, v.machines)
	on := slices.DeleteFunc(v.Machines(), func(m lab.Machine) bool { return off[m.Name] })
	err = wait.Within(ctx, greenWithin, time.Second, func(ctx context.Context) error {
		if b = lab.Observe(ctx, on, nil); !b.Healthy || len(b.Problems) > 0 {
			return errors.New(strings.Join(append(b.Problems, "see `lab --on vagrant status`"), "; "))
		}
		return nil
	})
	if err == nil && len(off) > 0 {
		return v.Status(ctx)
	}
	return b, err
}
