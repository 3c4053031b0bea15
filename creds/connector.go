package creds

import (
	"context"
	"database/sql/driver"
	"fmt"
	"sync"

	"github.com/go-sql-driver/mysql"
)

// session is what the MySQL driver's connections can do.
type session interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.NamedValueChecker
	driver.SessionResetter
	driver.Validator
}

// maxAttempts bounds how often one statement is run on ever newer credentials.
const maxAttempts = 5

type connector struct{ s *Source }

func (c connector) Driver() driver.Driver { return mysql.MySQLDriver{} }

// Connect opens a session with the current credentials.
func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	cn := &conn{s: c.s, fresh: true, idle: true}
	cn.mu.Lock() // from the dial on, a drain may look at it
	defer cn.mu.Unlock()
	if err := cn.dial(ctx); err != nil {
		return nil, err
	}
	return cn, nil
}

var _ session = (*conn)(nil)

// conn is a place in the pool. The session inside it is replaced when its credentials are out of date, but only while nothing of
// the session's state can matter to the caller: between two uses, before the first statement of the next.
type conn struct {
	s *Source

	// mu is held while a statement runs. It is never contended by callers, who use a connection one at a time;
	// it keeps a drain from closing a session in use.
	mu    sync.Mutex
	inner session // never nil after the first dial; may be closed
	gen   *generation
	addr  string
	epoch int // counts the sessions, so that prepared statements know theirs is gone

	open  bool // inner is open and counted in gen
	idle  bool // in the pool, or not used yet
	fresh bool // nothing has run since the pool handed it out, so the session has no state
	check bool // the session must be looked at before its next use
}

// unsentError is the lack of a session: whatever was to be sent was not, so the operation may be retried.
type unsentError struct {
	error
	again bool
}

func (e unsentError) Unwrap() error { return e.error }

// Unsent tells callers that nothing has run, whatever else went wrong.
func (e unsentError) Unsent() bool { return true }

// Is makes database/sql try once more while the caller still waits. After that its own error would hide ours.
func (e unsentError) Is(target error) bool { return e.again && target == driver.ErrBadConn }

// dial opens a session with the current credentials and counts it in their generation. The caller holds mu.
func (c *conn) dial(ctx context.Context) error {
	if err := c.dialCurrent(ctx); err != nil {
		return unsentError{err, ctx.Err() == nil}
	}
	return nil
}

func (c *conn) dialCurrent(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		g, err := c.s.usable(ctx)
		if err != nil {
			return err
		}
		if !g.acquire() {
			continue // it ended this moment; usable waits for the next
		}
		addr, inner, err := c.s.obtain(ctx, g)
		if err != nil {
			g.dialled(nil)
			if !loginDenied(err) || attempt == maxAttempts {
				return fmt.Errorf("connect to mysql: %w", err)
			}
			c.s.condemn(g, revoked)
			continue
		}
		g.dialled(c)
		c.inner, c.gen, c.addr, c.open, c.check = inner, g, addr, true, false
		c.epoch++
		if g.ended.Load() { // it ended while we dialled
			c.detach()
			continue
		}
		return nil
	}
}

// obtain gives a session of g: one that was dialled ahead and still lives, or a new one.
func (s *Source) obtain(ctx context.Context, g *generation) (string, session, error) {
	for w, ok := g.takeWarm(); ok; w, ok = g.takeWarm() {
		if w.ResetSession(ctx) == nil && (s.cfg.Keep == nil || s.cfg.Keep(w.addr)) {
			return w.addr, w.session, nil
		}
		_ = w.Close() // dead or in the wrong place
	}
	return s.open(ctx, g)
}

// open dials the database once as g's user.
func (s *Source) open(ctx context.Context, g *generation) (string, session, error) {
	addr, err := s.cfg.Address(ctx)
	if err != nil {
		return "", nil, fmt.Errorf("find mysql: %w", err)
	}
	inner, err := s.dialer(ctx, g.user, addr, g.password)
	return addr, inner, err
}

// detach closes the session and leaves its place in the pool to be filled again. The caller holds mu.
func (c *conn) detach() {
	if !c.open {
		return
	}
	c.open = false
	_ = c.inner.Close() // the session is given up: there is nobody to tell
	c.gen.release(c)
}

// stale reports whether new work should have another session.
func (c *conn) stale() bool {
	return !c.open || c.gen != c.s.current.Load() || c.gen.ended.Load() || (c.s.cfg.Keep != nil && !c.s.cfg.Keep(c.addr))
}

// attach makes sure that a statement may be sent: on a session with current credentials if nothing has run in it yet, and
// else on the one the caller has, as long as its user may still be used. The caller holds mu.
func (c *conn) attach(ctx context.Context) error {
	c.idle = false
	if !c.fresh {
		if c.gen.ended.Load() || !c.open {
			return fmt.Errorf("%w: %s", ErrRevoked, c.gen.user)
		}
		return nil
	}
	if c.check {
		c.check = false
		if c.open && c.inner.ResetSession(ctx) != nil {
			c.detach()
		}
	}
	if !c.stale() {
		return nil
	}
	c.detach()
	return c.dial(ctx)
}

// do runs one statement, which gives the session state that a new one would lack.
func (c *conn) do(ctx context.Context, run func(session) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.retry(ctx, run)
	if err != driver.ErrSkip { // then the driver has sent nothing
		c.fresh = false
	}
	return err
}

// retry runs one statement, again on new credentials if the server refused to run it because ours were revoked.
// The caller holds mu.
func (c *conn) retry(ctx context.Context, run func(session) error) error {
	for attempt := 1; ; attempt++ {
		if err := c.attach(ctx); err != nil {
			return err
		}
		err := run(c.inner)
		if err == nil && !c.gen.proven.Load() {
			c.gen.proven.Store(true)
		}
		if err == nil || !denied(err) {
			return err
		}
		gone, unsure := c.s.judge(ctx, c.gen)
		switch {
		case !gone && unsure == nil: // a privilege that we never had
			return err
		case !c.fresh && gone:
			return fmt.Errorf("%w: %w", ErrRevoked, err)
		case !c.fresh, attempt == maxAttempts:
			return err
		}
		c.detach()
		c.s.metrics.retries.Inc()
	}
}

func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (res driver.Result, err error) {
	err = c.do(ctx, func(in session) error {
		res, err = in.ExecContext(ctx, query, args)
		return err
	})
	return res, err
}

func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (rows driver.Rows, err error) {
	err = c.do(ctx, func(in session) error {
		rows, err = in.QueryContext(ctx, query, args)
		return err
	})
	return rows, err
}

// Ping answers on a revoked session too: it is no proof of health. Query a table instead.
func (c *conn) Ping(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.attach(ctx); err != nil {
		return err
	}
	return c.inner.Ping(ctx)
}

func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.attach(ctx); err != nil {
		return nil, err
	}
	inner, err := c.inner.BeginTx(ctx, opts)
	c.fresh = false
	if err != nil {
		return nil, err
	}
	return &tx{c: c, inner: inner}, nil
}

// Begin is never called by database/sql, which prefers BeginTx.
func (c *conn) Begin() (driver.Tx, error) { return c.BeginTx(context.Background(), driver.TxOptions{}) }

// Prepare is never called by database/sql, which prefers PrepareContext.
func (c *conn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

// PrepareContext leaves the session as good as fresh: statements can be prepared again in a new one.
func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := &stmt{c: c, query: query}
	if err := c.retry(ctx, func(in session) error { return st.prepare(ctx, in) }); err != nil {
		return nil, err
	}
	return st, nil
}

func (c *conn) CheckNamedValue(v *driver.NamedValue) error { return c.inner.CheckNamedValue(v) }

// ResetSession is called when the pool hands the connection out again. The work is left to the first statement, which can
// replace the session and report why it could not.
func (c *conn) ResetSession(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle, c.fresh, c.check = false, true, true
	return nil
}

// IsValid is called when the connection comes back to the pool: an out-of-date one is closed there and then.
func (c *conn) IsValid() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = true
	return !c.stale() && c.inner.IsValid()
}

func (c *conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.detach()
	return nil
}

// sweep closes the session if nobody uses it, and reports whether it is closed or between two statements: that is,
// whether no statement is in flight.
func (c *conn) sweep(g *generation) bool {
	if !c.mu.TryLock() {
		return false
	}
	defer c.mu.Unlock()
	if c.idle && c.gen == g {
		c.detach()
	}
	return true
}
