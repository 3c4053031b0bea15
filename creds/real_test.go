package creds_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"example.com/todo/creds"

	"example.com/todo/internal/labtest"
)

// These tests are the proof: real Vault, real MySQL, table-level grants, load throughout.

var short = times{lease: 3 * time.Second, leaseMax: time.Hour, token: 10 * time.Second, tokenMax: time.Hour}

func TestReal(t *testing.T) {
	s := newStand(t, 2)
	t.Run("rotations fail no operation", func(t *testing.T) { testRotations(t, s) })
	t.Run("nothing is sent as a user after we revoked it", func(t *testing.T) { testGeneralLog(t, s) })
	t.Run("revocations by others fail no operation", func(t *testing.T) { testForcedRevocations(t, s) })
	t.Run("the token's maximum fails no operation", func(t *testing.T) { testTokenMaximum(t, s) })
	t.Run("a genuine lack of privilege surfaces", func(t *testing.T) { testGenuineDenial(t, s) })
	t.Run("prepared statements survive", func(t *testing.T) { testPrepared(t, s) })
	t.Run("a broken role is not asked again and again", func(t *testing.T) { testBrokenRole(t, s) })
	t.Run("a vault that refuses is not asked again and again", func(t *testing.T) { testVaultRefuses(t, s) })
	t.Run("mysql restarted", func(t *testing.T) { testMySQLRestart(t, s) })
	t.Run("mysql down for ten leases", func(t *testing.T) { testMySQLDown(t, s) })
	t.Run("many sources, one vault", func(t *testing.T) { testManySources(t, s) })
	t.Run("the active vault is killed", func(t *testing.T) { testVaultsKilled(t, s, "active") })
	t.Run("all vaults are killed", func(t *testing.T) { testVaultsKilled(t, s, "all") })
}

func testRotations(t *testing.T, s *stand) {
	a := s.app(t, times{lease: time.Minute, leaseMax: time.Hour, token: time.Hour, tokenMax: time.Hour})
	src, db, _ := a.run(t)
	l := a.work(t, db, 32)
	a.hold(db, l)
	before := footprint()
	rotations := soak(1000, 40)
	for i := range rotations {
		if err := src.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if i == rotations/4 {
			before = footprint() // everything is warm
		}
	}
	after := footprint()
	l.stop(t)
	took := labtest.Eventually(t, 10*time.Second, "only the current user is left", func() bool { return len(a.users(t)) == 1 })
	t.Logf("%v until only the current user was left", took.Round(time.Millisecond))
	t.Logf("%d rotations; goroutines %d → %d, heap %d → %d KiB", rotations, before.goroutines, after.goroutines, before.heap>>10, after.heap>>10)
	if after.goroutines > before.goroutines+40 {
		t.Errorf("goroutines grew from %d to %d", before.goroutines, after.goroutines)
	}
	if after.heap > before.heap*2+(8<<20) {
		t.Errorf("heap grew from %d to %d bytes", before.heap, after.heap)
	}
	if n := a.retries(t); n > 0 {
		t.Errorf("%v statements met a revocation of ours", n)
	}
	if open := db.Stats().OpenConnections; open > 16 {
		t.Errorf("%d connections, want 16 at most", open)
	}
}

type size struct {
	goroutines int
	heap       uint64
}

func footprint() size {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return size{runtime.NumGoroutine(), m.HeapAlloc}
}

// testGeneralLog sets the server's own record of statements against the revocations in it.
func testGeneralLog(t *testing.T, s *stand) {
	a := s.app(t, times{lease: time.Minute, leaseMax: time.Hour, token: time.Hour, tokenMax: time.Hour})
	var dir string
	if err := s.root.QueryRowContext(t.Context(), "SELECT @@datadir").Scan(&dir); err != nil {
		t.Fatal(err)
	}
	s.exec(t, "SET GLOBAL general_log_file = 'general.log'", "SET GLOBAL log_output = 'FILE'", "SET GLOBAL general_log = ON")
	src, db, stop := a.run(t)
	l := a.work(t, db, 32)
	a.hold(db, l)
	for range soak(100, 10) {
		if err := src.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Duration(rand.IntN(100)) * time.Millisecond) // the rotations are to meet the load at any point
	}
	l.stop(t)
	stop()
	labtest.Eventually(t, 10*time.Second, "all users are gone", func() bool { return len(a.users(t)) == 0 })
	s.exec(t, "SET GLOBAL general_log = OFF")
	late, dropped, statements := lateStatements(t, filepath.Join(dir, "general.log"))
	t.Logf("%d statements, %d users dropped, %d statements after their user was dropped", statements, dropped, len(late))
	if dropped == 0 || statements == 0 {
		t.Error("the log shows nothing")
	}
	for _, line := range late {
		t.Error(line)
	}
}

var (
	logLine = regexp.MustCompile(`^\s*(?:\d{6}\s+[\d:]+|\d{4}-\d\d-\d\dT\S+)?\s+(\d+) (Connect|Query|Execute|Prepare|Quit)\s*(.*)$`)
	logUser = regexp.MustCompile(`^(\S+)@`)
	logDrop = regexp.MustCompile(`(?i)DROP USER IF EXISTS '([^']+)'`)
)

// lateStatements reads a general log: which connection is whose, when users were dropped, and what was sent as them later.
func lateStatements(t *testing.T, path string) (late []string, dropped, statements int) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // only read
	owner, gone := map[string]string{}, map[string]bool{}
	scan := bufio.NewScanner(f)
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		m := logLine.FindStringSubmatch(scan.Text())
		if m == nil {
			continue
		}
		id, command, rest := m[1], m[2], m[3]
		switch command {
		case "Connect":
			if u := logUser.FindStringSubmatch(rest); u != nil {
				owner[id] = u[1]
			}
		case "Query", "Execute", "Prepare":
			statements++
			if d := logDrop.FindStringSubmatch(rest); d != nil && command == "Query" {
				gone[d[1]] = true
				dropped++
			}
			if gone[owner[id]] {
				late = append(late, scan.Text())
			}
		}
	}
	if err := scan.Err(); err != nil {
		t.Fatal(err)
	}
	return late, dropped, statements
}

func testForcedRevocations(t *testing.T, s *stand) {
	a := s.app(t, times{lease: time.Minute, leaseMax: time.Hour, token: time.Hour, tokenMax: time.Hour})
	src, db, _ := a.run(t)
	l := a.work(t, db, 32)
	root := s.client(t)
	for event := range soak(50, 8) {
		generation := src.Status().Generation
		<-time.After(time.Duration(rand.IntN(400)) * time.Millisecond) // at a random moment
		if err := root.Sys().RevokeForceWithContext(t.Context(), "database/creds/"+a.role); err != nil {
			t.Fatal(err)
		}
		// A forced revocation drops the lease even where the user could not be dropped; here it can.
		labtest.Eventually(t, 10*time.Second, "a new lease", func() bool {
			st := src.Status()
			return st.Generation > generation && st.State == creds.Current
		})
		if got := src.Status().Generation - generation; got != 1 {
			t.Errorf("event %d: %d new leases, want 1", event, got)
		}
	}
	l.stop(t)
}

func testTokenMaximum(t *testing.T, s *stand) {
	a := s.app(t, times{lease: 3 * time.Second, leaseMax: time.Hour, token: 4 * time.Second, tokenMax: 8 * time.Second})
	src, db, _ := a.run(t)
	l := a.work(t, db, 32)
	want := soak(12, 2)
	labtest.Eventually(t, time.Duration(want+2)*10*time.Second, "the tokens reach their maximum", func() bool { return src.Status().Generation > want })
	l.stop(t)
	if n := a.retries(t); n > 0 {
		t.Errorf("%v statements met the end of a token that we could have foreseen", n)
	}
	labtest.Eventually(t, 10*time.Second, "one lease and one user", func() bool { return a.leases(t) == 1 && len(a.users(t)) == 1 })
}

func testGenuineDenial(t *testing.T, s *stand) {
	a := s.app(t, short)
	src, db, _ := a.run(t)
	began := time.Now()
	for range 20 {
		_, err := db.ExecContext(t.Context(), "SELECT * FROM todo.todo")
		var refused *mysql.MySQLError
		if !errors.As(err, &refused) || refused.Number != 1142 {
			t.Fatalf("got %v, want the server's 1142", err)
		}
	}
	if d := time.Since(began); d > promised(2*time.Second) {
		t.Errorf("20 denials took %v: they should surface at once", d)
	}
	if n := src.Status().Generation; n != 1 {
		t.Errorf("generation %d, want 1: a lack of privilege is no reason for new credentials", n)
	}
}

func testPrepared(t *testing.T, s *stand) {
	a := s.app(t, times{lease: time.Minute, leaseMax: time.Hour, token: time.Hour, tokenMax: time.Hour})
	a.cfg.MySQL.InterpolateParams = false // so that arguments prepare a statement each time
	src, db, _ := a.run(t)
	kept, err := db.PrepareContext(t.Context(), "INSERT INTO "+a.table+" (worker, n) VALUES (?, ?)")
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close() //nolint:errcheck // the test is about its use
	root := s.client(t)
	for i := range 20 {
		if i%2 == 0 {
			if err := src.Rotate(t.Context()); err != nil {
				t.Fatal(err)
			}
		} else if err := root.Sys().RevokeForceWithContext(t.Context(), "database/creds/"+a.role); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			if _, err := kept.ExecContext(t.Context(), 1, i); err != nil {
				t.Fatalf("kept statement: %v", err)
			}
			if _, err := db.ExecContext(t.Context(), "UPDATE "+a.table+" SET n = ? WHERE id = ?", i, 1); err != nil {
				t.Fatalf("statement with arguments: %v", err)
			}
		}
	}
}

func testBrokenRole(t *testing.T, s *stand) {
	a := s.app(t, times{lease: 2 * time.Second, leaseMax: time.Hour, token: time.Hour, tokenMax: time.Hour})
	seen := a.counted()
	_, db, _ := a.run(t)
	a.grant(t, times{lease: 2 * time.Second, leaseMax: time.Hour}) // from now on users are made without any grant
	s.write(t, "sys/leases/revoke-force/database/creds/"+a.role, nil)
	mints := seen.total("/v1/database/creds/" + a.role)
	deadline := time.Now().Add(time.Duration(soak(300, 20)) * time.Second)
	for time.Now().Before(deadline) {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		if _, err := db.ExecContext(ctx, "INSERT INTO "+a.table+" (n) VALUES (1)"); err == nil {
			t.Fatal("a statement succeeded without a grant")
		}
		cancel()
	}
	if n := seen.total("/v1/database/creds/"+a.role) - mints; n < 1 || n > 3 {
		t.Errorf("%d mints, want 1 to 3 in five minutes", n)
	}
	if n := seen.total("/v1/auth/approle/login"); n > 10 {
		t.Errorf("%d logins: a hot loop", n)
	}
}

// testVaultRefuses takes from Vault the right to make users, so that it answers 500, and lets the lease reach its maximum.
func testVaultRefuses(t *testing.T, s *stand) {
	a := s.app(t, times{lease: 2 * time.Second, leaseMax: 4 * time.Second, token: time.Hour, tokenMax: time.Hour})
	seen := a.counted()
	src, db, _ := a.run(t)
	s.exec(t, "REVOKE CREATE USER ON *.* FROM 'vault'@'%'")
	s.disconnect(t, "vault") // a session keeps the global privileges that it began with
	t.Cleanup(func() {
		_, _ = s.root.Exec("GRANT CREATE USER ON *.* TO 'vault'@'%'")
		s.disconnect(t, "vault")
	})
	mints := seen.total("/v1/database/creds/" + a.role)
	deadline := time.Now().Add(time.Duration(soak(300, 20)) * time.Second)
	worked := 0
	for time.Now().Before(deadline) {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		if _, err := db.ExecContext(ctx, "INSERT INTO "+a.table+" (n) VALUES (1)"); err == nil {
			worked++
		}
		cancel()
		<-time.After(20 * time.Millisecond) // one client, not a benchmark
	}
	n := seen.total("/v1/database/creds/"+a.role) - mints
	t.Logf("%d mints, state %s, %d statements worked; calls %v", n, src.Status().State, worked, seen.seen)
	if n < 1 || n > 3 {
		t.Errorf("%d mints, want 1 to 3 in five minutes", n)
	}
	if src.Status().LastError == "" {
		t.Error("the status does not say what is wrong")
	}
}

func testMySQLRestart(t *testing.T, s *stand) {
	a := s.app(t, times{lease: time.Minute, leaseMax: time.Hour, token: time.Hour, tokenMax: time.Hour})
	src, db, _ := a.run(t)
	for round := range soak(10, 2) {
		generation := src.Status().Generation
		if _, err := s.lab.Stop(t.Context(), "mysql"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		if _, err := db.ExecContext(ctx, "INSERT INTO "+a.table+" (n) VALUES (1)"); err == nil {
			t.Fatal("a statement succeeded while MySQL was down")
		}
		cancel()
		started := make(chan error, 1)
		go func() { started <- s.lab.Start(t.Context(), "mysql") }()
		accepting := make(chan time.Time, 1)
		go func() {
			for s.root.PingContext(t.Context()) != nil && t.Context().Err() == nil { // as root, through the socket
			}
			accepting <- time.Now()
		}()
		labtest.Eventually(t, 30*time.Second, "a statement succeeds", func() bool {
			_, err := db.ExecContext(t.Context(), "INSERT INTO "+a.table+" (n) VALUES (1)")
			return err == nil
		})
		late := time.Since(<-accepting)
		if err := <-started; err != nil {
			t.Fatal(err)
		}
		t.Logf("round %d: first success %v after MySQL accepted connections", round, late.Round(time.Millisecond))
		if late > promised(250*time.Millisecond) {
			t.Errorf("first success %v after MySQL accepted connections, want 250 ms at most", late)
		}
		if n := src.Status().Generation; n != generation {
			t.Errorf("generation %d → %d: a restart is no reason for new credentials", generation, n)
		}
	}
}

func testMySQLDown(t *testing.T, s *stand) {
	a := s.app(t, times{lease: 2 * time.Second, leaseMax: time.Hour, token: time.Hour, tokenMax: time.Hour})
	seen := a.counted()
	src, db, _ := a.run(t)
	mints := seen.total("/v1/database/creds/" + a.role)
	if _, err := s.lab.Stop(t.Context(), "mysql"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	labtest.Eventually(t, time.Minute, "ten leases pass", func() bool { return time.Since(began) > 20*time.Second })
	if n := seen.total("/v1/database/creds/"+a.role) - mints; n > 3 {
		t.Errorf("%d mints while MySQL was down, want 3 at most", n)
	}
	t.Logf("state %s; calls %v", src.Status().State, seen.seen)
	if err := s.lab.Start(t.Context(), "mysql"); err != nil {
		t.Fatal(err)
	}
	took := labtest.Eventually(t, 30*time.Second, "a statement succeeds", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := db.ExecContext(ctx, "INSERT INTO "+a.table+" (n) VALUES (1)")
		return err == nil
	})
	t.Logf("working again %v after MySQL was ready", took.Round(time.Millisecond))
}

func testVaultsKilled(t *testing.T, s *stand, which string) {
	a := s.app(t, short)
	src, db, _ := a.run(t)
	l := a.work(t, db, 32)
	active, err := s.active(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var killed []string
	for _, name := range []string{"vault0", "vault1"} {
		if which == "all" || strings.Contains(active, s.lab.Addr(name)) {
			if err := s.lab.Kill(t.Context(), name); err != nil {
				t.Fatal(err)
			}
			killed = append(killed, name)
		}
	}
	began := time.Now()
	labtest.Eventually(t, time.Minute, "the lease ends", func() bool { return src.Status().State == creds.Expired })
	if which == "all" {
		labtest.Eventually(t, time.Minute, "three leases pass", func() bool { return time.Since(began) > 3*short.lease })
		s.restart(t, killed...)
	}
	labtest.Eventually(t, 2*time.Minute, "a vault answers", func() bool { _, err := s.active(t.Context()); return err == nil })
	answered := time.Now()
	took := labtest.Eventually(t, 30*time.Second, "a current lease", func() bool { return src.Status().State == creds.Current })
	t.Logf("vault away for %v; a current lease %v after it answered", answered.Sub(began).Round(time.Millisecond), took.Round(time.Millisecond))
	if took > promised(2*time.Second) {
		t.Errorf("a current lease %v after vault answered, want 2 s at most", took.Round(time.Millisecond))
	}
	l.stop(t)
	if which != "all" {
		s.restart(t, killed...)
	}
}

// restart starts Vaults and unseals them, as an operator does.
func (s *stand) restart(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := s.lab.Start(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if _, err := s.lab.Unseal(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
}

// testManySources holds that a Vault which comes back is not overrun by everybody who waited for it.
func testManySources(t *testing.T, s *stand) {
	a := s.app(t, times{lease: 20 * time.Minute, leaseMax: time.Hour, token: time.Hour, tokenMax: time.Hour})
	s.exec(t, "SET GLOBAL max_connections = 2000")
	n := soak(500, 50)
	sources := make([]*creds.Source, n)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, n)
	root := s.client(t)
	if err := root.Sys().SealWithContext(t.Context()); err != nil { // the active one
		t.Fatal(err)
	}
	s.lab.Kill(t.Context(), "vault1") //nolint:errcheck // whichever is left is sealed below
	s.lab.Kill(t.Context(), "vault0") //nolint:errcheck // as above
	for i := range sources {
		src, err := creds.New(a.cfg)
		if err != nil {
			t.Fatal(err)
		}
		sources[i] = src
		go func() { ended <- src.Run(ctx) }()
	}
	s.restart(t, "vault0", "vault1")
	labtest.Eventually(t, time.Minute, "a vault answers", func() bool { _, err := s.active(t.Context()); return err == nil })
	answered := time.Now()
	spread := make([]int, 31)
	done := make([]bool, n)
	labtest.Eventually(t, promised(30*time.Second), fmt.Sprintf("%d current leases", n), func() bool {
		left := 0
		for i, src := range sources {
			if !done[i] && src.Ready() == nil {
				done[i] = true
				spread[min(int(time.Since(answered).Seconds()), len(spread)-1)]++
			}
			if !done[i] {
				left++
			}
		}
		return left == 0
	})
	t.Logf("%d sources; leases by second after vault answered: %v", n, spread)
	cancel()
	for range n {
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}
