package todo_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/todo/todo"

	"github.com/go-sql-driver/mysql"
)

// autoIncrement is the one part of a table's description that its rows change.
var autoIncrement = regexp.MustCompile(` AUTO_INCREMENT=\d+`)

// schema describes everything that the migrations are to make, version records included.
func schema(t *testing.T, d *database) string {
	t.Helper()
	var text strings.Builder
	for _, table := range []string{"todo", "todo_write", "todo_migrations"} {
		var name, create string
		if err := d.QueryRow("SHOW CREATE TABLE "+table).Scan(&name, &create); err != nil {
			t.Fatal(err)
		}
		text.WriteString(autoIncrement.ReplaceAllString(create, "") + "\n")
	}
	return text.String() + scalar[string](t, d.DB, "SELECT GROUP_CONCAT(version, ' ', name ORDER BY version) FROM todo_migrations")
}

func TestMigrate_ChangesNothingWhenRunAgain(t *testing.T) {
	d, s := newMigrated(t)
	before := schema(t, d)
	if !strings.Contains(before, "utf8mb4") {
		t.Errorf("schema is not utf8mb4: %s", before)
	}
	created, err := s.Create(t.Context(), todo.Draft{Status: "new", Content: "x"}, "k")
	if err != nil {
		t.Fatal(err)
	}
	if err := todo.Migrate(t.Context(), d.DB, quiet()); err != nil {
		t.Fatal(err)
	}
	if after := schema(t, d); after != before {
		t.Errorf("schema was %s, is %s", before, after)
	}
	if found, err := s.Get(t.Context(), created.ID); err != nil || found != created {
		t.Errorf("%v, %v", found, err)
	}
}

func TestMigrate_MayRunOnAllNodesAtOnce(t *testing.T) {
	d := newDatabase(t)
	var all sync.WaitGroup
	for range 8 {
		node := d.with(t, func(*mysql.Config) {})
		all.Go(func() {
			if err := todo.Migrate(t.Context(), node, quiet()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	statements, err := todo.MigrationStatements()
	if err != nil {
		t.Fatal(err)
	}
	if n := scalar[int](t, d.DB, "SELECT COUNT(*) FROM todo_migrations"); n != len(statements) {
		t.Errorf("%d versions of %d", n, len(statements))
	}
}

// TestMigrate_CompletesWhatACrashLeft stops after every single statement, as a crash would, before and after the record of it.
func TestMigrate_CompletesWhatACrashLeft(t *testing.T) {
	whole, _ := newMigrated(t)
	want := schema(t, whole)
	versions, err := todo.MigrationStatements()
	if err != nil {
		t.Fatal(err)
	}
	for version, statements := range versions {
		for done := 0; done <= len(statements); done++ {
			d := newDatabase(t)
			d.SetMaxOpenConns(1) // The statements of a migration share a session.
			for _, earlier := range versions[:version] {
				for _, statement := range earlier {
					must(t, d.DB, statement)
				}
			}
			for _, statement := range statements[:done] {
				must(t, d.DB, statement)
			}
			if err := todo.Migrate(t.Context(), d.DB, quiet()); err != nil {
				t.Errorf("version %d, after %d statements: %v", version+1, done, err)
				continue
			}
			if got := schema(t, d); got != want {
				t.Errorf("version %d, after %d statements: %s, want %s", version+1, done, got, want)
			}
		}
	}
}

func TestMigrate_WorksUnderTheGrantsOfItsRole(t *testing.T) {
	d := newDatabase(t)
	db, _ := d.as(t, "CREATE, ALTER, DROP, INDEX, SELECT, INSERT, UPDATE, DELETE ON *")
	if err := todo.Migrate(t.Context(), db, quiet()); err != nil {
		t.Fatal(err)
	}
	if err := todo.NewStore(db, nil).Check(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestMigrate_LeavesADatabaseOfANewerVersionAlone(t *testing.T) {
	d, s := newMigrated(t)
	must(t, d.DB, "INSERT INTO todo_migrations (version, name) VALUES (9999, 'from the future')")
	must(t, d.DB, "ALTER TABLE todo ADD COLUMN due DATE NULL")
	before := schema(t, d)
	if err := todo.Migrate(t.Context(), d.DB, quiet()); err != nil {
		t.Error(err)
	}
	if after := schema(t, d); after != before {
		t.Errorf("schema was %s, is %s", before, after)
	}
	if _, err := s.Create(t.Context(), todo.Draft{Status: "new", Content: "x"}, "k"); err != nil {
		t.Error(err)
	}
}

// lockOf holds the lock of d's migrations on a connection of its own.
func lockOf(t *testing.T, d *database) *sql.Conn {
	t.Helper()
	conn, err := d.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got int
	err = conn.QueryRowContext(t.Context(), "SELECT GET_LOCK(CONCAT('todo-migrate-', MD5(DATABASE())), 0)").Scan(&got)
	if err != nil || got != 1 {
		t.Fatalf("lock: %d, %v", got, err)
	}
	return conn
}

func TestMigrate_WaitsForAnotherNodeUntilItsContextEnds(t *testing.T) {
	d := newDatabase(t)
	other := lockOf(t, d)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	err := todo.Migrate(ctx, d.DB, quiet())
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	if n := scalar[int](t, d.DB, "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE()"); n != 0 {
		t.Errorf("%d tables were made without the lock", n)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
}

func TestMigrate_SaysThatItWaitsAndGoesOnWhenTheOtherNodeDies(t *testing.T) {
	d := newDatabase(t)
	other := lockOf(t, d)
	var id int
	if err := other.QueryRowContext(t.Context(), "SELECT CONNECTION_ID()").Scan(&id); err != nil {
		t.Fatal(err)
	}
	said := make(chan struct{})
	var once sync.Once
	logger := slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
		if bytes.Contains(p, []byte("waiting for another node")) {
			once.Do(func() { close(said) })
		}
		return len(p), nil
	}), nil))
	done := make(chan error, 1)
	go func() { done <- todo.Migrate(t.Context(), d.DB, logger) }()
	select {
	case <-said:
	case err := <-done:
		t.Fatalf("it did not wait: %v", err)
	}
	must(t, d.DB, fmt.Sprint("KILL ", id))
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := other.PingContext(t.Context()); err == nil {
		t.Error("the other node is still connected")
	}
	_ = other.Close() // It may be closed already, which is as good.
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestMigrate_GivesTheLockBackAlsoAfterAnError(t *testing.T) {
	for name, spoil := range map[string]func(*database){
		"success": func(*database) {},
		"error":   func(d *database) { must(t, d.DB, "CREATE VIEW todo_migrations AS SELECT 1 AS nothing") },
	} {
		d := newDatabase(t)
		spoil(d)
		if err := todo.Migrate(t.Context(), d.DB, quiet()); (err != nil) != (name == "error") {
			t.Errorf("%s: %v", name, err)
		}
		if free := scalar[int](t, d.DB, "SELECT IS_FREE_LOCK(CONCAT('todo-migrate-', MD5(DATABASE())))"); free != 1 {
			t.Errorf("%s: the lock is still held", name)
		}
	}
}

func TestMigrate_NeedsADatabase(t *testing.T) {
	d := newDatabase(t)
	nowhere := d.with(t, func(c *mysql.Config) { c.DBName = "" })
	if err := todo.Migrate(t.Context(), nowhere, quiet()); err == nil || !strings.Contains(err.Error(), "database") {
		t.Errorf("%v", err)
	}
}
