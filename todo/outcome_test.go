package todo

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
)

// fakeDriver is a database that fails in one way: exec answers every statement, dial every connection, commit every COMMIT.
type fakeDriver struct {
	dial   func(context.Context) error
	exec   func(context.Context) (driver.Result, error)
	commit func() error
}

func (d *fakeDriver) Connect(ctx context.Context) (driver.Conn, error) {
	if d.dial != nil {
		if err := d.dial(ctx); err != nil {
			return nil, err
		}
	}
	return &fakeConn{d}, nil
}

func (d *fakeDriver) Driver() driver.Driver { return nil }

type fakeConn struct{ driver *fakeDriver }

var (
	_ driver.ExecerContext  = (*fakeConn)(nil)
	_ driver.QueryerContext = (*fakeConn)(nil)
	_ driver.ConnBeginTx    = (*fakeConn)(nil)
)

func (c *fakeConn) ExecContext(ctx context.Context, _ string, _ []driver.NamedValue) (driver.Result, error) {
	return c.driver.exec(ctx)
}

func (c *fakeConn) QueryContext(ctx context.Context, _ string, _ []driver.NamedValue) (driver.Rows, error) {
	_, err := c.driver.exec(ctx)
	return nil, err
}

func (*fakeConn) Prepare(string) (driver.Stmt, error) { return nil, errors.New("not prepared here") }
func (*fakeConn) Begin() (driver.Tx, error)           { return nil, errors.New("not begun like this") }
func (*fakeConn) Close() error                        { return nil }

func (c *fakeConn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) {
	return fakeTx{c.driver}, nil
}

type fakeTx struct{ driver *fakeDriver }

func (t fakeTx) Commit() error { return t.driver.commit() }
func (fakeTx) Rollback() error { return nil }

// writes are the three writing methods.
func writes(s *Store, key string) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"create": func(ctx context.Context) error { _, err := s.Create(ctx, Draft{"new", "x"}, key); return err },
		"update": func(ctx context.Context) error { _, err := s.Update(ctx, 1, Draft{"new", "x"}, key); return err },
		"delete": func(ctx context.Context) error { return s.Delete(ctx, 1, key) },
	}
}

func reads(s *Store) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"get":   func(ctx context.Context) error { _, err := s.Get(ctx, 1); return err },
		"list":  func(ctx context.Context) error { _, err := s.List(ctx, 0, 1); return err },
		"check": s.Check,
	}
}

func wantOnly(t *testing.T, what string, err, want error) {
	t.Helper()
	for _, sentinel := range []error{ErrUnavailable, ErrOutcomeUnknown, ErrNotFound, ErrKeyReused} {
		if errors.Is(err, sentinel) != (sentinel == want) {
			t.Errorf("%s: %v; is %q: %v", what, err, sentinel, errors.Is(err, sentinel))
		}
	}
}

func TestStore_SaysOfEveryFailureWhetherAWriteMayHaveHappened(t *testing.T) {
	server := func(number uint16) error { return &mysql.MySQLError{Number: number} }
	for _, test := range []struct {
		name  string
		fault fakeDriver
		write error
	}{
		{"no connection", fakeDriver{dial: func(context.Context) error { return &net.OpError{Op: "dial", Err: errors.New("refused")} }}, ErrUnavailable},
		{"no credentials", fakeDriver{dial: func(context.Context) error { return errors.New("vault is sealed") }}, ErrUnavailable},
		{"dead connection", exec(driver.ErrBadConn), ErrUnavailable},
		{"refused, then no connection", exec(unsent{context.Canceled}), ErrUnavailable},
		{"connection lost", exec(mysql.ErrInvalidConn), ErrOutcomeUnknown},
		{"connection reset", exec(&net.OpError{Op: "read", Err: io.ErrUnexpectedEOF}), ErrOutcomeUnknown},
		{"nonsense received", exec(mysql.ErrMalformPkt), ErrOutcomeUnknown},
		{"access denied", exec(server(1142)), ErrUnavailable},
		{"no table", exec(server(1146)), ErrUnavailable},
		{"read only", exec(server(1290)), ErrUnavailable},
		{"deadlock", exec(server(1213)), ErrUnavailable},
		{"lock wait", exec(server(1205)), ErrUnavailable},
		{"killed", exec(server(1927)), ErrOutcomeUnknown},
		{"interrupted", exec(server(1317)), ErrOutcomeUnknown},
		{"shutting down", exec(server(1053)), ErrOutcomeUnknown},
		{"error during commit", exec(server(1180)), ErrOutcomeUnknown},
	} {
		t.Run(test.name, func(t *testing.T) {
			db := sql.OpenDB(&test.fault)
			defer db.Close()
			s := NewStore(db, nil)
			for what, write := range writes(s, "") {
				wantOnly(t, what, write(t.Context()), test.write)
			}
			for what, write := range writes(s, "k") { // Nothing is committed.
				wantOnly(t, what+" with a key", write(t.Context()), ErrUnavailable)
			}
			for what, read := range reads(s) {
				wantOnly(t, what, read(t.Context()), ErrUnavailable)
			}
		})
	}
}

func TestStore_SaysOfEveryFailedCommitWhetherTheWriteMayHaveHappened(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		want error
	}{
		{"success", nil, nil},
		{"dead connection", driver.ErrBadConn, ErrUnavailable},
		{"connection lost", mysql.ErrInvalidConn, ErrOutcomeUnknown},
		{"nonsense received", mysql.ErrMalformPkt, ErrOutcomeUnknown},
		{"error during commit", &mysql.MySQLError{Number: 1180}, ErrOutcomeUnknown},
		{"killed", &mysql.MySQLError{Number: 1927}, ErrOutcomeUnknown},
		{"read only", &mysql.MySQLError{Number: 1290}, ErrUnavailable},
		{"deadlock for ever", &mysql.MySQLError{Number: 1213}, ErrUnavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			fault := fakeDriver{
				exec:   func(context.Context) (driver.Result, error) { return fakeResult{}, nil },
				commit: func() error { return test.err },
			}
			db := sql.OpenDB(&fault)
			defer db.Close()
			for what, write := range writes(NewStore(db, nil), "k") {
				wantOnly(t, what, write(t.Context()), test.want)
			}
		})
	}
}

type fakeResult struct{}

func (fakeResult) LastInsertId() (int64, error) { return 1, nil }
func (fakeResult) RowsAffected() (int64, error) { return 1, nil }

// TestStore_RunsATransactionAgainThatTheServerEnded meets deadlocks at any statement: nothing was done, so nobody need hear of it.
func TestStore_RunsATransactionAgainThatTheServerEnded(t *testing.T) {
	for deadlocks := range onceAttempts {
		left := deadlocks
		meet := func() error {
			if left--; left >= 0 {
				return &mysql.MySQLError{Number: erDeadlock}
			}
			return nil
		}
		fault := fakeDriver{
			exec:   func(context.Context) (driver.Result, error) { return fakeResult{}, meet() },
			commit: meet,
		}
		db := sql.OpenDB(&fault)
		defer db.Close()
		for what, write := range writes(NewStore(db, nil), "k") {
			left = deadlocks
			wantOnly(t, what, write(t.Context()), nil)
		}
	}
}

// unsent is what a connector says that has no connection left for one more attempt.
type unsent struct{ error }

func (unsent) Unsent() bool { return true }

func exec(err error) fakeDriver {
	return fakeDriver{exec: func(context.Context) (driver.Result, error) { return nil, err }}
}

func TestStore_KnowsThatAWriteWhichTimedOutInTheQueueWasNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fault := exec(errors.New("was sent"))
		db := sql.OpenDB(&fault)
		defer db.Close()
		db.SetMaxOpenConns(1)
		busy, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer busy.Close()
		for what, write := range writes(NewStore(db, nil), "") {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			err := write(ctx)
			cancel()
			wantOnly(t, what, err, ErrUnavailable)
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}

func TestStore_LeavesTheOutcomeOpenOfAWriteThatTimedOutInTheDatabase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fault := fakeDriver{exec: func(ctx context.Context) (driver.Result, error) { <-ctx.Done(); return nil, ctx.Err() }}
		db := sql.OpenDB(&fault)
		defer db.Close()
		for what, write := range writes(NewStore(db, nil), "") {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			err := write(ctx)
			cancel()
			wantOnly(t, what, err, ErrOutcomeUnknown)
		}
	})
}

func TestStore_IsNotCalledWithWhatItMayNotStore(t *testing.T) {
	fault := fakeDriver{dial: func(context.Context) error { t.Error("the database was called"); return io.EOF }}
	db := sql.OpenDB(&fault)
	defer db.Close()
	s := NewStore(db, nil)
	var invalid *InvalidError
	if _, err := s.Create(t.Context(), Draft{"new", ""}, ""); !errors.As(err, &invalid) {
		t.Errorf("create: %v", err)
	}
	if _, err := s.Create(t.Context(), Draft{"new", "x"}, "é"); !errors.As(err, &invalid) {
		t.Errorf("create: %v", err)
	}
	if _, err := s.Update(t.Context(), 1, Draft{"", "x"}, ""); !errors.As(err, &invalid) {
		t.Errorf("update: %v", err)
	}
	if _, err := s.Update(t.Context(), 1, Draft{"new", "x"}, "é"); !errors.As(err, &invalid) {
		t.Errorf("update: %v", err)
	}
	if err := s.Delete(t.Context(), 1, "é"); !errors.As(err, &invalid) {
		t.Errorf("delete: %v", err)
	}
}
