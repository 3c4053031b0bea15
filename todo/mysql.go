package todo

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"

	"github.com/go-sql-driver/mysql"
)

// createAttempts bounds how often Create starts over when the todo that holds its key is deleted between two statements.
const createAttempts = 3

// The statements that write are the same with a key and without one.
const (
	insertTodo = "INSERT INTO todo (status, content, idempotency_key, idempotency_digest) VALUES (?, ?, ?, ?)"
	updateTodo = "UPDATE todo SET status = ?, content = ? WHERE id = ?"
	deleteTodo = "DELETE FROM todo WHERE id = ?"
)

// Store keeps todos in the MySQL or MariaDB tables that Migrate makes. It may be used by many goroutines.
//
// A statement without an idempotency key stands alone in autocommit mode, so that the layer below may move it to a fresh connection
// when it was refused unexecuted (an expired credential, a connection that was already dead), and the Store sends none of them twice.
//
// A write with a key is a transaction of its own that remembers the key: the same call again returns what the first one returned,
// and changes nothing, whatever was written since and however late it comes. A key stands for one write: for another one it is
// ErrKeyReused. It is remembered for KeyMemory at least, and that of a Create for as long as its todo exists. ErrNotFound is not
// remembered, as nothing was done.
type Store struct {
	db   *sql.DB
	inTx InTx
}

// NewStore returns a Store on db, whose database must be the one that Migrate prepared. The connections should use
// clientFoundRows=true: without it, an Update that changes nothing costs one more statement. A nil run begins and commits on db,
// once; a pool whose transactions may have to be run again brings its own.
//
// A COMMIT takes no context. What bounds it is the connections' own read timeout.
func NewStore(db *sql.DB, run InTx) *Store {
	if run == nil {
		run = inTx(db)
	}
	return &Store{db, run}
}

// Create stores draft as a new todo. With an empty key, every call creates one.
//
// Errors: *InvalidError, ErrKeyReused, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) Create(ctx context.Context, draft Draft, idempotencyKey string) (Todo, error) {
	if draft.Status == "" {
		draft.Status = StatusNew
	}
	if err := draft.Validate(); err != nil {
		return Todo{}, err
	}
	if idempotencyKey != "" {
		return s.createOnce(ctx, draft, idempotencyKey)
	}
	result, err := s.write(ctx, "create todo", insertTodo, draft.Status, draft.Content, nil, nil)
	if err != nil {
		return Todo{}, err
	}
	id, err := result.LastInsertId()
	if err != nil {
		return Todo{}, fmt.Errorf("create todo: %w: %w", ErrOutcomeUnknown, err)
	}
	return Todo{ID: id, Status: draft.Status, Content: draft.Content}, nil
}

// List returns up to limit todos with ids above after, in the order of their ids; fewer than limit mean that these are the
// last. Whoever reads page after page sees every todo exactly once that exists throughout, and holds no connection
// in between.
//
// Errors: ErrUnavailable.
func (s *Store) List(ctx context.Context, after int64, limit int) ([]Todo, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT id, status, content FROM todo WHERE id > ? ORDER BY id LIMIT ?", after, limit)
	if err != nil {
		return nil, readError("list todos", err)
	}
	defer rows.Close() // Rows.Err below is what tells whether the page is whole.
	var page []Todo
	for rows.Next() {
		var t Todo
		if err := rows.Scan(&t.ID, &t.Status, &t.Content); err != nil {
			return nil, readError("list todos", err)
		}
		page = append(page, t)
	}
	if err := rows.Err(); err != nil {
		return nil, readError("list todos", err)
	}
	return page, nil
}

// Get returns the todo with this id.
//
// Errors: ErrNotFound, ErrUnavailable.
func (s *Store) Get(ctx context.Context, id int64) (Todo, error) {
	t := Todo{ID: id}
	err := s.db.QueryRowContext(ctx, "SELECT status, content FROM todo WHERE id = ?", id).Scan(&t.Status, &t.Content)
	if errors.Is(err, sql.ErrNoRows) {
		return Todo{}, ErrNotFound
	}
	if err != nil {
		return Todo{}, readError("get todo", err)
	}
	return t, nil
}

// Update replaces what the todo with this id says and returns the todo as it is saved.
//
// Errors: *InvalidError, ErrNotFound, ErrKeyReused, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) Update(ctx context.Context, id int64, draft Draft, idempotencyKey string) (Todo, error) {
	if err := draft.Validate(); err != nil {
		return Todo{}, err
	}
	if idempotencyKey != "" {
		return s.updateOnce(ctx, id, draft, idempotencyKey)
	}
	result, err := s.write(ctx, "update todo", updateTodo, draft.Status, draft.Content, id)
	if err != nil {
		return Todo{}, err
	}
	touched, err := result.RowsAffected()
	if err != nil {
		return Todo{}, fmt.Errorf("update todo: %w: %w", ErrOutcomeUnknown, err)
	}
	if touched == 0 {
		// Nothing matched, or the connection counts changed rows and these were the same already: only looking tells.
		return s.Get(ctx, id)
	}
	return Todo{ID: id, Status: draft.Status, Content: draft.Content}, nil
}

// Delete removes the todo with this id.
//
// Errors: *InvalidError, ErrNotFound, ErrKeyReused, ErrUnavailable, ErrOutcomeUnknown. After ErrOutcomeUnknown without a key, a
// second Delete that returns ErrNotFound has what it wanted.
func (s *Store) Delete(ctx context.Context, id int64, idempotencyKey string) error {
	if idempotencyKey != "" {
		return s.deleteOnce(ctx, id, idempotencyKey)
	}
	result, err := s.write(ctx, "delete todo", deleteTodo, id)
	if err != nil {
		return err
	}
	gone, err := result.RowsAffected()
	if err != nil {
		return fmt.Errorf("delete todo: %w: %w", ErrOutcomeUnknown, err)
	}
	if gone == 0 {
		return ErrNotFound
	}
	return nil
}

// Check reads from both tables, as the other methods do. A ping would not do: it succeeds on a connection whose user has
// lost every privilege, and on a database that was never migrated.
//
// Errors: ErrUnavailable.
func (s *Store) Check(ctx context.Context) error {
	var rows int
	err := s.db.QueryRowContext(ctx, `SELECT COUNT(*) FROM todo LEFT JOIN todo_write ON todo_write.idempotency_key = '' AND todo_id = 0 AND digest = ''
		WHERE id = 0 AND status = '' AND content = '' AND todo.idempotency_key = '' AND idempotency_digest = ''`).Scan(&rows)
	if err != nil {
		return readError("check the table", err)
	}
	return nil
}

// write executes a statement that changes the table and says in its error whether the change may have been made. It needs
// at least one argument, because the arguments tell whether the statement departed.
func (s *Store) write(ctx context.Context, what, query string, args ...any) (sql.Result, error) {
	departure := &departing{}
	marked := make([]any, len(args))
	for i, arg := range args {
		marked[i] = departure.with(arg)
	}
	result, err := s.db.ExecContext(ctx, query, marked...)
	switch {
	case err == nil:
		return result, nil
	case departure.departed && mayHaveRun(err):
		return nil, fmt.Errorf("%s: %w: %w", what, ErrOutcomeUnknown, err)
	default:
		return nil, fmt.Errorf("%s: %w: %w", what, ErrUnavailable, err)
	}
}

func readError(what string, err error) error {
	return fmt.Errorf("%s: %w: %w", what, ErrUnavailable, err)
}

// departing notes whether a statement got as far as a connection. database/sql asks an argument for its value only when
// it holds a connection, right before it hands the statement over. So a statement that timed out while it waited in
// the pool's queue, or for a connection to be dialled, is known not to have run.
type departing struct {
	departed bool
}

func (d *departing) with(value any) driver.Valuer { return departingValue{d, value} }

type departingValue struct {
	departure *departing
	value     any
}

var _ driver.Valuer = departingValue{}

func (v departingValue) Value() (driver.Value, error) {
	v.departure.departed = true
	return driver.DefaultParameterConverter.ConvertValue(v.value)
}

// Server error numbers, from MySQL's and MariaDB's error references.
const (
	erServerShutdown    = 1053
	erDuplicateEntry    = 1062
	erErrorDuringCommit = 1180
	erDeadlock          = 1213
	erQueryInterrupted  = 1317
	erConnectionKilled  = 1927 // MariaDB
	erStatementTimeout  = 1969 // MariaDB
)

// mayHaveRun judges the error of a statement that was handed to a connection.
func mayHaveRun(err error) bool {
	if errors.Is(err, driver.ErrBadConn) {
		return false // By the contract of database/sql: the driver is sure that the server did nothing.
	}
	// A connector may know more: that an earlier attempt was refused, and that there was no connection for another.
	var connector interface{ Unsent() bool }
	if errors.As(err, &connector) && connector.Unsent() {
		return false
	}
	var refused *mysql.MySQLError
	if !errors.As(err, &refused) {
		return true // No answer, or one that makes no sense.
	}
	switch refused.Number {
	case erServerShutdown, erErrorDuringCommit, erQueryInterrupted, erConnectionKilled, erStatementTimeout:
		return true // A kill may arrive between the commit and its answer, and be reported instead of the success.
	}
	return false // Any other error of an autocommit statement, or of a COMMIT, is its refusal.
}

func isDuplicate(err error) bool { return isRefusal(err, erDuplicateEntry) }

func isDeadlock(err error) bool { return isRefusal(err, erDeadlock) }

func isRefusal(err error, number uint16) bool {
	var refused *mysql.MySQLError
	return errors.As(err, &refused) && refused.Number == number
}
