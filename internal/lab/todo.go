package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"example.com/todo/internal/operator"
	"example.com/todo/provision"
)

const (
	todoEnvFile  = "todo.env"
	secretIDFile = "secret-id"
)

// todoInstance is one instance of the service. It can be started once it has an identity.
func (l *Lab) todoInstance(m Machine) *unit {
	u := &unit{lab: l, machine: m, name: RoleTodo, stopWithin: 30 * time.Second}
	u.ports = tcp(m, 8080)
	u.prepare = func(context.Context) error {
		if _, err := os.Stat(u.file(secretIDFile)); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s has no identity: `lab mint %s` comes first", m.Name, m.Name)
		}
		return nil
	}
	u.command = func() (command, error) {
		env, err := readEnv(u.file(todoEnvFile))
		if err != nil {
			return command{}, err
		}
		for k, v := range l.todoEnv {
			env = append(env, k+"="+v)
		}
		return command{path: l.binaries.Todo, args: []string{"serve"}, env: env}, nil
	}
	u.answers = func(ctx context.Context) error { return Answers(ctx, m, RoleTodo) }
	u.ready = func(ctx context.Context) error {
		if err := getJSON(ctx, todoURL(m)+"/readyz", nil); err != nil {
			return err
		}
		return passing(m)(ctx)
	}
	return u
}

func todoURL(m Machine) string { return "http://" + m.Addr + ":8080" }

// readEnv reads a file of NAME=value lines, as systemd's EnvironmentFile does.
func readEnv(path string) ([]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var env []string
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line != "" && !strings.HasPrefix(line, "#") {
			env = append(env, line)
		}
	}
	return env, lines.Err()
}

// mint gives a todo machine an identity of its own, and nothing that another machine could use.
func (l *Lab) mint(ctx context.Context, o *operator.Operator, m Machine) error {
	u := l.service(m)
	if err := l.migrated(ctx); err != nil {
		return u.fail(err)
	}
	id, err := o.Mint(ctx, m.Name)
	if err != nil {
		return u.fail(err)
	}
	if err := os.MkdirAll(u.dir(), 0o700); err != nil {
		return u.fail(err)
	}
	c := provision.Todo{Instance: m.Name, Address: m.Addr, RoleID: reveal(id.RoleID), SecretIDFile: u.file(secretIDFile)}
	if err := render(u.file(todoEnvFile), todoEnvFile, c); err != nil {
		return u.fail(err)
	}
	return u.fail(operator.WriteFile(u.file(secretIDFile), []byte(reveal(id.SecretID)+"\n")))
}

// migrated refuses an instance while the newest table is missing: until then Vault leases it nothing.
func (l *Lab) migrated(ctx context.Context) error {
	db, err := l.MySQL()
	if err != nil {
		return err
	}
	defer db.Close()
	var tables int
	err = db.QueryRowContext(ctx, "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = 'todo' AND table_name = 'todo_write'").Scan(&tables)
	switch {
	case err != nil:
		return fmt.Errorf("look for the tables: %w", err)
	case tables == 0:
		return errors.New("the database lacks tables: the step `lab migrate` comes first")
	}
	return nil
}

// minted reports whether the identity on a machine's disk is one that Vault knows.
func (l *Lab) minted(ctx context.Context, o *operator.Operator, m Machine) (bool, error) {
	text, err := os.ReadFile(l.service(m).file(secretIDFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return o.Valid(ctx, operator.Identity{SecretID: operator.Secret(strings.TrimSpace(string(text)))})
}

// reveal is the one place where the lab takes a secret out of its wrapping, to put it where it belongs.
func reveal(s operator.Secret) string { return string(s) }

// migrate brings the schema up to date: a process of its own that ends when it is done, with an identity that can be used
// once. It runs where the first todo runs, and its output goes to a log there.
func (l *Lab) migrate(ctx context.Context, o *operator.Operator) error {
	if err := l.binaries.check(l.binaries.Todo, "todo"); err != nil {
		return err
	}
	m := l.machines[0]
	if todos := l.role(RoleTodo); len(todos) > 0 {
		m = todos[0]
	}
	u := &unit{lab: l, machine: m, name: unitMigrate, stopWithin: 10 * time.Second}
	id, err := o.MintMigration(ctx)
	if err != nil {
		return u.fail(err)
	}
	env := []string{
		"TODO_INSTANCE=migrate", "CONSUL_HTTP_ADDR=" + m.Addr + ":8500", "TODO_CONSUL_DNS=" + m.Addr + ":8600",
		"VAULT_ROLE_ID=" + reveal(id.RoleID), "VAULT_SECRET_ID=" + reveal(id.SecretID),
	}
	return u.run(ctx, command{path: l.binaries.Todo, args: []string{"migrate"}, env: env})
}
