package operator

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"

	vault "github.com/hashicorp/vault/api"
)

// The names by which the todo service knows what the operator made.
const (
	RoleTodo    = "todo"         // reads and writes todos and the keys of writes
	RoleMigrate = "todo-migrate" // may change the schema; held by a migration only

	mount      = "database"
	connection = "mysql"
	admin      = "vault" // the database account with which Vault makes the others
)

// policyText lets a token lease one role's credentials, look after itself and its leases, and nothing else: the tokens
// come without Vault's default policy.
func policyText(role string) string {
	return fmt.Sprintf(`
path "database/creds/%s"      { capabilities = ["read"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/renew-self"  { capabilities = ["update"] }
path "auth/token/revoke-self" { capabilities = ["update"] }
path "sys/leases/lookup"      { capabilities = ["update"] }
path "sys/leases/renew"       { capabilities = ["update"] }
path "sys/leases/revoke"      { capabilities = ["update"] }
`, role)
}

// Configure gives Vault everything the service needs: the policies, the database engine with its two roles, the two
// AppRoles. Run again it applies the present settings and leaves credentials alone. Errors: ErrNotInitialised, ErrSealed.
func (o *Operator) Configure(ctx context.Context) error {
	c, err := o.Client(ctx)
	if err != nil {
		return err
	}
	completed, err := o.completed(ctx, c)
	if err != nil {
		return err
	}
	steps := []struct {
		name string
		do   func(context.Context, *vault.Client) error
	}{
		{"mount the database engine", o.mountDatabase},
		{"connect vault to the database", func(ctx context.Context, c *vault.Client) error {
			return o.connectDatabase(ctx, c, completed)
		}},
		{"write the database roles", o.writeDatabaseRoles},
		{"write the policies", o.writePolicies},
		{"enable AppRole", o.enableAppRole},
		// The AppRole of the todos comes last: its existence is the proof that all the rest was done.
		{"write the AppRoles", o.writeAppRoles},
	}
	for _, s := range steps {
		if err := s.do(ctx, c); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// Configured reports whether Configure was once completed, and by a version that grants what this one does.
func (o *Operator) Configured(ctx context.Context) (bool, error) {
	c, err := o.Client(ctx)
	if err != nil {
		return false, err
	}
	completed, err := o.completed(ctx, c)
	if err != nil || !completed {
		return false, err
	}
	role, err := c.Logical().ReadWithContext(ctx, mount+"/roles/"+RoleTodo)
	if err != nil || role == nil {
		return false, err
	}
	var granted []string
	statements, _ := role.Data["creation_statements"].([]any)
	for _, s := range statements {
		granted = append(granted, fmt.Sprint(s))
	}
	return slices.Equal(granted, creationOfTodo()), nil
}

// completed reports whether Configure was once completed, by whatever version.
func (o *Operator) completed(ctx context.Context, c *vault.Client) (bool, error) {
	role, err := c.Logical().ReadWithContext(ctx, "auth/approle/role/"+RoleTodo)
	if err != nil {
		return false, fmt.Errorf("read the AppRole of the todos: %w", err)
	}
	return role != nil, nil
}

func (o *Operator) mountDatabase(ctx context.Context, c *vault.Client) error {
	mounts, err := c.Sys().ListMountsWithContext(ctx)
	if err != nil || mounts[mount+"/"] != nil {
		return err
	}
	return c.Sys().MountWithContext(ctx, mount, &vault.MountInput{
		Type: "database", Description: "leases accounts of the todo database",
	})
}

// connectDatabase gives Vault an account of its own in the database, with a password that only Vault knows.
func (o *Operator) connectDatabase(ctx context.Context, c *vault.Client, completed bool) error {
	if err := o.config.SQL(ctx, "CREATE DATABASE IF NOT EXISTS todo CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci"); err != nil {
		return err
	}
	settings := map[string]any{
		"plugin_name":       "mysql-database-plugin",
		"connection_url":    "{{username}}:{{password}}@tcp(" + o.config.MySQLAddress + ")/",
		"allowed_roles":     []string{RoleTodo, RoleMigrate},
		"username":          admin,
		"verify_connection": true,
	}
	if completed {
		// Vault keeps the password it has and proves that it is let in with it. If it is not (the database was made
		// anew), it gets another one.
		if _, err := c.Logical().WriteWithContext(ctx, mount+"/config/"+connection, settings); err == nil {
			return nil
		}
	}
	password := rand.Text()
	if err := o.config.SQL(ctx, adminStatements(password)...); err != nil {
		return err
	}
	settings["password"] = password
	if _, err := c.Logical().WriteWithContext(ctx, mount+"/config/"+connection, settings); err != nil {
		return err
	}
	// From here on nobody but Vault knows the password, the operator included.
	_, err := c.Logical().WriteWithContext(ctx, mount+"/rotate-root/"+connection, nil)
	return err
}

// adminStatements make the account with which Vault manages the others. It can grant what the roles need in one
// database, and nothing anywhere else.
func adminStatements(password string) []string {
	return []string{
		"CREATE USER IF NOT EXISTS '" + admin + "'@'%' IDENTIFIED BY '" + password + "'",
		"ALTER USER '" + admin + "'@'%' IDENTIFIED BY '" + password + "'",
		"GRANT CREATE USER ON *.* TO '" + admin + "'@'%'",
		"GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, DROP, INDEX, REFERENCES ON todo.* TO '" + admin + "'@'%' WITH GRANT OPTION",
	}
}

const createUser = "CREATE USER '{{name}}'@'%' IDENTIFIED BY '{{password}}'"

// creationOfTodo makes an account for an instance. The first statement fails while the newest table is missing, before there is
// an account: a GRANT that failed would leave one behind that nobody drops.
//
// Grants are per table because the sessions of a dropped account then end too; with grants per database they would go on.
func creationOfTodo() []string {
	return []string{
		"DO (SELECT COUNT(*) FROM todo.todo_write WHERE idempotency_key = '')",
		createUser,
		"GRANT SELECT, INSERT, UPDATE, DELETE ON todo.todo TO '{{name}}'@'%'",
		"GRANT SELECT, INSERT, DELETE ON todo.todo_write TO '{{name}}'@'%'",
	}
}

func (o *Operator) writeDatabaseRoles(ctx context.Context, c *vault.Client) error {
	// Vault's own revocation is two statements of which the second fails when replayed. One that cannot fail twice
	// leaves no lease behind that nobody can revoke.
	revoke := []string{"DROP USER IF EXISTS '{{name}}'@'%'"}
	t := o.config.Times
	roles := map[string]map[string]any{
		RoleTodo: {
			"creation_statements": creationOfTodo(),
			"default_ttl":         seconds(t.Lease),
			"max_ttl":             seconds(t.LeaseMax),
		},
		RoleMigrate: {
			"creation_statements": []string{createUser, "GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, DROP, INDEX, REFERENCES ON todo.* TO '{{name}}'@'%'"},
			"default_ttl":         seconds(migrationTTL),
			"max_ttl":             seconds(migrationTTL),
		},
	}
	for name, role := range roles {
		role["db_name"] = connection
		role["revocation_statements"] = revoke
		if _, err := c.Logical().WriteWithContext(ctx, mount+"/roles/"+name, role); err != nil {
			return err
		}
	}
	return nil
}

func (o *Operator) writePolicies(ctx context.Context, c *vault.Client) error {
	for _, role := range []string{RoleTodo, RoleMigrate} {
		if err := c.Sys().PutPolicyWithContext(ctx, role, policyText(role)); err != nil {
			return err
		}
	}
	return nil
}

func (o *Operator) enableAppRole(ctx context.Context, c *vault.Client) error {
	auths, err := c.Sys().ListAuthWithContext(ctx)
	if err != nil || auths["approle/"] != nil {
		return err
	}
	return c.Sys().EnableAuthWithOptionsWithContext(ctx, "approle", &vault.EnableAuthOptions{
		Type: "approle", Description: "identities of the todo instances",
	})
}

func (o *Operator) writeAppRoles(ctx context.Context, c *vault.Client) error {
	t := o.config.Times
	common := map[string]any{"token_no_default_policy": true, "bind_secret_id": true}
	migrate := map[string]any{
		"token_policies":     []string{RoleMigrate},
		"token_ttl":          seconds(migrationTTL),
		"token_max_ttl":      seconds(migrationTTL),
		"secret_id_num_uses": 1,
		"secret_id_ttl":      seconds(migrationTTL),
	}
	todo := map[string]any{
		"token_policies":     []string{RoleTodo},
		"token_ttl":          seconds(t.Token),
		"token_max_ttl":      seconds(t.TokenMax),
		"secret_id_num_uses": 0,
		"secret_id_ttl":      0,
	}
	for _, r := range []struct {
		name     string
		settings map[string]any
	}{{RoleMigrate, migrate}, {RoleTodo, todo}} {
		for k, v := range common {
			r.settings[k] = v
		}
		if _, err := c.Logical().WriteWithContext(ctx, "auth/approle/role/"+r.name, r.settings); err != nil {
			return err
		}
	}
	return nil
}
