package todo

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestObserver_LogsEveryRequestOnceWithItsID(t *testing.T) {
	s := newService(t, newFakeStore("x"))
	s.ask(t, "GET", "/todo/1?token=secret", "", "X-Request-Id", "abc-1:2.3_4")
	s.ask(t, "POST", "/nowhere", "{}")
	s.ask(t, "PATCH", "/todo/1", "{}")
	s.ask(t, "GET", "/health", "")
	records := s.records(t)
	if len(records) != 4 {
		t.Fatalf("%d records", len(records))
	}
	for i, want := range []map[string]any{
		{"level": "INFO", "msg": "request", "method": "GET", "path": "/todo/1", "route": "/todo/{id}", "status": 200.0, "bytes": 38.0, "request_id": "abc-1:2.3_4"},
		{"level": "INFO", "method": "POST", "path": "/nowhere", "route": "none", "status": 404.0},
		{"level": "INFO", "method": "PATCH", "path": "/todo/1", "route": "/todo/{id}", "status": 405.0},
		{"level": "DEBUG", "method": "GET", "route": "/health", "status": 200.0},
	} {
		for key, value := range want {
			if records[i][key] != value {
				t.Errorf("record %d: %s is %v, want %v", i, key, records[i][key], value)
			}
		}
		if records[i]["request_id"] == "" || records[i]["milliseconds"] == nil {
			t.Errorf("record %d: %v", i, records[i])
		}
	}
	if strings.Contains(s.log.String(), "secret") {
		t.Error("the query is in the log")
	}
}

func TestObserver_TakesARequestIDOnlyIfItIsSane(t *testing.T) {
	s := newService(t, newFakeStore())
	for id, taken := range map[string]bool{
		"a": true, strings.Repeat("x", 128): true, "3f2b-11": true,
		"": false, strings.Repeat("x", 129): false, "a b": false, "a\"b": false, "é": false, "a\nlevel=ERROR": false, "<b>": false,
	} {
		got := s.ask(t, "GET", "/livez", "", "X-Request-Id", id).Header().Get("X-Request-Id")
		if (got == id) != taken || got == "" {
			t.Errorf("X-Request-Id %q: answered with %q", id, got)
		}
	}
}

func TestObserver_GivesTheStoreTheRequestID(t *testing.T) {
	store := newFakeStore("x")
	var seen string
	store.fail = func(ctx context.Context) error { seen = RequestID(ctx); return nil }
	newService(t, store).ask(t, "GET", "/todo/1", "", "X-Request-Id", "abc")
	if seen != "abc" {
		t.Errorf("request id %q", seen)
	}
	if got := RequestID(context.Background()); got != "" {
		t.Errorf("request id %q outside of a request", got)
	}
}

func TestObserver_AnswersAPanicWithoutItsStackAndLogsIt(t *testing.T) {
	store := newFakeStore()
	store.fail = func(context.Context) error { panic("kaboom") }
	s := newService(t, store)
	w := s.ask(t, "GET", "/todo", "")
	wantError(t, w, http.StatusInternalServerError, codeInternal)
	if strings.Contains(w.Body.String(), "kaboom") {
		t.Errorf("the panic is shown: %s", w.Body)
	}
	record := s.records(t)[0]
	stack, _ := record["stack"].(string)
	if record["error"] != "panic: kaboom" || !strings.Contains(stack, "observe_test.go") || record["level"] != "ERROR" {
		t.Errorf("record %v", record)
	}
}

func TestObserver_BreaksTheConnectionAfterAPanicInMidAnswer(t *testing.T) {
	registered, err := newMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	o := &observer{metrics: registered, logger: discard(), next: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusOK)
		panic("too late for a 500")
	})}
	defer func() {
		if cause := recover(); cause != http.ErrAbortHandler {
			t.Errorf("panic %v, want http.ErrAbortHandler", cause)
		}
	}()
	o.ServeHTTP(httptest.NewRecorder(), newRequest("GET", "/", ""))
}

func TestObserver_MetricsHaveBoundedLabels(t *testing.T) {
	s := newService(t, newFakeStore("x"))
	for _, target := range []string{"/todo/1", "/todo/2", "/todo/x", "/a", "/b", "/todo/1/c"} {
		s.ask(t, "GET", target, "")
	}
	for _, method := range []string{"BREW", "WHEN", "PATCH"} {
		s.ask(t, method, "/todo/1", "")
		s.ask(t, method, "/elsewhere", "")
	}
	// {id} with 200, 404, 400, none with 404; {id} and none with two kinds of method each.
	if n := testutil.CollectAndCount(s.metrics, "todo_http_request_duration_seconds"); n != 4+4 {
		t.Errorf("%d series", n)
	}
	w := s.ask(t, "GET", "/metrics", "")
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `todo_http_request_duration_seconds_count{code="405",method="other",route="/todo/{id}"} 2`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if !strings.Contains(w.Body.String(), "todo_http_requests_in_flight 1") {
		t.Error("the request for the metrics is not in flight")
	}
}

func TestObserver_DoesNotBlameTheServiceForAClientThatLeft(t *testing.T) {
	store := newFakeStore()
	ctx, leave := context.WithCancel(t.Context())
	store.fail = func(context.Context) error { leave(); return errors.Join(ErrUnavailable, context.Canceled) }
	s := newService(t, store)
	s.send(newRequest("GET", "/todo", "").WithContext(ctx))
	if record := s.records(t)[0]; record["status"] != 499.0 || record["level"] != "INFO" {
		t.Errorf("record %v", record)
	}
}

func TestNewHandler_RefusesARegistryThatHasItsMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	config := HandlerConfig{Store: newFakeStore(), Health: passing, Logger: discard(), Metrics: registry}
	if _, err := NewHandler(config); err != nil {
		t.Fatal(err)
	}
	if _, err := NewHandler(config); err == nil {
		t.Error("registered twice")
	}
}
