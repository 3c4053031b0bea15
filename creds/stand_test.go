package creds_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	vault "github.com/hashicorp/vault/api"
	"github.com/prometheus/client_golang/prometheus"

	"example.com/todo/creds"
	"example.com/todo/internal/lab"
	"example.com/todo/internal/labtest"
)

// soak chooses between the full count of a test and the one that `make test` has time for.
func soak(full, short int) int {
	if os.Getenv("SOAK") != "" {
		return full
	}
	return short
}

// promised is a promised time. The soak holds it as it stands; `make test`, which shares its machine with other tests, only
// that nothing is an order of magnitude slower.
func promised(d time.Duration) time.Duration {
	if os.Getenv("SOAK") != "" {
		return d
	}
	return 10 * d
}

// stand is two real Vaults on a real Consul, and a real MySQL.
type stand struct {
	lab  *lab.Lab
	root *sql.DB
}

func newStand(t testing.TB, vaults int) *stand {
	t.Helper()
	l := labtest.Start(t, labtest.Options{Consul: 1, Vault: vaults, MySQL: 1})
	root, err := l.MySQL()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	s := &stand{lab: l, root: root}
	s.exec(t, "CREATE TABLE IF NOT EXISTS todo.todo (id BIGINT AUTO_INCREMENT PRIMARY KEY)")
	// The operator allows its own two roles only; each of our tests has one of its own.
	s.write(t, "database/config/mysql", map[string]any{
		"plugin_name": "mysql-database-plugin", "allowed_roles": "*", "username": "vault",
		"connection_url": "{{username}}:{{password}}@tcp(" + l.Addr("mysql") + ":3306)/",
	})
	return s
}

func (s *stand) exec(t testing.TB, statements ...string) {
	t.Helper()
	for _, q := range statements {
		if _, err := s.root.ExecContext(t.Context(), q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
}

// disconnect ends a user's sessions.
func (s *stand) disconnect(t testing.TB, user string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	rows, err := s.root.QueryContext(ctx, "SELECT id FROM information_schema.processlist WHERE user = ?", user)
	if err != nil {
		t.Fatal(err)
	}
	var ids []int64
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		_, _ = s.root.ExecContext(ctx, fmt.Sprintf("KILL %d", id)) // it may have gone by itself
	}
}

// client asks whichever Vault is active.
func (s *stand) client(t testing.TB) *vault.Client {
	t.Helper()
	c, err := s.lab.VaultClient(context.WithoutCancel(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *stand) write(t testing.TB, path string, data map[string]any) *vault.Secret {
	t.Helper()
	sec, err := s.client(t).Logical().WriteWithContext(context.WithoutCancel(t.Context()), path, data)
	if err != nil {
		t.Fatalf("write %s: %v", path, err)
	}
	return sec
}

// active is the address of the Vault that calls itself active, as creds.Config wants it.
func (s *stand) active(ctx context.Context) (string, error) {
	var why []error
	for _, m := range s.lab.Machines() {
		if m.Role != lab.RoleVault {
			continue
		}
		addr := "http://" + m.Addr + ":8200"
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, addr+"/v1/sys/health", nil)
		if err != nil {
			return "", err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			why = append(why, err)
			continue
		}
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return addr, nil
		}
		why = append(why, fmt.Errorf("%s: %s", addr, resp.Status))
	}
	return "", errors.Join(why...)
}

type times struct{ lease, leaseMax, token, tokenMax time.Duration }

// app is a table, a database role with grants on it alone, and an AppRole.
type app struct {
	stand *stand
	table string
	role  string
	cfg   creds.Config

	metrics *prometheus.Registry // of the last source that was run
}

var apps atomic.Int32

func (s *stand) app(t testing.TB, d times) *app {
	t.Helper()
	name := fmt.Sprintf("app%d", apps.Add(1))
	a := &app{stand: s, table: "todo." + name, role: name}
	s.exec(t, "CREATE TABLE "+a.table+" (id BIGINT AUTO_INCREMENT PRIMARY KEY, worker INT, n INT)")
	a.grant(t, d, "GRANT SELECT, INSERT, UPDATE, DELETE ON "+a.table+" TO '{{name}}'@'%'")
	err := s.client(t).Sys().PutPolicyWithContext(t.Context(), name, fmt.Sprintf(`
path "database/creds/%s"      { capabilities = ["read"] }
path "auth/token/renew-self"  { capabilities = ["update"] }
path "auth/token/revoke-self" { capabilities = ["update"] }
path "sys/leases/lookup"      { capabilities = ["update"] }
path "sys/leases/renew"       { capabilities = ["update"] }`, name))
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, "auth/approle/role/"+name, map[string]any{
		"token_policies": name, "token_no_default_policy": true,
		"token_ttl": seconds(d.token), "token_max_ttl": seconds(d.tokenMax),
	})
	role, err := s.client(t).Logical().ReadWithContext(t.Context(), "auth/approle/role/"+name+"/role-id")
	if err != nil {
		t.Fatal(err)
	}
	secret := s.write(t, "auth/approle/role/"+name+"/secret-id", nil).Data["secret_id"].(string)
	template := mysql.NewConfig()
	template.DBName, template.InterpolateParams = "todo", true
	a.cfg = creds.Config{
		Vault:    s.active,
		RoleID:   role.Data["role_id"].(string),
		SecretID: func() (creds.Secret, error) { return creds.Secret(secret), nil },
		Path:     "database/creds/" + name,
		MySQL:    template,
		Address:  func(context.Context) (string, error) { return s.lab.Addr("mysql") + ":3306", nil },
		HTTPClient: &http.Client{Transport: &http.Transport{
			MaxIdleConnsPerHost: 4, IdleConnTimeout: 10 * time.Second,
		}},
	}
	return a
}

func (a *app) grant(t testing.TB, d times, grants ...string) {
	t.Helper()
	a.stand.write(t, "database/roles/"+a.role, map[string]any{
		"db_name":               "mysql",
		"creation_statements":   append([]string{"CREATE USER '{{name}}'@'%' IDENTIFIED BY '{{password}}'"}, grants...),
		"revocation_statements": []string{"DROP USER IF EXISTS '{{name}}'@'%'"},
		"default_ttl":           seconds(d.lease), "max_ttl": seconds(d.leaseMax),
	})
}

func seconds(d time.Duration) string { return fmt.Sprintf("%ds", int(d.Seconds())) }

// run starts a source and a pool; both end with the test, or when stop is called.
func (a *app) run(t testing.TB) (src *creds.Source, db *sql.DB, stop func()) {
	t.Helper()
	a.metrics = prometheus.NewRegistry()
	a.cfg.Metrics = a.metrics
	src, err := creds.New(a.cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- src.Run(ctx) }()
	db = sql.OpenDB(src.Connector())
	db.SetMaxOpenConns(16)
	db.SetMaxIdleConns(16)
	stop = sync.OnceFunc(func() {
		_ = db.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	var none int
	if err := db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM "+a.table).Scan(&none); err != nil {
		t.Fatalf("first query: %v", err)
	}
	return src, db, stop
}

// load is a number of workers that use one pool until told to stop.
type load struct {
	ok, failed, tx, txFailed atomic.Int64

	mu     sync.Mutex
	errors map[string]int
	ctx    context.Context // of the load as a whole
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// work starts workers: each inserts, reads and updates single statements; every eighth runs transactions instead.
func (a *app) work(t testing.TB, db *sql.DB, workers int) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{errors: map[string]int{}, ctx: ctx, cancel: cancel}
	for w := range workers {
		l.wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				if w%8 == 7 {
					l.count(&l.tx, &l.txFailed, a.transaction(ctx, db, w, n))
				} else {
					l.count(&l.ok, &l.failed, a.operation(ctx, db, w, n))
				}
			}
		})
	}
	t.Cleanup(func() { cancel(); l.wg.Wait() })
	return l
}

// hold adds workers whose transactions outlast a rotation, and that nobody runs again: only the drain is for them.
func (a *app) hold(db *sql.DB, l *load) {
	ctx := l.ctx
	for w := range 2 {
		l.wg.Go(func() {
			for ctx.Err() == nil {
				l.count(&l.tx, &l.txFailed, a.slow(ctx, db, w))
			}
		})
	}
}

func (a *app) slow(ctx context.Context, db *sql.DB, w int) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it has nothing to do
	for range 3 {
		if _, err := tx.ExecContext(ctx, "INSERT INTO "+a.table+" (worker, n) VALUES (?, -1)", w); err != nil {
			return err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return tx.Commit()
}

func (l *load) count(ok, failed *atomic.Int64, err error) {
	switch {
	case err == nil:
		ok.Add(1)
	case l.ctx.Err() != nil: // it was told to stop, and database/sql has many words for that
	default:
		failed.Add(1)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.errors[err.Error()]++
	}
}

// stop ends the load and fails the test if any operation failed.
func (l *load) stop(t testing.TB) {
	t.Helper()
	l.cancel()
	l.wg.Wait()
	t.Logf("%d operations, %d failed; %d transactions, %d failed", l.ok.Load(), l.failed.Load(), l.tx.Load(), l.txFailed.Load())
	if l.ok.Load() == 0 {
		t.Error("nothing was happening: no operation succeeded")
	}
	if l.failed.Load()+l.txFailed.Load() > 0 {
		for e, n := range l.errors {
			t.Errorf("%d times: %s", n, e)
		}
	}
}

func (a *app) operation(ctx context.Context, db *sql.DB, w, n int) error {
	var err error
	switch n % 3 {
	case 0:
		_, err = db.ExecContext(ctx, "INSERT INTO "+a.table+" (worker, n) VALUES (?, ?)", w, n)
	case 1:
		var count int
		err = db.QueryRowContext(ctx, "SELECT COUNT(*) FROM (SELECT id FROM "+a.table+" WHERE id > ? LIMIT 10) x", n).Scan(&count)
	default:
		_, err = db.ExecContext(ctx, "UPDATE "+a.table+" SET n = ? WHERE id = ?", n, 1+rand.IntN(100))
	}
	return err
}

func (a *app) transaction(ctx context.Context, db *sql.DB, w, n int) error {
	return creds.InTx(ctx, db, nil, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "INSERT INTO "+a.table+" (worker, n) VALUES (?, ?)", w, n); err != nil {
			return err
		}
		var count int
		if err := tx.QueryRowContext(ctx, "SELECT COUNT(*) FROM (SELECT id FROM "+a.table+" LIMIT 10) x").Scan(&count); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, "INSERT INTO "+a.table+" (worker, n) VALUES (?, ?)", w, -n)
		return err
	})
}

// users lists the database's users that Vault made for this app.
func (a *app) users(t testing.TB) (users []string) {
	t.Helper()
	rows, err := a.stand.root.QueryContext(context.WithoutCancel(t.Context()), "SELECT user FROM mysql.user WHERE user LIKE ?", "%-"+a.role+"-%")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close() //nolint:errcheck // read to the end below
	for rows.Next() {
		var u string
		if err := rows.Scan(&u); err != nil {
			t.Fatal(err)
		}
		users = append(users, u)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return users
}

// retries counts the statements that met a revocation, and were run again. Nobody's should where we are in charge.
func (a *app) retries(t testing.TB) (n float64) {
	t.Helper()
	families, err := a.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "creds_statement_retries_total" {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatal("no creds_statement_retries_total")
	return 0
}

// leases counts the leases of this app in Vault.
func (a *app) leases(t testing.TB) int {
	t.Helper()
	list, err := a.stand.client(t).Logical().ListWithContext(context.WithoutCancel(t.Context()), "sys/leases/lookup/database/creds/"+a.role)
	if err != nil {
		t.Fatal(err)
	}
	if list == nil {
		return 0
	}
	keys, _ := list.Data["keys"].([]any)
	return len(keys)
}

// calls counts a source's requests to Vault by path.
type calls struct {
	next http.RoundTripper

	mu   sync.Mutex
	seen map[string]int
}

func (c *calls) RoundTrip(r *http.Request) (*http.Response, error) {
	c.mu.Lock()
	c.seen[r.URL.Path]++
	c.mu.Unlock()
	return c.next.RoundTrip(r)
}

func (c *calls) total(paths ...string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p, k := range c.seen {
		for _, want := range paths {
			if p == want {
				n += k
			}
		}
	}
	return n
}

func (a *app) counted() *calls {
	c := &calls{next: a.cfg.HTTPClient.Transport, seen: map[string]int{}}
	a.cfg.HTTPClient = &http.Client{Transport: c}
	return c
}
