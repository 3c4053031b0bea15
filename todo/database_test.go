package todo_test

import (
	"crypto/rand"
	"database/sql"
	"fmt"
	"log/slog"
	"net"
	"os/user"
	"strings"
	"testing"

	"example.com/todo/internal/labtest"
	"example.com/todo/todo"

	"github.com/go-sql-driver/mysql"
	"go.uber.org/goleak"
)

// shared is the lab whose database all tests of this package use, each with a schema and users of its own.
var shared = labtest.NewShared(labtest.Options{MySQL: 1})

func TestMain(m *testing.M) {
	// The package promises to own no goroutine, so none may be left when its tests have ended.
	goleak.VerifyTestMain(shared.Main(m))
}

// server is how the administrator of the lab's database reaches it.
func server(t *testing.T) (config *mysql.Config, address string) {
	t.Helper()
	lab := shared.Lab(t)
	socket, err := lab.MySQLSocket()
	if err != nil {
		t.Fatal(err)
	}
	who, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	config = mysql.NewConfig()
	config.Net, config.Addr, config.User = "unix", socket, who.Username
	return config, net.JoinHostPort(lab.Addr("mysql"), "3306")
}

// database is an empty database of one test, as its administrator sees it.
type database struct {
	*sql.DB
	name    string
	config  *mysql.Config
	address string // Where users without the administrator's rights connect.
}

func newDatabase(t *testing.T) *database {
	t.Helper()
	config, address := server(t)
	config.ClientFoundRows = true
	config.Logger = &mysql.NopLogger{} // Connections are lost on purpose.
	config.DBName = ""
	name := "todo_" + strings.ToLower(rand.Text()[:12])
	plain := open(t, config)
	must(t, plain, "CREATE DATABASE "+name)
	t.Cleanup(func() { must(t, plain, "DROP DATABASE "+name) })
	config.DBName = name
	return &database{open(t, config), name, config, address}
}

// newMigrated returns a database with the schema, and the administrator's store on it.
func newMigrated(t *testing.T) (*database, *todo.Store) {
	t.Helper()
	d := newDatabase(t)
	if err := todo.Migrate(t.Context(), d.DB, quiet()); err != nil {
		t.Fatal(err)
	}
	return d, todo.NewStore(d.DB, nil)
}

// as returns the database as a new user sees it, who has these privileges only: "SELECT ON todo; INSERT ON x".
func (d *database) as(t *testing.T, privileges string) (*sql.DB, string) {
	t.Helper()
	name := "u" + strings.ToLower(rand.Text()[:12])
	must(t, d.DB, fmt.Sprintf("CREATE USER '%s'@'%%' IDENTIFIED BY 'pw'", name))
	t.Cleanup(func() { must(t, d.DB, fmt.Sprintf("DROP USER IF EXISTS '%s'@'%%'", name)) })
	for privilege := range strings.SplitSeq(privileges, "; ") {
		what, table, _ := strings.Cut(privilege, " ON ")
		must(t, d.DB, fmt.Sprintf("GRANT %s ON %s.%s TO '%s'@'%%'", what, d.name, table, name))
	}
	return d.with(t, func(c *mysql.Config) { c.Net, c.Addr, c.User, c.Passwd = "tcp", d.address, name, "pw" }), name
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
