package creds

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
)

// world is a Vault and a MySQL in memory, for faults that must come at one precise moment. The proof that the package
// works is in the tests against real servers; these pin down when and how often it asks.
type world struct {
	mu       sync.Mutex
	ttl      time.Duration // of leases
	max      time.Duration // of leases
	tokenTTL time.Duration
	tokenMax time.Duration
	down     error // every call to Vault
	loginErr error // logging in
	leaseErr error // reading credentials
	dbDown   error // every dial
	broken   bool  // new users have no privileges

	users  map[string]bool // alive
	tokens map[Secret]*fakeToken
	leases map[string]*fakeLease
	calls  map[string]int
	mints  []time.Time
	log    []string // statements, as user
	served int
}

type fakeToken struct{ born, ends time.Time }

type fakeLease struct {
	user       string
	token      Secret
	born, ends time.Time
}

func newWorld() *world {
	return &world{
		ttl: time.Minute, max: 24 * time.Hour, tokenTTL: time.Hour, tokenMax: 240 * time.Hour,
		users: map[string]bool{}, tokens: map[Secret]*fakeToken{}, leases: map[string]*fakeLease{}, calls: map[string]int{},
	}
}

func (w *world) enter(name string) (func(), error) {
	w.mu.Lock()
	w.calls[name]++
	return w.mu.Unlock, w.down
}

func (w *world) Ready(context.Context) error {
	leave, err := w.enter("ready")
	defer leave()
	return err
}

func (w *world) Login(context.Context) (Secret, grant, error) {
	leave, err := w.enter("login")
	defer leave()
	if err == nil {
		err = w.loginErr
	}
	if err != nil {
		return "", grant{}, err
	}
	token := Secret(fmt.Sprintf("token-%d", w.calls["login"]))
	w.tokens[token] = &fakeToken{time.Now(), time.Now().Add(w.tokenTTL)}
	return token, grant{issued: time.Now(), ttl: w.tokenTTL, nominal: w.tokenTTL, renewable: true}, nil
}

func (w *world) Lease(_ context.Context, token Secret) (*lease, error) {
	leave, err := w.enter("lease")
	defer leave()
	if err != nil {
		return nil, err
	}
	w.mints = append(w.mints, time.Now())
	if w.leaseErr != nil {
		return nil, w.leaseErr
	}
	if w.tokens[token] == nil {
		return nil, errLost
	}
	n := w.calls["lease"]
	id, user := fmt.Sprintf("database/creds/todo/lease-%06d", n), fmt.Sprintf("v-%d", n)
	w.leases[id] = &fakeLease{user, token, time.Now(), time.Now().Add(w.ttl)}
	w.users[user] = true
	return &lease{id: id, user: user, password: "pw", grant: grant{issued: time.Now(), ttl: w.ttl, nominal: w.ttl, renewable: true}}, nil
}

func (w *world) RenewToken(_ context.Context, token Secret) (grant, error) {
	leave, err := w.enter("renew token")
	defer leave()
	if err != nil {
		return grant{}, err
	}
	t := w.tokens[token]
	if t == nil {
		return grant{}, errLost
	}
	ttl := min(w.tokenTTL, time.Until(t.born.Add(w.tokenMax)))
	t.ends = time.Now().Add(ttl)
	return grant{issued: time.Now(), ttl: ttl, nominal: ttl, renewable: true}, nil
}

func (w *world) RenewLease(_ context.Context, _ Secret, id string, _ time.Duration) (grant, error) {
	leave, err := w.enter("renew lease")
	defer leave()
	if err != nil {
		return grant{}, err
	}
	l := w.leases[id]
	if l == nil {
		return grant{}, errors.New("lease not found")
	}
	ttl := min(w.ttl, time.Until(l.born.Add(w.max)))
	l.ends = time.Now().Add(ttl)
	return grant{issued: time.Now(), ttl: ttl, nominal: ttl, renewable: true}, nil
}

func (w *world) Held(_ context.Context, _ Secret, id string) error {
	leave, err := w.enter("held")
	defer leave()
	if err == nil && w.leases[id] == nil {
		err = errLost
	}
	return err
}

func (w *world) Revoke(_ context.Context, token Secret) error {
	leave, err := w.enter("revoke")
	defer leave()
	if err != nil {
		return err
	}
	delete(w.tokens, token)
	for id, l := range w.leases {
		if l.token == token {
			delete(w.leases, id)
			delete(w.users, l.user)
		}
	}
	return nil
}

// revokeAll is somebody else's revocation.
func (w *world) revokeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.users)
	clear(w.leases)
}

func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

func (w *world) count(name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls[name]
}

func (w *world) dial(_ context.Context, user, _ string, _ Secret) (session, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls["dial"]++
	if w.dbDown != nil {
		return nil, w.dbDown
	}
	if !w.users[user] {
		return nil, &mysql.MySQLError{Number: errAccessDenied, Message: "Access denied"}
	}
	return &fakeSession{w: w, user: user}, nil
}

type fakeSession struct {
	w      *world
	user   string
	closed bool
}

// run answers one statement as a server with table-level grants would.
func (f *fakeSession) run(query string) error {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	if !f.w.users[f.user] || f.w.broken || query == "forbidden" {
		return &mysql.MySQLError{Number: errTableAccessDenied, Message: "command denied"}
	}
	f.w.log = append(f.w.log, f.user+": "+query)
	f.w.served++
	return nil
}

func (f *fakeSession) ExecContext(_ context.Context, query string, _ []driver.NamedValue) (driver.Result, error) {
	return driver.RowsAffected(1), f.run(query)
}

func (f *fakeSession) QueryContext(_ context.Context, query string, _ []driver.NamedValue) (driver.Rows, error) {
	if query == "SHOW GRANTS" {
		f.w.mu.Lock()
		defer f.w.mu.Unlock()
		rows := []string{"GRANT USAGE ON *.* TO `x`"}
		if !f.w.broken {
			rows = append(rows, "GRANT SELECT ON `todo`.`todo` TO `x`")
		}
		return &fakeRows{rows: rows}, nil
	}
	return &fakeRows{}, f.run(query)
}

func (f *fakeSession) PrepareContext(context.Context, string) (driver.Stmt, error) {
	return nil, errors.New("not in this world")
}
func (f *fakeSession) Prepare(string) (driver.Stmt, error) {
	return nil, errors.New("not in this world")
}
func (f *fakeSession) Begin() (driver.Tx, error) { return fakeTx{f}, nil }
func (f *fakeSession) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) {
	return fakeTx{f}, nil
}
func (f *fakeSession) Ping(context.Context) error               { return nil }
func (f *fakeSession) CheckNamedValue(*driver.NamedValue) error { return nil }
func (f *fakeSession) ResetSession(context.Context) error       { return nil }
func (f *fakeSession) IsValid() bool                            { return !f.closed }

func (f *fakeSession) Close() error {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	if !f.closed {
		f.closed = true
		f.w.calls["close"]++
	}
	return nil
}

type fakeTx struct{ f *fakeSession }

func (t fakeTx) Commit() error   { return nil }
func (t fakeTx) Rollback() error { return nil }

type fakeRows struct{ rows []string }

func (r *fakeRows) Columns() []string { return []string{"grants"} }
func (r *fakeRows) Close() error      { return nil }
func (r *fakeRows) Next(dest []driver.Value) error {
	if len(r.rows) == 0 {
		return io.EOF
	}
	dest[0], r.rows = []byte(r.rows[0]), r.rows[1:]
	return nil
}

// start runs a source in w until the test (or its bubble) ends.
func start(t *testing.T, w *world, change ...func(*Config)) (*Source, *sql.DB, context.CancelFunc) {
	t.Helper()
	cfg := Config{
		Vault:    func(context.Context) (string, error) { return "http://vault.test", nil },
		RoleID:   "role",
		SecretID: func() (Secret, error) { return "secret", nil },
		Path:     "database/creds/todo",
		MySQL:    mysql.NewConfig(),
		Address:  func(context.Context) (string, error) { return "mysql.test:3306", nil },
	}
	for _, c := range change {
		c(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.vault, s.dialer = w, w.dial
	s.probe = func(context.Context) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.dbDown
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	db := sql.OpenDB(s.Connector())
	stop := sync.OnceFunc(func() {
		_ = db.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return s, db, stop
}

// pass lets the bubble's fake time go by.
func pass(d time.Duration) { <-time.After(d) }
