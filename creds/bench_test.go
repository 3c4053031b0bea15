package creds_test

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/go-sql-driver/mysql"
)

// The benchmarks compare pools within one run and take turns in short phases, so that the machine's other work weighs on all
// of them alike. Their figures are ratios, medians over the rounds; the benchmark's own time per operation means nothing.

const (
	rotateEvery = 250 * time.Millisecond
	phase       = 200 * time.Millisecond
)

// BenchmarkThroughput sets a pool over leased credentials against the same pool on a fixed user, and a second pool on a fixed
// user against the first: how far that one is from 1 is how far the other may be. It reads by key, because the quickest
// statement shows most of what stands around it.
func BenchmarkThroughput(b *testing.B) {
	s := newStand(b, 1)
	a := s.app(b, times{lease: time.Minute, leaseMax: time.Hour, token: time.Hour, tokenMax: time.Hour})
	_, leased, _ := a.run(b)
	fixed, control := a.fixed(b, "a"), a.fixed(b, "b")
	for _, workers := range []int{1, 8, 32, 128} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			for b.Loop() {
				var ratios, noise []float64
				for round := range 2*soak(50, 15) + 1 {
					// Each goes first, second and third equally often.
					var ok [3]float64
					for i := range ok {
						which := (round + i) % len(ok)
						ok[which] = float64(a.measure(b, []*sql.DB{fixed, leased, control}[which], workers, phase, (*app).read).ok)
					}
					ratios, noise = append(ratios, ok[1]/ok[0]), append(noise, ok[2]/ok[0])
				}
				b.ReportMetric(median(noise), "control/fixed")
				b.ReportMetric(median(ratios), "leased/fixed")
			}
		})
	}
}

// BenchmarkRotationLatency sets the 99th percentile while credentials rotate against the one while they do not. Beside it stand
// the one while somebody else's credentials rotate on the same servers, which is what of it is their work and not the pool's; the one
// while users are made and dropped by hand, without Vault, which is the database's own part; and a second one of calm against the
// first: how far that is from 1 is how far the others may be.
//
// It does so for the quickest statement there is, next to which everything is slow, and for what services do, reads and writes. It
// does so where Vault and Consul compete with the load for the processors, and again where they step aside for it, as if they
// had others; on two cores their work would be most of what is measured.
func BenchmarkRotationLatency(b *testing.B) {
	for _, where := range []string{"shared", "aside"} {
		b.Run("servers="+where, func(b *testing.B) {
			s := newStand(b, 1)
			if where == "aside" && !stepAside(b, s.lab.Dir()) {
				return
			}
			b.Run("load=mixed", func(b *testing.B) { rotationLatency(b, s, (*app).operation) })
			b.Run("load=quickest", func(b *testing.B) { rotationLatency(b, s, (*app).read) })
		})
	}
}

func rotationLatency(b *testing.B, s *stand, operation operation) {
	a := s.app(b, times{lease: time.Minute, leaseMax: time.Hour, token: time.Hour, tokenMax: time.Hour})
	src, db, _ := a.run(b)
	other, _, _ := s.app(b, times{lease: time.Minute, leaseMax: time.Hour, token: time.Hour, tokenMax: time.Hour}).run(b)
	for _, workers := range []int{1, 8, 32, 128} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			for b.Loop() {
				phases := []struct {
					rotate func(context.Context) error
					p99    []float64
				}{{}, {}, {rotate: src.Rotate}, {rotate: other.Rotate}, {rotate: a.makeAndDropUser}}
				calm, again, rotated, others, byHand := &phases[0], &phases[1], &phases[2], &phases[3], &phases[4]
				failed, rotations, rounds := 0, 0, 5*soak(8, 2)
				for round := range rounds {
					for i := range phases { // each goes first, second, … equally often: the table grows
						p := &phases[(round+i)%len(phases)]
						stop := func() int { return 0 }
						if p.rotate != nil {
							stop = rotating(b, p.rotate)
						}
						m := a.measure(b, db, workers, 10*phase, operation)
						if n := stop(); p == rotated {
							rotations += n
						}
						failed += m.failed
						p.p99 = append(p.p99, float64(m.latency.ValueAtQuantile(99)))
					}
				}
				against := func(p []float64) float64 {
					var ratios []float64
					for i := range p {
						ratios = append(ratios, p[i]/calm.p99[i])
					}
					return median(ratios)
				}
				b.ReportMetric(against(rotated.p99), "p99-rotating/calm")
				b.ReportMetric(against(others.p99), "p99-other-rotating/calm")
				b.ReportMetric(against(byHand.p99), "p99-users-only/calm")
				b.ReportMetric(against(again.p99), "p99-calm/calm")
				b.ReportMetric(median(calm.p99), "µs-p99-calm")
				b.ReportMetric(float64(failed), "failed")
				b.ReportMetric(float64(rotations)/(float64(rounds)*(10*phase).Seconds()), "rotations/s")
			}
		})
	}
}

// makeAndDropUser is what a rotation has the database do.
func (a *app) makeAndDropUser(ctx context.Context) error {
	const user = "'bench-by-hand'@'%'"
	for _, statement := range []string{
		"CREATE USER " + user + " IDENTIFIED BY 'by hand'", "GRANT SELECT, INSERT, UPDATE, DELETE ON " + a.table + " TO " + user, "DROP USER " + user,
	} {
		if _, err := a.stand.root.ExecContext(context.WithoutCancel(ctx), statement); err != nil {
			return err
		}
	}
	return nil
}

// stepAside lets Vault and Consul run only when nobody else wants the processor, as if they had another. It needs root and the
// kernel's cpu controller (version 1 or 2), and says so otherwise.
func stepAside(b *testing.B, dir string) bool {
	b.Helper()
	for _, root := range []string{"/sys/fs/cgroup/cpu", "/sys/fs/cgroup"} {
		group := filepath.Join(root, fmt.Sprintf("todo-bench-%d", os.Getpid()))
		if err := os.Mkdir(group, 0o755); err != nil {
			continue
		}
		b.Cleanup(func() {
			pids, _ := os.ReadFile(filepath.Join(group, "cgroup.procs"))
			for pid := range strings.FieldsSeq(string(pids)) {
				_ = os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte(pid), 0) // it may have ended
			}
			if err := os.Remove(group); err != nil {
				b.Error(err)
			}
		})
		if err := os.WriteFile(filepath.Join(group, "cpu.idle"), []byte("1"), 0); err != nil {
			continue
		}
		moved := 0
		environs, _ := filepath.Glob("/proc/[0-9]*/environ")
		for _, path := range environs {
			environ, _ := os.ReadFile(path) // of a process that has ended there is none
			unit := "LAB_UNIT=" + dir + ":"
			if i := bytes.Index(environ, []byte(unit)); i < 0 || bytes.HasPrefix(environ[i+len(unit):], []byte("mysql/mysql\x00")) {
				continue
			}
			pid := filepath.Base(filepath.Dir(path))
			if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(pid), 0); err != nil {
				b.Fatal(err)
			}
			moved++
		}
		b.Logf("%d processes of Consul and Vault have stepped aside", moved)
		return true
	}
	b.Log("the servers cannot step aside: this needs root and a cpu controller with cpu.idle")
	return false
}

// BenchmarkAlternatives runs the same load, with a rotation every 250 ms, over the three ways to rotate.
func BenchmarkAlternatives(b *testing.B) {
	s := newStand(b, 1)
	long := times{lease: time.Minute, leaseMax: time.Hour, token: time.Hour, tokenMax: time.Hour}
	b.Run("generations", func(b *testing.B) {
		a := s.app(b, long)
		src, db, _ := a.run(b)
		a.report(b, src.Rotate, func() *sql.DB { return db })
	})
	b.Run("swap-and-close", func(b *testing.B) {
		a := s.app(b, long)
		u := &usual{app: a}
		var pool atomic.Pointer[sql.DB]
		swap := func(ctx context.Context) error {
			if err := u.lease(ctx); err != nil {
				return err
			}
			if old := pool.Swap(u.open(false)); old != nil {
				_ = old.Close()
			}
			return u.revokeOld(ctx)
		}
		if err := swap(b.Context()); err != nil {
			b.Fatal(err)
		}
		defer func() { _ = pool.Load().Close() }()
		a.report(b, swap, pool.Load)
	})
	b.Run("new-connections-only", func(b *testing.B) {
		a := s.app(b, long)
		u := &usual{app: a}
		change := func(ctx context.Context) error {
			if err := u.lease(ctx); err != nil {
				return err
			}
			return u.revokeOld(ctx)
		}
		if err := change(b.Context()); err != nil {
			b.Fatal(err)
		}
		db := u.open(true)
		defer db.Close() //nolint:errcheck // the benchmark is over
		a.report(b, change, func() *sql.DB { return db })
	})
}

func (a *app) report(b *testing.B, rotate func(context.Context) error, pool func() *sql.DB) {
	b.Helper()
	for b.Loop() {
		stop := rotating(b, rotate)
		m := a.measureOn(b, pool, 32, time.Duration(soak(15, 5))*time.Second, (*app).operation)
		rotations := stop()
		b.ReportMetric(float64(m.ok), "ok")
		b.ReportMetric(float64(m.failed), "failed")
		b.ReportMetric(float64(rotations), "rotations")
	}
}

// rotating rotates every 250 ms until stopped.
func rotating(b *testing.B, rotate func(context.Context) error) (stop func() int) {
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	n := 0
	wg.Go(func() {
		tick := time.NewTicker(rotateEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if err := rotate(ctx); err != nil && ctx.Err() == nil {
				b.Errorf("rotate: %v", err)
			}
			n++
		}
	})
	return func() int { cancel(); wg.Wait(); return n }
}

type measurement struct {
	ok, failed int
	latency    *hdrhistogram.Histogram // µs
}

// operation is one that the nth turn of a worker does.
type operation func(a *app, ctx context.Context, db *sql.DB, worker, n int) error

func (a *app) measure(b *testing.B, db *sql.DB, workers int, d time.Duration, operation operation) measurement {
	return a.measureOn(b, func() *sql.DB { return db }, workers, d, operation)
}

// read is the quickest statement there is.
func (a *app) read(ctx context.Context, db *sql.DB, _, n int) error {
	var id int
	err := db.QueryRowContext(ctx, "SELECT id FROM "+a.table+" WHERE id = ?", n%100).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	return err
}

// measureOn runs operations for a while.
func (a *app) measureOn(b *testing.B, pool func() *sql.DB, workers int, d time.Duration, operation operation) measurement {
	b.Helper()
	const slowest = 60_000_000
	all := measurement{latency: hdrhistogram.New(1, slowest, 3)}
	deadline := time.Now().Add(d)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			m := measurement{latency: hdrhistogram.New(1, slowest, 3)}
			for n := 0; ; n++ {
				began := time.Now()
				if began.After(deadline) {
					break
				}
				if err := operation(a, b.Context(), pool(), w, n); err != nil {
					m.failed++
				} else {
					m.ok++
				}
				_ = m.latency.RecordValue(max(1, time.Since(began).Microseconds()))
			}
			mu.Lock()
			defer mu.Unlock()
			all.ok, all.failed = all.ok+m.ok, all.failed+m.failed
			all.latency.Merge(m.latency)
		})
	}
	wg.Wait()
	return all
}

func median(v []float64) float64 {
	for i := range v { // few values: the plainest sort
		for j := i; j > 0 && v[j] < v[j-1]; j-- {
			v[j], v[j-1] = v[j-1], v[j]
		}
	}
	return v[len(v)/2]
}

// fixed is a pool on a user of its own that nobody revokes.
func (a *app) fixed(b *testing.B, name string) *sql.DB {
	b.Helper()
	user := "fixed-" + a.role + "-" + name
	a.stand.exec(b, "CREATE USER '"+user+"'@'%' IDENTIFIED BY 'fixed'",
		"GRANT SELECT, INSERT, UPDATE, DELETE ON "+a.table+" TO '"+user+"'@'%'")
	cfg := a.cfg.MySQL.Clone()
	cfg.Net, cfg.Addr, cfg.User, cfg.Passwd = "tcp", a.stand.lab.Addr("mysql")+":3306", user, "fixed"
	c, err := mysql.NewConnector(cfg)
	if err != nil {
		b.Fatal(err)
	}
	return sized(b, sql.OpenDB(c))
}

func sized(b *testing.B, db *sql.DB) *sql.DB {
	db.SetMaxOpenConns(16)
	db.SetMaxIdleConns(16)
	if b != nil {
		b.Cleanup(func() { _ = db.Close() })
	}
	return db
}

// usual is what services do without this package: read a user from Vault, use it, revoke the one before.
type usual struct {
	app *app

	mu             sync.Mutex
	user, password string
	now, old       string // lease ids
}

func (u *usual) lease(ctx context.Context) error {
	c, err := u.app.stand.lab.VaultClient(ctx)
	if err != nil {
		return err
	}
	sec, err := c.Logical().ReadWithContext(ctx, "database/creds/"+u.app.role)
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.user, u.password = sec.Data["username"].(string), sec.Data["password"].(string)
	u.old, u.now = u.now, sec.LeaseID
	return nil
}

func (u *usual) revokeOld(ctx context.Context) error {
	if u.old == "" {
		return nil
	}
	c, err := u.app.stand.lab.VaultClient(ctx)
	if err != nil {
		return err
	}
	return c.Sys().RevokeWithContext(ctx, u.old)
}

func (u *usual) login(cfg *mysql.Config) {
	u.mu.Lock()
	defer u.mu.Unlock()
	cfg.User, cfg.Passwd = u.user, u.password
}

// open makes a pool on the present user or, if late, on whoever is the user when a connection is made.
func (u *usual) open(late bool) *sql.DB {
	cfg := u.app.cfg.MySQL.Clone()
	cfg.Net, cfg.Addr = "tcp", u.app.stand.lab.Addr("mysql")+":3306"
	u.login(cfg)
	if late {
		_ = cfg.Apply(mysql.BeforeConnect(func(_ context.Context, cfg *mysql.Config) error {
			u.login(cfg)
			return nil
		}))
	}
	c, err := mysql.NewConnector(cfg)
	if err != nil {
		return sql.OpenDB(broken{err})
	}
	return sized(nil, sql.OpenDB(c))
}

type broken struct{ err error }

func (b broken) Connect(context.Context) (driver.Conn, error) { return nil, b.err }
func (b broken) Driver() driver.Driver                        { return nil }
