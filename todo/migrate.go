package todo

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"strconv"
	"strings"
	"time"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

const (
	// lockWait is how long one GET_LOCK waits before Migrate says that it is still waiting.
	lockWait = 5 * time.Second
	// unlockTimeout bounds the release of the lock, which is tried even when the context has ended.
	unlockTimeout = 5 * time.Second
)

const createVersions = `CREATE TABLE IF NOT EXISTS todo_migrations (
  version    INT          NOT NULL,
  name       VARCHAR(255) NOT NULL,
  applied_at TIMESTAMP    NOT NULL DEFAULT CURRENT_TIMESTAMP,
  PRIMARY KEY (version)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4`

// Migrate brings the schema of db's database to what this version of the package needs, and changes nothing if it is there
// already. It needs CREATE, ALTER, INDEX, SELECT and INSERT on that database.
//
// Any number of nodes may run it at once: one works, the others wait for it, for as long as ctx allows. A Migrate that was
// killed anywhere is completed by the next. A database that a newer version has migrated is left as it is, because
// migrations only add and this version can serve on it. After an error, Migrate may be called again.
func Migrate(ctx context.Context, db *sql.DB, logger *slog.Logger) error {
	steps, err := loadMigrations(migrationFiles)
	if err != nil {
		return err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("migrate: connect: %w", err)
	}
	defer conn.Close()
	if err := lockSchema(ctx, conn, logger); err != nil {
		return fmt.Errorf("migrate: lock the schema: %w", err)
	}
	defer unlockSchema(ctx, conn)
	return applyMigrations(ctx, conn, steps, logger)
}

// applyMigrations runs on the one connection that holds the lock: if that is lost, so is the right to go on.
func applyMigrations(ctx context.Context, conn *sql.Conn, steps []migration, logger *slog.Logger) error {
	if _, err := conn.ExecContext(ctx, createVersions); err != nil {
		return fmt.Errorf("migrate: create the table of versions: %w", err)
	}
	applied, err := appliedVersions(ctx, conn)
	if err != nil {
		return fmt.Errorf("migrate: read the applied versions: %w", err)
	}
	for _, step := range steps {
		if applied[step.version] {
			continue
		}
		logger.InfoContext(ctx, "applying migration", "version", step.version, "name", step.name)
		for i, statement := range step.statements {
			if _, err := conn.ExecContext(ctx, statement); err != nil {
				return fmt.Errorf("migrate: %s, statement %d: %w", step.name, i+1, err)
			}
		}
		_, err := conn.ExecContext(ctx, "INSERT INTO todo_migrations (version, name) VALUES (?, ?)", step.version, step.name)
		if err != nil {
			return fmt.Errorf("migrate: record %s: %w", step.name, err)
		}
	}
	logger.InfoContext(ctx, "schema is up to date", "version", steps[len(steps)-1].version)
	return nil
}

func appliedVersions(ctx context.Context, conn *sql.Conn) (map[int]bool, error) {
	rows, err := conn.QueryContext(ctx, "SELECT version FROM todo_migrations")
	if err != nil {
		return nil, err
	}
	defer rows.Close() // Rows.Err below is what tells whether all were read.
	applied := make(map[int]bool)
	for rows.Next() {
		var version int
		if err := rows.Scan(&version); err != nil {
			return nil, err
		}
		applied[version] = true
	}
	return applied, rows.Err()
}

// Locks of GET_LOCK are known to the whole server and their names end at 64 characters, hence a digest of the database.
const lockName = "CONCAT('todo-migrate-', MD5(DATABASE()))"

// lockSchema returns when conn holds the lock, which the server takes back by itself when conn is lost.
func lockSchema(ctx context.Context, conn *sql.Conn, logger *slog.Logger) error {
	for {
		var got sql.NullInt64
		err := conn.QueryRowContext(ctx, "SELECT GET_LOCK("+lockName+", ?)", int(lockWait.Seconds())).Scan(&got)
		switch {
		case err != nil:
			return err
		case !got.Valid:
			return errors.New("the server gave no answer (is a database selected?)")
		case got.Int64 == 1:
			return nil
		}
		logger.InfoContext(ctx, "waiting for another node to finish its migration")
	}
}

// unlockSchema closes the connection for good when it cannot release the lock: back in the pool, it would hold it for ever.
func unlockSchema(ctx context.Context, conn *sql.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockTimeout)
	defer cancel()
	if _, err := conn.ExecContext(ctx, "DO RELEASE_LOCK("+lockName+")"); err != nil {
		_ = conn.Raw(func(any) error { return driver.ErrBadConn })
	}
}

type migration struct {
	version    int
	name       string
	statements []string
}

// loadMigrations reads NNNN_name.sql files, which must be numbered 1, 2, 3 … without a gap.
func loadMigrations(files fs.FS) ([]migration, error) {
	names, err := fs.Glob(files, "migrations/*.sql") // Sorted, as fs.ReadDir is.
	if err != nil {
		return nil, fmt.Errorf("find migrations: %w", err)
	}
	steps := make([]migration, 0, len(names))
	for i, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, fmt.Errorf("read migration: %w", err)
		}
		step := migration{name: path.Base(name), statements: splitStatements(string(text))}
		number, _, _ := strings.Cut(step.name, "_")
		step.version, err = strconv.Atoi(number)
		if err != nil || step.version != i+1 {
			return nil, fmt.Errorf("migration %s: its number should be %04d", step.name, i+1)
		}
		steps = append(steps, step)
	}
	if len(steps) == 0 {
		return nil, errors.New("find migrations: there are none")
	}
	return steps, nil
}

// splitStatements splits at semicolons that end a line and drops lines that are only a comment.
func splitStatements(text string) []string {
	var statements []string
	var current strings.Builder
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSpace(line)
		if trimmed == "" || strings.HasPrefix(trimmed, "--") {
			continue
		}
		current.WriteString(line)
		if strings.HasSuffix(trimmed, ";") {
			statements = append(statements, strings.TrimSuffix(strings.TrimSpace(current.String()), ";"))
			current.Reset()
		}
	}
	if rest := strings.TrimSpace(current.String()); rest != "" {
		statements = append(statements, rest)
	}
	return statements
}
