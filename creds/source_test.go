package creds

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bubble runs a story in fake time.
func bubble(t *testing.T, story func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { story(t, newWorld()) })
}

func mustExec(t *testing.T, db *sql.DB) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), "write"); err != nil {
		t.Fatalf("statement failed: %v", err)
	}
}

func TestNew_NamesEverythingThatIsMissing(t *testing.T) {
	_, err := New(Config{})
	for _, field := range []string{"Vault", "RoleID", "SecretID", "Path", "MySQL", "Address"} {
		if !strings.Contains(fmt.Sprint(err), "Config."+field+" ") {
			t.Errorf("New(Config{}) = %v, want it to name %s", err, field)
		}
	}
}

func TestSecret_NeverPrintsItself(t *testing.T) {
	s := Secret("hunter2")
	text, _ := s.MarshalText()
	for _, out := range []string{fmt.Sprint(s), fmt.Sprintf("%v %+v %#v %s %q", s, s, s, s, s), string(text), s.LogValue().String()} {
		if strings.Contains(out, "hunter2") {
			t.Errorf("printed as %q", out)
		}
	}
}

func TestSource_RenewsBeforeTheLeaseEnds(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		s, db, _ := start(t, w)
		for range 100 {
			mustExec(t, db)
			pass(10 * time.Second)
			if st := s.Status(); st.State != Current {
				t.Fatalf("state %s, want current", st.State)
			}
		}
		if n := w.count("lease"); n != 1 {
			t.Errorf("%d leases in 1000 s, want 1", n)
		}
		// One renewal in 30 to 40 s.
		if n := w.count("renew lease"); n < 25 || n > 34 {
			t.Errorf("%d renewals in 1000 s of a lease of 60 s", n)
		}
	})
}

func TestSource_ReplacesCredentialsBeforeTheLeasesMaximum(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.max = 5 * time.Minute
		s, db, _ := start(t, w)
		for range 600 {
			mustExec(t, db)
			pass(time.Second)
			if st := s.Status(); st.State != Current {
				t.Fatalf("state %s, want current", st.State)
			}
		}
		if n := w.count("lease"); n < 3 || n > 4 {
			t.Errorf("%d leases in 10 min with a maximum of 5 min, want 3 or 4", n)
		}
		synctest.Wait()
		if n := len(w.leases); n != 1 {
			t.Errorf("%d leases held, want 1: replaced ones are revoked", n)
		}
	})
}

func TestSource_ReplacesCredentialsBeforeTheTokensMaximum(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.tokenTTL, w.tokenMax = time.Minute, 5*time.Minute
		_, db, _ := start(t, w)
		for range 600 {
			mustExec(t, db)
			pass(time.Second)
			synctest.Wait()
			for id, l := range w.leases {
				if tk := w.tokens[l.token]; tk == nil || tk.ends.Before(time.Now()) {
					t.Fatalf("lease %s hangs on a dead token", id)
				}
			}
		}
		if n := w.count("login"); n < 3 || n > 4 {
			t.Errorf("%d logins in 10 min with a token maximum of 5 min, want 3 or 4", n)
		}
	})
}

func TestSource_GoesOnPastTheLeasesEndWhileVaultIsAway(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		s, db, _ := start(t, w)
		mustExec(t, db)
		w.set(func() { w.down = errUnavailable })
		var seen []State
		for range 300 {
			mustExec(t, db)
			if st := s.Status().State; len(seen) == 0 || seen[len(seen)-1] != st {
				seen = append(seen, st)
			}
			pass(time.Second)
		}
		if want := []State{Current, Overdue, Expired}; fmt.Sprint(seen) != fmt.Sprint(want) {
			t.Errorf("states %v, want %v", seen, want)
		}
		if s.Status().LastError == "" {
			t.Error("status does not say what is wrong")
		}
		// Vault comes back and revokes the expired lease at once.
		w.set(func() { w.down = nil })
		w.revokeAll()
		back := time.Now()
		mustExec(t, db)
		for s.Status().State != Current {
			pass(10 * time.Millisecond)
		}
		if d := time.Since(back); d > 2*time.Second {
			t.Errorf("a current lease %v after Vault answered, want 2 s at most", d)
		}
	})
}

func TestSource_RunsARefusedStatementAgainAndMintsOnce(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		_, db, _ := start(t, w)
		db.SetMaxIdleConns(32)
		for event := range 20 {
			done := make(chan error, 32)
			mustExec(t, db)
			w.revokeAll()
			for range cap(done) {
				go func() {
					_, err := db.ExecContext(t.Context(), "write")
					done <- err
				}()
			}
			for range cap(done) {
				if err := <-done; err != nil {
					t.Fatalf("event %d: %v", event, err)
				}
			}
			if n := w.count("lease"); n != event+2 {
				t.Fatalf("event %d: %d leases, want one more for each revocation", event, n)
			}
		}
	})
}

func TestSource_GenuineLackOfPrivilegeSurfacesAndMintsNothing(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		_, db, _ := start(t, w)
		for range 50 {
			_, err := db.ExecContext(t.Context(), "forbidden")
			if number(err) != errTableAccessDenied {
				t.Fatalf("got %v, want the server's own error", err)
			}
		}
		mustExec(t, db)
		if n := w.count("lease"); n != 1 {
			t.Errorf("%d leases, want 1", n)
		}
	})
}

func TestSource_MintsAreCappedWhileNewCredentialsDoNotWork(t *testing.T) {
	troubles := map[string]func(*world){
		"the role grants nothing":       func(w *world) { w.broken = true },
		"vault refuses":                 func(w *world) { w.leaseErr = errors.New("500: internal error") },
		"vault refuses from one moment": func(w *world) { w.leaseErr = errors.New("500: internal error"); clear(w.users) },
	}
	for name, cause := range troubles {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				_, db, _ := start(t, w)
				mustExec(t, db)
				w.set(func() { w.mints = nil; cause(w) })
				if w.leaseErr != nil {
					w.revokeAll()
				}
				for range 3600 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					if _, err := db.ExecContext(ctx, "write"); err == nil {
						t.Fatal("a statement succeeded")
					}
					cancel()
					pass(time.Second)
				}
				w.mu.Lock()
				defer w.mu.Unlock()
				for i := 3; i < len(w.mints); i++ {
					if d := w.mints[i].Sub(w.mints[i-3]); d < 5*time.Minute {
						t.Fatalf("4 mints within %v", d)
					}
				}
				if len(w.mints) < 10 {
					t.Errorf("%d mints in two hours: it gave up", len(w.mints))
				}
				if n := w.calls["login"] + w.calls["ready"]; n > 7200 {
					t.Errorf("%d calls in two hours: a hot loop", n)
				}
			})
		})
	}
}

func TestSource_AsksVaultForNothingWhileMySQLIsAway(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.dbDown, w.leaseErr = errors.New("connection refused"), errors.New("500: connection refused")
		_, db, _ := start(t, w)
		pass(time.Hour)
		if n := w.count("lease"); n != 1 {
			t.Errorf("%d mints in an hour without MySQL, want 1", n)
		}
		w.set(func() { w.dbDown, w.leaseErr = nil, nil })
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if _, err := db.ExecContext(ctx, "write"); err != nil {
			t.Errorf("2 s after MySQL came back: %v", err)
		}
	})
}

func TestSource_WaitsForVaultAtStart(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.down = fmt.Errorf("%w: sealed", errUnavailable)
		s, db, _ := start(t, w)
		pass(time.Minute)
		if err := s.Ready(); !errors.Is(err, ErrNoCredentials) || !strings.Contains(err.Error(), "sealed") {
			t.Errorf("Ready() = %v, want ErrNoCredentials and the reason", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := db.ExecContext(ctx, "write"); !errors.Is(err, ErrNoCredentials) {
			t.Errorf("statement: %v, want ErrNoCredentials", err)
		}
		if n := w.count("login") + w.count("ready"); n > 130 {
			t.Errorf("%d calls in a minute: a hot loop", n)
		}
		w.set(func() { w.down = nil })
		pass(2 * time.Second)
		if err := s.Ready(); err != nil {
			t.Errorf("2 s after Vault came back: %v", err)
		}
	})
}

func TestSource_KeepsTheOldUserForATransactionInProgress(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		s, db, _ := start(t, w)
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.ExecContext(t.Context(), "first"); err != nil {
			t.Fatal(err)
		}
		if err := s.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		mustExec(t, db)
		pass(DefaultDrainTimeout / 2)
		if _, err := tx.ExecContext(t.Context(), "second"); err != nil {
			t.Fatalf("transaction cut off by a rotation: %v", err)
		}
		pass(sweepEvery / 2) // so that the next sweep is some time away
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // no time passes: the session is closed as it is returned
		if n := len(w.users); n != 1 {
			t.Errorf("%d users after the drain, want 1", n)
		}
	})
}

func TestSource_SendsNothingAsAUserItHasRevoked(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		s, db, _ := start(t, w)
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		pass(DefaultDrainTimeout + time.Second)
		if n := w.count("revoke"); n != 1 {
			t.Fatalf("%d revocations after the drain's deadline, want 1", n)
		}
		w.set(func() { w.users["v-1"] = true }) // so that it would succeed if it were sent
		if _, err := tx.ExecContext(t.Context(), "late"); !errors.Is(err, ErrRevoked) {
			t.Errorf("late statement: %v, want ErrRevoked", err)
		}
		if err := tx.Commit(); !errors.Is(err, ErrRevoked) {
			t.Errorf("late commit: %v, want ErrRevoked", err)
		}
		for _, line := range w.log {
			if strings.Contains(line, "late") {
				t.Errorf("sent after the revocation: %s", line)
			}
		}
	})
}

func TestInTx_RunsARevokedTransactionAgain(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		_, db, _ := start(t, w)
		runs := 0
		err := InTx(t.Context(), db, nil, func(tx *sql.Tx) error {
			runs++
			if _, err := tx.ExecContext(t.Context(), "one"); err != nil {
				return err
			}
			if runs == 1 {
				w.revokeAll()
			}
			_, err := tx.ExecContext(t.Context(), "two")
			return err
		})
		if err != nil || runs != 2 {
			t.Errorf("InTx = %v after %d runs, want nil after 2", err, runs)
		}
	})
}

func TestSource_PinnedConnectionNeverSwitchesSessionUnseen(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		_, db, _ := start(t, w)
		c, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close() //nolint:errcheck // the test is about the statements
		if _, err := c.ExecContext(t.Context(), "SET @x = 1"); err != nil {
			t.Fatal(err)
		}
		w.revokeAll()
		if _, err := c.ExecContext(t.Context(), "SELECT @x"); !errors.Is(err, ErrRevoked) {
			t.Errorf("got %v, want ErrRevoked", err)
		}
	})
}

func TestSource_LeavesNothingBehind(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		s, db, stop := start(t, w)
		mustExec(t, db)
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		_ = tx
		stop()
		if len(w.users)+len(w.tokens)+len(w.leases) != 0 {
			t.Errorf("left: users %v, tokens %v, leases %v", w.users, w.tokens, w.leases)
		}
		if _, err := s.usable(context.Background()); !errors.Is(err, ErrStopped) {
			t.Errorf("after Run: %v, want ErrStopped", err)
		}
	})
}

func TestSource_AHungVaultDoesNotHoldTheExit(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		s, db, stop := start(t, w, func(c *Config) { c.RevokeTimeout = 2 * time.Second })
		mustExec(t, db)
		synctest.Wait()
		s.vault = hung{w}
		began := time.Now()
		stop()
		if d := time.Since(began); d > 2*time.Second {
			t.Errorf("exit took %v", d)
		}
	})
}

// hung is a Vault that answers nothing.
type hung struct{ *world }

func (hung) Revoke(ctx context.Context, _ Secret) error { <-ctx.Done(); return ctx.Err() }

func TestSource_ReplacesAnExpiredLeaseThoughNobodyAsks(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		s, db, _ := start(t, w)
		mustExec(t, db)
		w.set(func() { w.down = errUnavailable })
		pass(5 * time.Minute)
		w.set(func() { w.down = nil })
		pass(2 * time.Second)
		if st := s.Status().State; st != Current {
			t.Errorf("2 s after Vault came back: %s, want current", st)
		}
	})
}

func TestSource_AStandbyWithoutAnActiveIsNoRefusal(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.down = errUnavailable // its health, at first
		s, _, _ := start(t, w)
		w.set(func() { w.loginErr = errors.New("500: local node not active") })
		pass(time.Minute)
		before := w.count("login")
		pass(time.Minute)
		if n := w.count("login") - before; n != 0 {
			t.Errorf("%d logins in a minute at a Vault that is not active", n)
		}
		w.set(func() { w.down, w.loginErr = nil, nil })
		pass(2 * time.Second)
		if err := s.Ready(); err != nil {
			t.Errorf("2 s after there was an active Vault: %v", err)
		}
	})
}

func TestSource_LeavesAnAddressThatIsNotKept(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		addr, dials := "old:3306", map[string]int{}
		s, db, _ := start(t, w, func(c *Config) {
			c.Address = func(context.Context) (string, error) { return addr, nil }
			c.Keep = func(a string) bool { return a == addr }
		})
		s.dialer = func(ctx context.Context, user, addr string, password Secret) (session, error) {
			dials[addr]++
			return w.dial(ctx, user, addr, password)
		}
		db.SetMaxOpenConns(1)
		for range 10 {
			mustExec(t, db)
		}
		addr = "new:3306"
		mustExec(t, db)
		if dials["new:3306"] != 1 {
			t.Error("an idle session was used once more")
		}
		for range 9 {
			mustExec(t, db)
		}
		if dials["old:3306"] != 1 || dials["new:3306"] != 1 {
			t.Errorf("dials %v, want one to each", dials)
		}
		if n := w.count("lease"); n != 1 {
			t.Errorf("%d leases, want 1: a database that moves is no reason for new credentials", n)
		}
	})
}

func TestSource_RotatesAsOftenAsItIsAskedTo(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		s, _, _ := start(t, w)
		began := time.Now()
		for range 100 { // no statement in between proves that the credentials work
			if err := s.Rotate(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("100 rotations took %v", d)
		}
	})
}

func TestSource_ARotationCostsNoRequestADial(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		s, db, _ := start(t, w)
		db.SetMaxIdleConns(4)
		fourAtOnce := func() {
			var held []*sql.Tx
			for range 4 {
				tx, err := db.BeginTx(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				held = append(held, tx)
			}
			for _, tx := range held {
				if err := tx.Commit(); err != nil {
					t.Fatal(err)
				}
			}
		}
		fourAtOnce()
		if err := s.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		pass(time.Second) // the old sessions are closed
		before := w.count("dial")
		fourAtOnce()
		if n := w.count("dial") - before; n != 0 {
			t.Errorf("%d dials after the rotation, want 0", n)
		}
		if err := s.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		pass(2 * warmFor) // nobody takes the sessions dialled ahead
		synctest.Wait()
		if open := w.count("dial") - w.count("close"); open != 0 {
			t.Errorf("%d sessions are open that nobody uses", open)
		}
	})
}
