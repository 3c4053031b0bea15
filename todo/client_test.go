package todo

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// newClient returns a client of a server that serves h.
func newClient(t *testing.T, h http.Handler) *Client {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	c, err := NewClient(server.URL+"/", server.Client())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestClient_SpeaksTheWholeAPI(t *testing.T) {
	ctx := t.Context()
	c := newClient(t, newService(t, newFakeStore()))

	if todos, err := c.List(ctx); err != nil || todos == nil || len(todos) != 0 {
		t.Errorf("list of none: %v, %v", todos, err)
	}
	created, err := c.Create(ctx, Draft{"new", "milk & 日本"})
	if err != nil || created != (Todo{1, "new", "milk & 日本"}) {
		t.Errorf("create: %v, %v", created, err)
	}
	if found, err := c.Get(ctx, 1); err != nil || found != created {
		t.Errorf("get: %v, %v", found, err)
	}
	if saved, err := c.Update(ctx, 1, Draft{"done", "x"}); err != nil || saved != (Todo{1, "done", "x"}) {
		t.Errorf("update: %v, %v", saved, err)
	}
	if todos, err := c.List(ctx); err != nil || !reflect.DeepEqual(todos, []Todo{{1, "done", "x"}}) {
		t.Errorf("list: %v, %v", todos, err)
	}
	if err := c.Delete(ctx, 1); err != nil {
		t.Errorf("delete: %v", err)
	}
	if created, err := c.Create(ctx, Draft{Content: "no status"}); err != nil || created.Status != StatusNew {
		t.Errorf("create without a status: %v, %v", created, err)
	}
	var invalid *InvalidError
	if _, err := c.Update(ctx, 2, Draft{Content: "no status"}); !errors.As(err, &invalid) || invalid.Field != "status" {
		t.Errorf("update without a status: %v", err)
	}
	if h, err := c.Health(ctx); err != nil || h.Status != HealthPassing || h.Instance != "todo0" || !h.Table.OK {
		t.Errorf("health: %v, %v", h, err)
	}
}

func TestClient_TurnsAnswersBackIntoTheErrorsOfTheStore(t *testing.T) {
	ctx := t.Context()
	c := newClient(t, newService(t, newFakeStore("x")))

	_, err := c.Get(ctx, 9)
	if !errors.Is(err, ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	if _, err := c.Update(ctx, 9, Draft{"new", "x"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("update: %v", err)
	}
	if err := c.Delete(ctx, 9); !errors.Is(err, ErrNotFound) {
		t.Errorf("delete: %v", err)
	}
	_, err = c.Create(ctx, Draft{"new", ""})
	var invalid *InvalidError
	if !errors.As(err, &invalid) || *invalid != (InvalidError{"content", "must not be empty"}) {
		t.Errorf("create: %v", err)
	}
	if _, err := c.Get(ctx, -1); !errors.As(err, &invalid) || invalid.Field != "id" {
		t.Errorf("get: %v", err)
	}
	if _, err := c.CreateWithKey(ctx, Draft{"new", "a"}, "k"); err != nil {
		t.Errorf("create with a key: %v", err)
	}
	if _, err := c.CreateWithKey(ctx, Draft{"new", "b"}, "k"); !errors.Is(err, ErrKeyReused) {
		t.Errorf("create with a used key: %v", err)
	}
	if _, err := c.CreateWithKey(ctx, Draft{"new", "b"}, ""); !errors.As(err, &invalid) || invalid.Field != idempotencyKeyHeader {
		t.Errorf("create with an empty key: %v", err)
	}
	if _, err := c.UpdateWithKey(ctx, 1, Draft{"new", "b"}, "k"); !errors.Is(err, ErrKeyReused) {
		t.Errorf("update with a used key: %v", err)
	}
	if err := c.DeleteWithKey(ctx, 1, "k"); !errors.Is(err, ErrKeyReused) {
		t.Errorf("delete with a used key: %v", err)
	}
	if _, err := c.UpdateWithKey(ctx, 1, Draft{"new", "b"}, ""); !errors.As(err, &invalid) || invalid.Field != idempotencyKeyHeader {
		t.Errorf("update with an empty key: %v", err)
	}
	if err := c.DeleteWithKey(ctx, 1, ""); !errors.As(err, &invalid) || invalid.Field != idempotencyKeyHeader {
		t.Errorf("delete with an empty key: %v", err)
	}
	var answer *AnswerError
	if err := c.Delete(ctx, 9); !errors.As(err, &answer) || answer.StatusCode != 404 || answer.RequestID == "" || answer.Retryable ||
		!strings.Contains(err.Error(), answer.RequestID) {
		t.Errorf("delete: %v", err)
	}
}

func TestClient_TellsAnUnknownOutcomeFromNoneAtAll(t *testing.T) {
	const body = `{"error":{"code":"CODE","message":"m","retryable":true,"request_id":"r"}}`
	for _, test := range []struct {
		name     string
		status   int
		body     string
		write    error
		read     error
		retrying bool
	}{
		{"unavailable", 503, strings.Replace(body, "CODE", "unavailable", 1), ErrUnavailable, ErrUnavailable, true},
		{"outcome unknown", 503, strings.Replace(body, "CODE", "outcome_unknown", 1), ErrOutcomeUnknown, ErrOutcomeUnknown, true},
		{"body too slow", 408, strings.Replace(body, "CODE", "body_timeout", 1), ErrUnavailable, ErrUnavailable, true},
		{"defect", 500, strings.Replace(body, "CODE", "internal", 1), ErrOutcomeUnknown, ErrUnavailable, true},
		{"a proxy's 502", 502, "<html>Bad Gateway</html>", ErrOutcomeUnknown, ErrUnavailable, false},
		{"a proxy's 403", 403, "no", nil, nil, false},
		{"an odd success", 202, "", ErrOutcomeUnknown, ErrUnavailable, false},
		{"a long nothing", 503, strings.Repeat("x", 1<<20), ErrOutcomeUnknown, ErrUnavailable, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Retry-After", "3")
				w.WriteHeader(test.status)
				if _, err := io.WriteString(w, test.body); err != nil && len(test.body) < 1<<10 {
					t.Error(err)
				}
			}))
			_, writing := c.Create(t.Context(), Draft{"new", "x"})
			_, reading := c.Get(t.Context(), 1)
			for err, want := range map[error]error{writing: test.write, reading: test.read} {
				var answer *AnswerError
				if !errors.As(err, &answer) || answer.StatusCode != test.status || answer.Retryable != test.retrying || answer.RetryAfter != 3*time.Second {
					t.Fatalf("%v", err)
				}
				for _, sentinel := range []error{ErrUnavailable, ErrOutcomeUnknown, ErrNotFound, ErrKeyReused} {
					if errors.Is(err, sentinel) != (sentinel == want) {
						t.Errorf("%v: is %v: %v", err, sentinel, errors.Is(err, sentinel))
					}
				}
			}
		})
	}
}

func TestClient_KnowsThatARequestWithoutAConnectionWasNotSent(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewClient("http://"+listener.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(t.Context(), Draft{"new", "x"}); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("refused connection: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Delete(gone, 1); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
}

func TestClient_LeavesTheOutcomeOpenWhenAnAnswerIsLost(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"connection lost": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"answer cut": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(http.StatusCreated)
		},
		"answer garbled": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusCreated)
			if _, err := io.WriteString(w, "<html>"); err != nil {
				panic(err)
			}
		},
	} {
		c := newClient(t, h)
		created, err := c.Create(t.Context(), Draft{"new", "x"})
		if !errors.Is(err, ErrOutcomeUnknown) || errors.Is(err, ErrUnavailable) || created != (Todo{}) {
			t.Errorf("%s: %v, %v", name, created, err)
		}
	}
}

func TestClient_LeavesTheOutcomeOpenWhenItsContextEndsTheCall(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	c := newClient(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		cancel()
		<-release
	}))
	defer close(release)
	if err := c.Delete(ctx, 1); !errors.Is(err, ErrOutcomeUnknown) || !errors.Is(err, context.Canceled) {
		t.Errorf("delete: %v", err)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

type notSent struct{ error }

func (notSent) NotSent() bool { return true }

func TestClient_BelievesATransportThatSaysWhetherItSent(t *testing.T) {
	for err, want := range map[error]error{
		errors.New("no instance"):          ErrOutcomeUnknown, // It might have tried one.
		notSent{errors.New("no instance")}: ErrUnavailable,
	} {
		c, newErr := NewClient("http://todo", &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) { return nil, err })})
		if newErr != nil {
			t.Fatal(newErr)
		}
		if got := c.Delete(t.Context(), 1); !errors.Is(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
}

func TestClient_RemembersThatAnEarlierTryWasSent(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	t.Cleanup(server.Close)
	refused := &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	c, err := NewClient(server.URL, &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		if _, err := server.Client().Transport.RoundTrip(r); err == nil {
			t.Error("the first try was answered")
		}
		return nil, refused // By the instance that was tried next.
	})})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context(), 1); !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("delete: %v", err)
	}
}

func TestClient_LetsATransportSendEveryRequestAgain(t *testing.T) {
	store := newFakeStore("x")
	server := httptest.NewServer(newService(t, store))
	t.Cleanup(server.Close)
	// Loses every first answer, and then sends the request again as a balancing transport would.
	var keys []string
	again := roundTrip(func(r *http.Request) (*http.Response, error) {
		keys = append(keys, r.Header.Get(idempotencyKeyHeader))
		lost, err := server.Client().Transport.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		if err := lost.Body.Close(); err != nil {
			return nil, err
		}
		second := r.Clone(r.Context())
		if r.GetBody != nil {
			if second.Body, err = r.GetBody(); err != nil {
				return nil, err
			}
		}
		return server.Client().Transport.RoundTrip(second)
	})
	c, err := NewClient(server.URL, &http.Client{Transport: again})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := c.Create(t.Context(), Draft{"new", "same"}); err != nil {
			t.Errorf("create: %v", err)
		}
	}
	if _, err := c.Update(t.Context(), 1, Draft{"done", "x"}); err != nil {
		t.Errorf("update: %v", err)
	}
	if err := c.Delete(t.Context(), 2); err != nil {
		t.Errorf("delete: %v", err)
	}
	slices.Sort(keys)
	if len(store.todos) != 2 || len(keys) != 4 || keys[0] == "" || len(slices.Compact(keys)) != 4 {
		t.Errorf("todos %v, keys %q", store.todos, keys)
	}
}

func TestClient_ReadsListsPageByPage(t *testing.T) {
	store := newFakeStore()
	for range 2*clientPage + 1 {
		store.add(Draft{"new", "x"})
	}
	requests := 0
	service := newService(t, store)
	c := newClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests++
		service.ServeHTTP(w, r)
	}))
	todos, err := c.List(t.Context())
	if err != nil || len(todos) != 2*clientPage+1 || todos[len(todos)-1].ID != 2*clientPage+1 || requests != 3 {
		t.Errorf("%d todos in %d requests, %v", len(todos), requests, err)
	}
	for range c.All(t.Context()) {
		break
	}
	if requests != 4 {
		t.Errorf("%d requests after a loop that was left", requests-3)
	}
	store.fail = func(context.Context) error { return ErrUnavailable }
	if todos, err := c.List(t.Context()); !errors.Is(err, ErrUnavailable) || todos != nil {
		t.Errorf("list: %v, %v", todos, err)
	}
}

func TestClient_ReturnsTheHealthOfASickInstance(t *testing.T) {
	sick := newClient(t, newService(t, newFakeStore(), func(c *HandlerConfig) {
		c.Health = func(context.Context) Health {
			return Health{Status: HealthCritical, Reason: "no table", Credentials: map[string]any{"state": "expired"}}
		}
	}))
	h, err := sick.Health(t.Context())
	if err != nil || h.Status != HealthCritical || h.Reason != "no table" || h.Credentials.(map[string]any)["state"] != "expired" {
		t.Errorf("%v, %v", h, err)
	}
	other := newClient(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }))
	if h, err := other.Health(t.Context()); !errors.Is(err, ErrUnavailable) || h != (Health{}) {
		t.Errorf("another service: %v, %v", h, err)
	}
}

func TestNewClient_TakesOnlyTheURLOfAnHTTPService(t *testing.T) {
	for url, valid := range map[string]bool{
		"http://todo": true, "https://todo:8443/prefix/": true,
		"": false, "todo:8080": false, "ftp://todo": false, "http://": false, "http://a b": false, "/todo": false,
	} {
		if _, err := NewClient(url, nil); (err == nil) != valid {
			t.Errorf("%q: %v", url, err)
		}
	}
}
