package todo

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestHealth_AnswersInTheWayConsulReadsIt(t *testing.T) {
	for status, code := range map[HealthStatus]int{HealthPassing: 200, HealthWarning: 429, HealthCritical: 503} {
		s := newService(t, newFakeStore(), func(c *HandlerConfig) {
			c.Health = func(context.Context) Health {
				return Health{Status: status, Instance: "todo0", Version: "1.2", Reason: "because",
					Table: TableHealth{OK: true, Milliseconds: 1.3}, Credentials: map[string]any{"state": "current", "generation": 3}}
			}
		})
		w := s.ask(t, "GET", "/health", "")
		want := `{"status":"` + string(status) + `","instance":"todo0","version":"1.2","reason":"because",` +
			`"table":{"ok":true,"error":"","milliseconds":1.3},"credentials":{"generation":3,"state":"current"}}` + "\n"
		if w.Code != code || w.Body.String() != want {
			t.Errorf("%s: %d %s", status, w.Code, w.Body)
		}
	}
	if got := HealthStatus("").httpStatus(); got != http.StatusServiceUnavailable {
		t.Errorf("no status: %d", got)
	}
}

func TestHealth_OfTheProcessAsksNobody(t *testing.T) {
	s := newService(t, newFakeStore(), func(c *HandlerConfig) {
		c.Health = func(context.Context) Health { t.Error("health was asked"); return Health{} }
		c.Ready = func() error { return errors.New("waiting for credentials") }
	})
	if w := s.ask(t, "GET", "/livez", ""); w.Code != http.StatusOK {
		t.Errorf("livez: %d", w.Code)
	}
	detail := wantError(t, s.ask(t, "GET", "/readyz", ""), http.StatusServiceUnavailable, codeNotReady)
	if detail.Message != "waiting for credentials" || !detail.Retryable {
		t.Errorf("readyz: %v", detail)
	}
	if w := newService(t, newFakeStore()).ask(t, "GET", "/readyz", ""); w.Code != http.StatusOK {
		t.Errorf("readyz without Ready: %d", w.Code)
	}
}

func TestTableHealth_HasTheMembersThatTheBoardReads(t *testing.T) {
	text, err := json.Marshal(TableHealth{Error: "gone", Milliseconds: 0.25})
	if err != nil || string(text) != `{"ok":false,"error":"gone","milliseconds":0.25}` {
		t.Errorf("%s, %v", text, err)
	}
}

func newTableCheck(t *testing.T, query func(context.Context) error) *TableCheck {
	t.Helper()
	c, err := NewTableCheck(TableCheckConfig{Query: query})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTableCheck_AsksOnceForAllWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var queries atomic.Int32
		c := newTableCheck(t, func(context.Context) error {
			queries.Add(1)
			time.Sleep(100 * time.Millisecond)
			return nil
		})
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if h := c.Check(t.Context()); !h.OK || h.Milliseconds != 100 {
					t.Errorf("health %v", h)
				}
			})
		}
		all.Wait()
		if n := queries.Load(); n != 1 {
			t.Errorf("%d queries", n)
		}
	})
}

func TestTableCheck_AsksAgainWhenItsResultHasAged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		queries := 0
		broken := errors.New("table is gone")
		c := newTableCheck(t, func(context.Context) error {
			queries++
			if queries == 2 {
				return broken
			}
			return nil
		})
		for _, step := range []struct {
			wait    time.Duration
			queries int
			ok      bool
		}{
			{0, 1, true}, {499 * time.Millisecond, 1, true}, {time.Millisecond, 2, false}, {400 * time.Millisecond, 2, false}, {100 * time.Millisecond, 3, true},
		} {
			time.Sleep(step.wait)
			h := c.Check(t.Context())
			if queries != step.queries || h.OK != step.ok || h.OK != (h.Error == "") {
				t.Errorf("after %v more: %d queries, %v; want %d, ok %v", step.wait, queries, h, step.queries, step.ok)
			}
		}
	})
}

func TestTableCheck_GivesASilentDatabaseTwoSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTableCheck(t, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		began := time.Now()
		h := c.Check(t.Context())
		if h.OK || h.Milliseconds != 2000 || time.Since(began) != 2*time.Second {
			t.Errorf("%v after %v", h, time.Since(began))
		}
	})
}

func TestTableCheck_OutlivesTheCallerThatStartedIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTableCheck(t, func(ctx context.Context) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Second):
				return nil
			}
		})
		first, leave := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() { c.Check(first) })
		synctest.Wait()
		all.Go(func() {
			if h := c.Check(t.Context()); !h.OK {
				t.Errorf("the second caller got %v", h)
			}
		})
		impatient, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer stop()
		all.Go(func() {
			if h := c.Check(impatient); h.OK || !strings.Contains(h.Error, "deadline") || h.Milliseconds != 100 {
				t.Errorf("the impatient caller got %v", h)
			}
		})
		synctest.Wait()
		leave()
		all.Wait()
	})
}

func TestTableCheck_IsNotStuckAfterAPanic(t *testing.T) {
	panics := true
	c := newTableCheck(t, func(context.Context) error {
		if panics {
			panic("once")
		}
		return nil
	})
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		c.Check(t.Context())
	}()
	panics = false
	if h := c.Check(t.Context()); h.OK || h.Error == "" {
		t.Errorf("right after the panic: %v", h)
	}
	c.askedAt = time.Time{}
	if h := c.Check(t.Context()); !h.OK {
		t.Errorf("later: %v", h)
	}
}

func TestNewTableCheck_NeedsAQuery(t *testing.T) {
	if c, err := NewTableCheck(TableCheckConfig{}); err == nil || !reflect.ValueOf(c).IsNil() {
		t.Errorf("%v, %v", c, err)
	}
}
