package creds

import (
	"context"
	"database/sql/driver"
	"fmt"
)

// tx is a transaction on one session; it ends with that session's credentials.
type tx struct {
	c     *conn
	inner driver.Tx
}

// Commit sends nothing once the user may no longer be used: the server then rolls back, so the whole may be retried.
func (t *tx) Commit() error {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	if t.c.gen.ended.Load() || !t.c.open {
		t.c.detach()
		return fmt.Errorf("commit: %w", ErrRevoked)
	}
	return t.inner.Commit()
}

func (t *tx) Rollback() error {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	if t.c.gen.ended.Load() || !t.c.open {
		t.c.detach() // closing the session rolls back
		return nil
	}
	return t.inner.Rollback()
}

var (
	_ driver.StmtExecContext   = (*stmt)(nil)
	_ driver.StmtQueryContext  = (*stmt)(nil)
	_ driver.NamedValueChecker = (*stmt)(nil)
)

// stmt is a prepared statement that prepares itself again when its connection has a new session.
type stmt struct {
	c     *conn
	query string
	inner driver.Stmt
	epoch int
}

// prepare makes the statement in the connection's present session. The caller holds the connection's mu.
func (st *stmt) prepare(ctx context.Context, in session) error {
	inner, err := in.PrepareContext(ctx, st.query)
	if err != nil {
		return err
	}
	st.inner, st.epoch = inner, st.c.epoch
	return nil
}

// current makes sure that the statement belongs to the connection's present session.
func (st *stmt) current(ctx context.Context, in session) error {
	if st.epoch == st.c.epoch {
		return nil
	}
	return st.prepare(ctx, in)
}

func (st *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (res driver.Result, err error) {
	err = st.c.do(ctx, func(in session) error {
		if err := st.current(ctx, in); err != nil {
			return err
		}
		res, err = st.inner.(driver.StmtExecContext).ExecContext(ctx, args)
		return err
	})
	return res, err
}

func (st *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (rows driver.Rows, err error) {
	err = st.c.do(ctx, func(in session) error {
		if err := st.current(ctx, in); err != nil {
			return err
		}
		rows, err = st.inner.(driver.StmtQueryContext).QueryContext(ctx, args)
		return err
	})
	return rows, err
}

func (st *stmt) CheckNamedValue(v *driver.NamedValue) error { return st.c.CheckNamedValue(v) }

func (st *stmt) NumInput() int { return st.inner.NumInput() }

func (st *stmt) Close() error {
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	if st.epoch != st.c.epoch || !st.c.open {
		return nil // its session, and so the statement, is closed already
	}
	return st.inner.Close()
}

// Exec is never called by database/sql, which prefers ExecContext.
func (st *stmt) Exec(args []driver.Value) (driver.Result, error) {
	return st.ExecContext(context.Background(), named(args))
}

// Query is never called by database/sql, which prefers QueryContext.
func (st *stmt) Query(args []driver.Value) (driver.Rows, error) {
	return st.QueryContext(context.Background(), named(args))
}

func named(args []driver.Value) []driver.NamedValue {
	out := make([]driver.NamedValue, len(args))
	for i, a := range args {
		out[i] = driver.NamedValue{Ordinal: i + 1, Value: a}
	}
	return out
}
