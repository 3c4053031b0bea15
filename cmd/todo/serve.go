package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"example.com/todo/creds"
	"example.com/todo/discovery"
	"example.com/todo/todo"
)

const (
	// leaveTimeout bounds telling Consul that we go: a failed deregistration does not hold the exit.
	leaveTimeout = 2 * time.Second
	// dbPatience bounds what a statement takes whose caller sets no bound, and a COMMIT, which takes none. Requests give up before.
	dbPatience = 6 * time.Second
	// forgetEvery is how often, on average, an instance looks for idempotency keys to forget.
	forgetEvery = time.Minute
)

// serve runs one instance until ctx ends, and then leaves in this order: out of the catalogue, requests, pool,
// credentials, and last the lookups that all of these use.
func serve(ctx context.Context, cfg config, logger *slog.Logger) error {
	listener, err := listen(ctx, cfg.listen)
	if err != nil {
		return err
	}
	defer listener.Close() //nolint:errcheck // closed before by the server, except when something below fails

	registry := newRegistry()
	cfg.dbPatience = dbPatience
	d, err := openDatabase(cfg, registry, logger)
	if err != nil {
		return err
	}
	store := todo.NewStore(d.pool, d.inTx)
	handler, err := newHandler(cfg, d, store, registry, logger)
	if err != nil {
		return err
	}
	bye := &farewell{next: handler}
	server := todo.NewServer(bye, logger)
	registration, err := newRegistration(cfg, listener.Addr().String(), logger)
	if err != nil {
		return err
	}

	d.begin(ctx)
	http := begin(ctx, "serve http", func(context.Context) error { return server.Serve(listener) })
	catalogue := begin(ctx, "stay registered", registration.Run)
	forgetting := begin(ctx, "forget idempotency keys", func(ctx context.Context) error { return forgetKeys(ctx, store, logger) })
	logger.Info("serving", "address", listener.Addr().String(), "version", version)

	var trouble error
	select {
	case <-ctx.Done():
		logger.Info("leaving", "drain_timeout", cfg.drainTimeout.String())
	case trouble = <-http.failed:
	case trouble = <-catalogue.failed:
	case trouble = <-forgetting.failed:
	case trouble = <-d.failed():
	}
	bye.begun.Store(true)
	leave(ctx, cfg, catalogue, registration, logger)
	drain(ctx, cfg, server, logger)
	http.end()
	forgetting.end()
	d.end(logger)
	logger.Info("left")
	return trouble
}

// farewell sends clients elsewhere once it has begun: each answer ends its connection. Idle connections are left as they are, since a
// request may be on its way on any of them; Server.SetKeepAlivesEnabled would close those at once, and lose the request.
type farewell struct {
	next  http.Handler
	begun atomic.Bool
}

func (f *farewell) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f.begun.Load() {
		w.Header().Set("Connection", "close")
	}
	f.next.ServeHTTP(w, r)
}

// leave takes the instance out of the catalogue and waits until its readers can know.
func leave(ctx context.Context, cfg config, catalogue *task, r *discovery.Registration, logger *slog.Logger) {
	defer catalogue.end()
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	if err := r.Deregister(bounded); err != nil {
		logger.Warn("consul still lists this instance, until its health check fails", "error", err)
	}
	wait := time.NewTimer(cfg.leaveDelay)
	defer wait.Stop()
	<-wait.C
}

// drain lets requests in progress finish, and cuts off those that take too long.
func drain(ctx context.Context, cfg config, server *http.Server, logger *slog.Logger) {
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.drainTimeout)
	defer cancel()
	if err := server.Shutdown(bounded); err != nil {
		logger.Warn("requests cut off", "error", err)
		_ = server.Close()
	}
}

// newHandler puts the service's HTTP interface on the database.
func newHandler(cfg config, d *database, store *todo.Store, registry *registry, logger *slog.Logger) (http.Handler, error) {
	table, err := todo.NewTableCheck(todo.TableCheckConfig{Query: store.Check, Timeout: time.Second})
	if err != nil {
		return nil, err
	}
	return todo.NewHandler(todo.HandlerConfig{
		Store:   store,
		Ready:   d.creds.Ready,
		Metrics: registry,
		Logger:  logger,
		Health: func(ctx context.Context) todo.Health {
			h := todo.Health{Instance: cfg.instance, Version: version, Table: table.Check(ctx)}
			credentials := d.creds.Status() // after the query, which may have found out something
			h.Credentials = credentials
			h.Status, h.Reason = judge(h.Table, credentials)
			return h
		},
	})
}

// judge says how an instance is: the query of the table decides whether it works, the credentials for how long.
func judge(table todo.TableHealth, credentials creds.Status) (todo.HealthStatus, string) {
	switch {
	case !table.OK:
		return todo.HealthCritical, "the table cannot be queried: " + table.Error
	case credentials.State.Level() == creds.Borrowed:
		return todo.HealthWarning, fmt.Sprintf("credentials are %s: %s", credentials.State, credentials.LastError)
	}
	return todo.HealthPassing, ""
}

// forgetKeys deletes idempotency keys that are too old, at times of its own, so that instances started together do not all do it at once.
func forgetKeys(ctx context.Context, store *todo.Store, logger *slog.Logger) error {
	for {
		wait := time.NewTimer(forgetEvery/2 + rand.N(forgetEvery))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return nil
		}
		for more := true; more && ctx.Err() == nil; {
			var err error
			bounded, cancel := context.WithTimeout(ctx, dbPatience)
			more, err = store.Forget(bounded)
			cancel()
			if err != nil && ctx.Err() == nil {
				logger.Warn("old idempotency keys are still there", "error", err)
			}
		}
	}
}

// newRegistration describes this instance to Consul.
func newRegistration(cfg config, listening string, logger *slog.Logger) (*discovery.Registration, error) {
	host, port, err := advertised(cfg, listening)
	if err != nil {
		return nil, err
	}
	return discovery.NewRegistration(discoveryConfig(cfg, logger), discovery.Service{
		Name:     cfg.service,
		ID:       cfg.service + "-" + cfg.instance,
		Address:  host,
		Port:     port,
		Meta:     map[string]string{"version": version, "started": time.Now().UTC().Format(time.RFC3339)},
		Interval: cfg.checkInterval,
	})
}

// advertised is where others reach this instance. A listening address without a host is taken to be on the machine of the
// agent, which is the local one.
func advertised(cfg config, listening string) (host string, port int, err error) {
	at := cmp.Or(cfg.advertise, listening)
	host, p, err := net.SplitHostPort(at)
	if err != nil {
		return "", 0, fmt.Errorf("address to advertise: %w", err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host, _, err = net.SplitHostPort(cfg.consulAddr)
		if err != nil {
			return "", 0, fmt.Errorf("address to advertise: %w", err)
		}
	}
	port, err = strconv.Atoi(p)
	return host, port, err
}

// task is something that runs until it is ended.
type task struct {
	cancel context.CancelFunc
	done   chan struct{}
	failed chan error // gets an error if the task ends before it should
}

// begin runs a task in a goroutine of its own. It outlives ctx: the order of the end is serve's business.
func begin(ctx context.Context, name string, run func(context.Context) error) *task {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	t := &task{cancel: cancel, done: make(chan struct{}), failed: make(chan error, 1)}
	go func() {
		defer close(t.done)
		err := run(ctx)
		if ctx.Err() == nil && !errors.Is(err, http.ErrServerClosed) {
			t.failed <- fmt.Errorf("%s: ended early: %w", name, errors.Join(err, errEnded))
		}
	}()
	return t
}

var errEnded = errors.New("nobody asked it to")

// end stops a task and waits for it.
func (t *task) end() {
	t.cancel()
	<-t.done
}
