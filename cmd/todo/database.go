package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"example.com/todo/creds"
	"example.com/todo/discovery"
	"example.com/todo/todo"
)

// idleTime is how long a connection may wait in the pool. It is what lets a database that has moved see its old sessions go.
const idleTime = 30 * time.Second

type registry = prometheus.Registry

func newRegistry() *registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// database is the pool with everything behind it: credentials from Vault, addresses from Consul.
type database struct {
	pool  *sql.DB
	creds *creds.Source

	watches []*discovery.Watch
	tasks   []*task
	keeper  *task
}

// openDatabase puts it together and does no I/O.
func openDatabase(cfg config, registry *registry, logger *slog.Logger) (*database, error) {
	d := &database{}
	found := discoveryConfig(cfg, logger)
	mysqlAddr, keep, err := d.findMySQL(cfg, found)
	if err != nil {
		return nil, err
	}
	vaultAddr, err := d.findVault(cfg, found)
	if err != nil {
		return nil, err
	}
	template := mysql.NewConfig()
	template.DBName = cfg.dbName
	template.ParseTime = true
	template.ClientFoundRows = true   // an UPDATE that changes nothing has still found its row
	template.InterpolateParams = true // one round trip for a statement, not three
	template.ReadTimeout = cfg.dbPatience
	template.Logger = driverLog{logger}
	d.creds, err = creds.New(creds.Config{
		Vault:         vaultAddr,
		RoleID:        cfg.roleID,
		SecretID:      cfg.readSecretID,
		AuthPath:      cfg.vaultAuth,
		Path:          cfg.vaultPath,
		MySQL:         template,
		Address:       mysqlAddr,
		Keep:          keep,
		RevokeTimeout: cfg.revokeTimeout,
		Logger:        logger,
		Metrics:       registry,
	})
	if err != nil {
		return nil, err
	}
	d.pool = sql.OpenDB(d.creds.Connector())
	d.pool.SetMaxOpenConns(cfg.dbConns)
	d.pool.SetMaxIdleConns(cfg.dbConns)
	d.pool.SetConnMaxIdleTime(idleTime)
	registry.MustRegister(collectors.NewDBStatsCollector(d.pool, cfg.dbName))
	return d, nil
}

// driverLog keeps what the driver has to say in the one log; by itself it would write to stderr.
type driverLog struct{ *slog.Logger }

func (l driverLog) Print(v ...any) { l.Debug("mysql driver", "says", fmt.Sprint(v...)) }

// findMySQL gives the address for one dial, and says whether an older address is still good.
func (d *database) findMySQL(cfg config, found discovery.Config) (func(context.Context) (string, error), func(string) bool, error) {
	if cfg.dbAddr != "" {
		return fixed(cfg.dbAddr), nil, nil
	}
	w, err := discovery.NewWatch(found, cfg.dbService)
	if err != nil {
		return nil, nil, err
	}
	d.watches = append(d.watches, w)
	return func(ctx context.Context) (string, error) {
		if _, err := w.Instances(ctx); err != nil { // waits for the first answer only
			return "", err
		}
		in, err := w.Pick()
		return in.Addr, err
	}, w.Keep, nil
}

// findVault gives the URL of the active Vault.
func (d *database) findVault(cfg config, found discovery.Config) (func(context.Context) (string, error), error) {
	if cfg.vaultAddr != "" {
		return fixed(cfg.vaultAddr), nil
	}
	w, err := discovery.NewWatch(found, cfg.vaultService)
	if err != nil {
		return nil, err
	}
	d.watches = append(d.watches, w)
	finder, err := discovery.NewVaultFinder(w, discovery.VaultConfig{Logger: found.Logger})
	if err != nil {
		return nil, err
	}
	return finder.Addr, nil
}

func fixed(addr string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return addr, nil }
}

// begin starts what works behind the pool.
func (d *database) begin(ctx context.Context) {
	for _, w := range d.watches {
		d.tasks = append(d.tasks, begin(ctx, "watch "+w.Service(), w.Run))
	}
	d.keeper = begin(ctx, "keep credentials", d.creds.Run)
}

// inTx runs a transaction again that met the end of its credentials.
func (d *database) inTx(ctx context.Context, opts *sql.TxOptions, fn func(*sql.Tx) error) error {
	return creds.InTx(ctx, d.pool, opts, fn)
}

// failed gets an error if the credentials' keeper ends before it should; a watch only ends when told to.
func (d *database) failed() <-chan error { return d.keeper.failed }

// end closes the pool, gives the credentials back, and only then stops looking for Vault.
func (d *database) end(logger *slog.Logger) {
	if err := d.pool.Close(); err != nil {
		logger.Warn("pool closed with an error", "error", err)
	}
	d.keeper.end()
	for _, t := range d.tasks {
		t.end()
	}
}

// readSecretID gives the second half of the identity; a file is read at each login, so that it may be replaced.
func (c config) readSecretID() (creds.Secret, error) {
	if c.secretIDFile == "" {
		return c.secretID, nil
	}
	b, err := os.ReadFile(c.secretIDFile)
	if err != nil {
		return "", err
	}
	id := strings.TrimSpace(string(b))
	if id == "" {
		return "", fmt.Errorf("%s is empty", c.secretIDFile)
	}
	return creds.Secret(id), nil
}

func discoveryConfig(cfg config, logger *slog.Logger) discovery.Config {
	return discovery.Config{
		Agent:  cfg.consulAddr,
		DNS:    cfg.consulDNS,
		Mode:   discovery.Mode(cfg.discovery),
		Token:  func() string { return string(cfg.consulToken) },
		Logger: logger,
	}
}

// migrate brings the schema up to date, waiting for Vault and MySQL as long as ctx allows.
func migrate(ctx context.Context, cfg config, logger *slog.Logger) error {
	d, err := openDatabase(cfg, newRegistry(), logger)
	if err != nil {
		return err
	}
	d.begin(ctx)
	defer d.end(logger)
	err = todo.Migrate(ctx, d.pool, logger)
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("migrate: %w", err)
	}
	return err
}
