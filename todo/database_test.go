package todo_test

import (
	"crypto/rand"
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"example.com/todo/todo"

	"github.com/go-sql-driver/mysql"
)

// server is the one place that knows where the tests' MySQL or MariaDB is and who may create databases and users there.
func server(t *testing.T) *mysql.Config {
	t.Helper()
	if testing.Short() {
		t.Skip("needs MySQL or MariaDB")
	}
	config, err := mysql.ParseDSN(os.Getenv("TODO_TEST_DSN"))
	if err != nil {
		t.Fatalf("TODO_TEST_DSN: %v", err)
	}
	return config
}

// database is an empty database of one test, as its administrator sees it.
type database struct {
	*sql.DB
	name   string
	config *mysql.Config
}

func newDatabase(t *testing.T) *database {
	t.Helper()
	config := server(t)
	config.ClientFoundRows = true
	config.Logger = &mysql.NopLogger{} // Connections are lost on purpose.
	config.DBName = ""
	name := "todo_" + strings.ToLower(rand.Text()[:12])
	plain := open(t, config)
	must(t, plain, "CREATE DATABASE "+name)
	t.Cleanup(func() { must(t, plain, "DROP DATABASE "+name) })
	config.DBName = name
	return &database{open(t, config), name, config}
}

// newMigrated returns a database with the schema, and the administrator's store on it.
func newMigrated(t *testing.T) (*database, *todo.Store) {
	t.Helper()
	d := newDatabase(t)
	if err := todo.Migrate(t.Context(), d.DB, quiet()); err != nil {
		t.Fatal(err)
	}
	return d, todo.NewStore(d.DB)
}

// as returns the database as a new user sees it, who has these privileges only: "SELECT, INSERT ON todo".
func (d *database) as(t *testing.T, privileges string) (*sql.DB, string) {
	t.Helper()
	user := "u" + strings.ToLower(rand.Text()[:12])
	what, table, _ := strings.Cut(privileges, " ON ")
	must(t, d.DB, fmt.Sprintf("CREATE USER '%s'@'%%' IDENTIFIED BY 'pw'", user))
	t.Cleanup(func() { must(t, d.DB, fmt.Sprintf("DROP USER IF EXISTS '%s'@'%%'", user)) })
	must(t, d.DB, fmt.Sprintf("GRANT %s ON %s.%s TO '%s'@'%%'", what, d.name, table, user))
	return d.with(t, func(c *mysql.Config) { c.User, c.Passwd = user, "pw" }), user
}

// with returns another pool of connections to the database.
func (d *database) with(t *testing.T, change func(*mysql.Config)) *sql.DB {
	t.Helper()
	config := d.config.Clone()
	change(config)
	return open(t, config)
}

func open(t *testing.T, config *mysql.Config) *sql.DB {
	t.Helper()
	connector, err := mysql.NewConnector(config.Clone())
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func must(t *testing.T, db *sql.DB, statement string, args ...any) {
	t.Helper()
	if _, err := db.Exec(statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func scalar[T any](t *testing.T, db *sql.DB, query string, args ...any) T {
	t.Helper()
	var value T
	if err := db.QueryRow(query, args...).Scan(&value); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return value
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
