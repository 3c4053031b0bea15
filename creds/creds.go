// Package creds keeps an ordinary *sql.DB working over MySQL credentials that Vault leases.
//
// Application code opens one pool for its whole life and never hears of leases:
//
//	src, err := creds.New(creds.Config{…})
//	go src.Run(ctx)                      // owns every goroutine and every call to Vault
//	db := sql.OpenDB(src.Connector())    // an ordinary pool
//
// # What is guaranteed
//
//   - A statement run outside a transaction never fails because credentials were renewed, rotated or
//     revoked, by us or by anybody else: the server refuses it before it runs, so it is run once more, on a new
//     session with new credentials. That holds for writes too.
//   - A transaction cut off by a revocation fails with an error that matches [ErrRevoked]. Nothing of it was
//     committed and it may be retried whole; [InTx] does.
//   - A user is revoked by us only after its last connection has closed, or at a deadline (Config.DrainTimeout) after which
//     no further statement is sent as that user.
//   - A lease never outlives its token unnoticed: every generation of credentials has a token of its own, and both are
//     renewed, replaced and revoked together.
//   - While Vault is away we go on with what we have, even past the lease's end, because nobody but Vault revokes.
//   - Minting is single-flight and capped: a source whose new credentials do not work asks for others at most three
//     times in five minutes.
//
// What is not promised: a connection lost in mid-statement has an unknown outcome and surfaces as such;
// session state (SET, temporary tables, GET_LOCK) ends with its session, and a pinned [database/sql.Conn] whose session was
// revoked gets [ErrRevoked] rather than a silent new session.
//
// The rules of Vault this leans on: a lease is revoked together with the token that made it
// (https://developer.hashicorp.com/vault/docs/concepts/lease), and revoking a MySQL user by REVOKE and DROP USER makes
// every later statement that needs a table-level grant fail with error 1142 before it runs.
package creds

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/prometheus/client_golang/prometheus"
)

// Defaults of Config.
const (
	DefaultDrainTimeout  = 30 * time.Second
	DefaultRevokeTimeout = 5 * time.Second
	DefaultDialTimeout   = 5 * time.Second
	DefaultMintRefill    = 155 * time.Second
)

var (
	// ErrRevoked says that the session's credentials were revoked under a transaction or a pinned connection. Nothing of the
	// transaction was committed: the whole of it may be retried.
	ErrRevoked = errors.New("credentials of this session were revoked")

	// ErrNoCredentials says that no working credentials could be had before the caller's context ended. Nothing was
	// sent to the database: the operation may be retried.
	ErrNoCredentials = errors.New("no database credentials yet")

	// ErrStopped says that the source's Run has ended. It is final.
	ErrStopped = errors.New("credential source is stopped")
)

// Secret is a string that never prints itself.
type Secret string

const redacted = "[redacted]"

func (Secret) String() string               { return redacted }
func (Secret) GoString() string             { return redacted }
func (Secret) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Config says where credentials come from and where the database is. Fields without a default are required.
type Config struct {
	// Vault gives the address of the active Vault, such as "http://10.0.0.11:8200". It is called before every
	// exchange with Vault, so it should answer from memory, and it may change its answer at any time.
	Vault func(context.Context) (string, error)
	// RoleID and SecretID log in through AppRole at AuthPath. SecretID is called at each login, so that it may be renewed.
	RoleID   string
	SecretID func() (Secret, error)
	AuthPath string // default "approle"
	// Path is read for credentials, for example "database/creds/todo".
	Path string

	// MySQL is the template of every connection; its Net, Addr, User and Passwd are set by this package.
	MySQL *mysql.Config
	// Address gives the database's host:port for one dial.
	Address func(context.Context) (string, error)
	// Keep reports whether a pooled connection to that address may still be used. Nil keeps all. It is called for
	// every statement and must not block.
	Keep func(address string) bool

	// DrainTimeout bounds how long statements may still be sent as a replaced user. Default DefaultDrainTimeout.
	DrainTimeout time.Duration
	// RevokeTimeout bounds the revocations when Run ends. Default DefaultRevokeTimeout.
	RevokeTimeout time.Duration
	// MintRefill is the time in which a source whose credentials do not work earns another attempt, after one free and one
	// at once. Default DefaultMintRefill: at most three attempts in any five minutes.
	MintRefill time.Duration

	HTTPClient *http.Client          // default: a client of its own
	Logger     *slog.Logger          // default: discards
	Metrics    prometheus.Registerer // default: not registered
}

// Source holds leased credentials and hands out connections made with them. It is safe for concurrent use.
type Source struct {
	cfg     Config
	vault   authority
	dialer  func(ctx context.Context, user, addr string, password Secret) (session, error)
	probe   func(context.Context) error // does the database answer?
	metrics *metrics
	random  func() float64

	// current is the generation that new work uses; nil until the first lease.
	current atomic.Pointer[generation]
	running atomic.Bool
	judging chan struct{} // held by whoever asks the server about a denial
	kick    chan struct{} // tells Run that the current generation ended
	rotate  chan chan error

	stopped chan struct{} // closed when Run has ended

	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever current changes
	trouble trouble
}

// trouble is the last thing that went wrong with Vault, for whoever asks why.
type trouble struct {
	err error
	at  time.Time
}

// New validates the configuration. It does no I/O; Run does.
func New(cfg Config) (*Source, error) {
	var errs []error
	require := func(ok bool, what string) {
		if !ok {
			errs = append(errs, fmt.Errorf("creds: Config.%s is required", what))
		}
	}
	require(cfg.Vault != nil, "Vault")
	require(cfg.RoleID != "", "RoleID")
	require(cfg.SecretID != nil, "SecretID")
	require(cfg.Path != "", "Path")
	require(cfg.MySQL != nil, "MySQL")
	require(cfg.Address != nil, "Address")
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	setDefault(&cfg.AuthPath, "approle")
	setDefault(&cfg.DrainTimeout, DefaultDrainTimeout)
	setDefault(&cfg.RevokeTimeout, DefaultRevokeTimeout)
	setDefault(&cfg.MintRefill, DefaultMintRefill)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.HTTPClient == nil {
		cfg.HTTPClient = &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()}
	}
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("register credential metrics: %w", err)
	}
	s := &Source{
		cfg:     cfg,
		vault:   &vaultClient{cfg: cfg},
		metrics: m,
		random:  rand.Float64,
		judging: make(chan struct{}, 1),
		kick:    make(chan struct{}, 1),
		rotate:  make(chan chan error),
		stopped: make(chan struct{}),
		changed: make(chan struct{}),
	}
	s.dialer, s.probe = s.dialMySQL, s.databaseAnswers
	if err := m.watch(s); err != nil {
		return nil, fmt.Errorf("register credential metrics: %w", err)
	}
	return s, nil
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Connector makes connections for [database/sql.OpenDB]. Connections wait for the first credentials until their
// context ends.
func (s *Source) Connector() driver.Connector { return connector{s} }

// Rotate replaces the credentials now, as if their maximum had been reached, and returns when new work uses the new ones.
// If they cannot be had, the old ones stay in use, Run goes on trying, and Rotate returns when ctx ends.
func (s *Source) Rotate(ctx context.Context) error {
	done := make(chan error, 1)
	select {
	case s.rotate <- done:
	case <-s.stopped:
		return ErrStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-done:
		return err
	case <-s.stopped:
		return ErrStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Ready returns nil once there are credentials in use, and otherwise says why there are none.
func (s *Source) Ready() error {
	if g := s.current.Load(); g != nil && !g.ended.Load() {
		return nil
	}
	return s.why()
}

// why explains the lack of credentials, with the last trouble met.
func (s *Source) why() error {
	select {
	case <-s.stopped:
		return ErrStopped
	default:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trouble.err != nil {
		return fmt.Errorf("%w: %w", ErrNoCredentials, s.trouble.err)
	}
	return ErrNoCredentials
}

// usable returns the generation that new work should use; it blocks only while there is none.
func (s *Source) usable(ctx context.Context) (*generation, error) {
	for {
		s.mu.Lock()
		changed := s.changed
		g := s.current.Load()
		s.mu.Unlock()
		if g != nil && !g.ended.Load() {
			return g, nil
		}
		select {
		case <-changed:
		case <-s.stopped:
			return nil, ErrStopped
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", s.why(), ctx.Err())
		}
	}
}

// install makes g the generation that new work uses and returns the one before.
func (s *Source) install(g *generation) *generation {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.current.Swap(g)
	close(s.changed)
	s.changed = make(chan struct{})
	s.trouble = trouble{}
	return old
}

// note records trouble for Status and for callers that wait.
func (s *Source) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble = trouble{err: err, at: time.Now()}
}

// condemn records that g's user no longer works and asks Run for a replacement.
func (s *Source) condemn(g *generation, fate fate) {
	if !g.condemn(fate) {
		return
	}
	s.cfg.Logger.Warn("credentials revoked by somebody else", "generation", g.number, "user", g.user, "finding", fate.String())
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// dialMySQL opens one session as the given user.
func (s *Source) dialMySQL(ctx context.Context, user, addr string, password Secret) (session, error) {
	cfg := s.cfg.MySQL.Clone()
	cfg.User, cfg.Passwd, cfg.Addr = user, string(password), addr
	if cfg.Net == "" {
		cfg.Net = "tcp"
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultDialTimeout
	}
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, err
	}
	dc, err := connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return dc.(session), nil
}

// databaseAnswers reports whether something accepts connections where the database should be. Vault needs the database
// to mint, so asking Vault first would only leave half-made users behind.
func (s *Source) databaseAnswers(ctx context.Context) error {
	addr, err := s.cfg.Address(ctx)
	if err != nil {
		return err
	}
	d := net.Dialer{Timeout: DefaultDialTimeout}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	return c.Close()
}
