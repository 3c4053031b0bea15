package todo

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// fakeStore keeps todos in memory as Store does in MySQL, idempotency keys included. A non-nil fail is asked first.
type fakeStore struct {
	mu    sync.Mutex
	last  int64
	todos map[int64]Todo
	keys  map[string]fakeWrite
	calls int
	fail  func(ctx context.Context) error
}

func newFakeStore(contents ...string) *fakeStore {
	s := &fakeStore{todos: map[int64]Todo{}, keys: map[string]fakeWrite{}}
	for _, content := range contents {
		s.add(Draft{StatusNew, content})
	}
	return s
}

// fakeWrite is a write that was done with a key.
type fakeWrite struct {
	method string
	id     int64
	draft  Draft
	answer Todo
}

// once does a write unless its key says that it is done.
func (s *fakeStore) once(key string, w fakeWrite, do func() (Todo, error)) (Todo, error) {
	if first, used := s.keys[key]; used && key != "" {
		if first.method != w.method || first.id != w.id || first.draft != w.draft {
			return Todo{}, ErrKeyReused
		}
		return first.answer, nil
	}
	var err error
	if w.answer, err = do(); err == nil {
		s.keys[key] = w
	}
	return w.answer, err
}

func (s *fakeStore) add(d Draft) Todo {
	s.last++
	t := Todo{s.last, d.Status, d.Content}
	s.todos[t.ID] = t
	return t
}

// enter counts the call, and fails it where the test wants that.
func (s *fakeStore) enter(ctx context.Context) (leave func(), err error) {
	if s.fail != nil {
		if err := s.fail(ctx); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	s.calls++
	return s.mu.Unlock, nil
}

func (s *fakeStore) Create(ctx context.Context, d Draft, key string) (Todo, error) {
	leave, err := s.enter(ctx)
	if err != nil {
		return Todo{}, err
	}
	defer leave()
	return s.once(key, fakeWrite{method: "POST", draft: d}, func() (Todo, error) { return s.add(d), nil })
}

func (s *fakeStore) List(ctx context.Context, after int64, limit int) ([]Todo, error) {
	leave, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	var page []Todo
	for id := after + 1; id <= s.last && len(page) < limit; id++ {
		if t, there := s.todos[id]; there {
			page = append(page, t)
		}
	}
	return page, nil
}

func (s *fakeStore) Get(ctx context.Context, id int64) (Todo, error) {
	leave, err := s.enter(ctx)
	if err != nil {
		return Todo{}, err
	}
	defer leave()
	t, there := s.todos[id]
	if !there {
		return Todo{}, ErrNotFound
	}
	return t, nil
}

func (s *fakeStore) Update(ctx context.Context, id int64, d Draft, key string) (Todo, error) {
	leave, err := s.enter(ctx)
	if err != nil {
		return Todo{}, err
	}
	defer leave()
	return s.once(key, fakeWrite{method: "PUT", id: id, draft: d}, func() (Todo, error) {
		if _, there := s.todos[id]; !there {
			return Todo{}, ErrNotFound
		}
		s.todos[id] = Todo{id, d.Status, d.Content}
		return s.todos[id], nil
	})
}

func (s *fakeStore) Delete(ctx context.Context, id int64, key string) error {
	leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	_, err = s.once(key, fakeWrite{method: "DELETE", id: id}, func() (Todo, error) {
		if _, there := s.todos[id]; !there {
			return Todo{}, ErrNotFound
		}
		delete(s.todos, id)
		return Todo{}, nil
	})
	return err
}

func passing(context.Context) Health {
	return Health{Status: HealthPassing, Instance: "todo0", Version: "test", Table: TableHealth{OK: true}}
}

// service is a handler under test, and what it can be watched by.
type service struct {
	http.Handler
	log     *bytes.Buffer
	metrics *prometheus.Registry
}

// newService returns the handler on store, every exchange of which is held against openapi.yaml.
func newService(t *testing.T, store Todos, change ...func(*HandlerConfig)) *service {
	t.Helper()
	s := &service{log: &bytes.Buffer{}, metrics: prometheus.NewRegistry()}
	config := HandlerConfig{
		Store:   store,
		Health:  passing,
		Metrics: s.metrics,
		Logger:  slog.New(slog.NewJSONHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&config)
	}
	h, err := NewHandler(config)
	if err != nil {
		t.Fatal(err)
	}
	s.Handler = checkedAgainstOpenAPI(t, h)
	return s
}

// newBareHandler returns the handler on store without the check against openapi.yaml, which reads a body before the handler does.
func newBareHandler(t *testing.T, store Todos) http.Handler {
	t.Helper()
	h, err := NewHandler(HandlerConfig{Store: store, Health: passing, Logger: discard()})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// records returns the log, one map per line.
func (s *service) records(t *testing.T) []map[string]any {
	t.Helper()
	var records []map[string]any
	for line := range strings.Lines(s.log.String()) {
		var record map[string]any
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatalf("log line is not JSON: %v: %s", err, line)
		}
		records = append(records, record)
	}
	return records
}

// ask sends one request; headers alternate names and values.
func (s *service) ask(t *testing.T, method, target, body string, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	return s.send(newRequest(method, target, body, headers...))
}

func (s *service) send(r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

func newRequest(method, target, body string, headers ...string) *http.Request {
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	r := httptest.NewRequest(method, target, reader)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return r
}

// wantError checks that an answer is the JSON error that the contract promises.
func wantError(t *testing.T, w *httptest.ResponseRecorder, status int, code string) errorDetail {
	t.Helper()
	if w.Code != status {
		t.Errorf("status %d, want %d; body %s", w.Code, status, w.Body)
	}
	if got := w.Header().Get("Content-Type"); got != "application/json" {
		t.Errorf("content type %q of an error", got)
	}
	var answer errorAnswer
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		t.Fatalf("error is not JSON: %v: %s", err, w.Body)
	}
	if answer.Error.Code != code {
		t.Errorf("code %q, want %q; body %s", answer.Error.Code, code, w.Body)
	}
	if answer.Error.Message == "" || answer.Error.RequestID != w.Header().Get("X-Request-Id") {
		t.Errorf("error lacks its message or request id: %s", w.Body)
	}
	if strings.Contains(w.Body.String(), "goroutine") {
		t.Errorf("error shows a stack: %s", w.Body)
	}
	return answer.Error
}
