package todo

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

//go:embed openapi.yaml
var openAPI []byte

const (
	idempotencyKeyHeader = "Idempotency-Key"
	requestIDHeader      = "X-Request-Id"
)

// Todos is what the handler needs of a store, with the errors that *Store documents.
type Todos interface {
	Create(ctx context.Context, draft Draft, idempotencyKey string) (Todo, error)
	List(ctx context.Context, after int64, limit int) ([]Todo, error)
	Get(ctx context.Context, id int64) (Todo, error)
	Update(ctx context.Context, id int64, draft Draft, idempotencyKey string) (Todo, error)
	Delete(ctx context.Context, id int64, idempotencyKey string) error
}

var _ Todos = (*Store)(nil)

// HandlerConfig configures NewHandler.
type HandlerConfig struct {
	// Store keeps the todos. Required.
	Store Todos
	// Health says how the instance is. It is asked on every GET /health, so it should cost little; see TableCheck. Required.
	Health func(ctx context.Context) Health
	// Ready returns nil while the instance wants requests, and otherwise an error that is shown to the client. Nil: always ready.
	Ready func() error
	// Metrics takes the handler's metrics, and GET /metrics shows all of it. Nil: a registry of its own.
	Metrics *prometheus.Registry
	// Logger gets one record per request: at level Debug for those of machines that come every second, Error for a status of
	// 500 and above, otherwise Info. Required.
	Logger *slog.Logger
	// StoreTimeout bounds what one request may wait for the store; a list, each of its pages. Default 5 s. NewServer's write
	// timeout leaves room for 20 s.
	StoreTimeout time.Duration
	// MaxBodyBytes bounds a request's body. Default 1 MiB.
	MaxBodyBytes int64
}

type api struct {
	config HandlerConfig
	router *mux.Router
}

// handler answers a request or returns an error before it has written anything.
type handler func(w http.ResponseWriter, r *http.Request) error

type route struct {
	methods []string
	path    string
	handle  handler
}

// NewHandler returns the service's HTTP interface as openapi.yaml describes it. A path with a slash at its end is the path
// without it. The error names what is missing in config, or a metric that Metrics has already.
func NewHandler(config HandlerConfig) (http.Handler, error) {
	switch {
	case config.Store == nil:
		return nil, errors.New("todo handler: Store is required")
	case config.Health == nil:
		return nil, errors.New("todo handler: Health is required")
	case config.Logger == nil:
		return nil, errors.New("todo handler: Logger is required")
	}
	if config.Ready == nil {
		config.Ready = func() error { return nil }
	}
	if config.Metrics == nil {
		config.Metrics = prometheus.NewRegistry()
	}
	if config.StoreTimeout <= 0 {
		config.StoreTimeout = 5 * time.Second
	}
	if config.MaxBodyBytes <= 0 {
		config.MaxBodyBytes = 1 << 20
	}
	measured, err := newMetrics(config.Metrics)
	if err != nil {
		return nil, fmt.Errorf("todo handler: register metrics: %w", err)
	}
	a := &api{config: config}
	a.route()
	return &observer{next: withoutTrailingSlash(a.router), metrics: measured, logger: config.Logger}, nil
}

// route builds the router from the table of everything there is. Paths are taken as they are: the router's own cleaning would
// answer /todo//1 with a redirect, which turns a POST into a GET.
func (a *api) route() {
	read := []string{http.MethodGet, http.MethodHead}
	routes := []route{
		{[]string{http.MethodPost}, "/todo", a.create},
		{read, "/todo", a.list},
		{read, "/todo/{id}", a.get},
		{[]string{http.MethodPut}, "/todo/{id}", a.update},
		{[]string{http.MethodDelete}, "/todo/{id}", a.delete},
		{read, "/health", a.health},
		{read, "/livez", a.live},
		{read, "/readyz", a.ready},
		{read, "/metrics", serve(promhttp.HandlerFor(a.config.Metrics, promhttp.HandlerOpts{}))},
		{read, "/openapi.yaml", a.description},
	}
	a.router = mux.NewRouter().SkipClean(true)
	for _, route := range routes {
		a.router.Handle(route.path, a.answer(route.path, route.handle)).Methods(route.methods...)
	}
	a.router.NotFoundHandler = a.answer(noRoute, a.noSuchPath)
	a.router.MethodNotAllowedHandler = a.answer(noRoute, a.wrongMethod)
}

// answer makes a handler of the kind that net/http knows, and is the one place where an error becomes a response.
func (a *api) answer(path string, handle handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := exchangeOf(r.Context())
		x.route = path
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if err := handle(w, r); err != nil {
			x.err = err
			writeError(w, r, err)
		}
	})
}

func serve(h http.Handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		h.ServeHTTP(w, r)
		return nil
	}
}

// deadline is when the store must have answered. It begins after the body has been read, which has a timeout of its own.
func (a *api) deadline(r *http.Request) (context.Context, context.CancelFunc) {
	return context.WithTimeout(r.Context(), a.config.StoreTimeout)
}

func (a *api) create(w http.ResponseWriter, r *http.Request) error {
	key, err := idempotencyKey(r.Header)
	if err != nil {
		return err
	}
	body, err := a.readBody(w, r)
	if err != nil {
		return err
	}
	draft, err := decodeNew(body)
	if err != nil {
		return err
	}
	ctx, cancel := a.deadline(r)
	defer cancel()
	created, err := a.config.Store.Create(ctx, draft, key)
	if err != nil {
		return err
	}
	w.Header().Set("Location", "todo/"+strconv.FormatInt(created.ID, 10))
	writeJSON(w, http.StatusCreated, created)
	return nil
}

func (a *api) get(w http.ResponseWriter, r *http.Request) error {
	id, err := ParseID(mux.Vars(r)["id"])
	if err != nil {
		return err
	}
	ctx, cancel := a.deadline(r)
	defer cancel()
	found, err := a.config.Store.Get(ctx, id)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, found)
	return nil
}

func (a *api) update(w http.ResponseWriter, r *http.Request) error {
	id, err := ParseID(mux.Vars(r)["id"])
	if err != nil {
		return err
	}
	key, err := idempotencyKey(r.Header)
	if err != nil {
		return err
	}
	body, err := a.readBody(w, r)
	if err != nil {
		return err
	}
	draft, err := decodeReplacement(body)
	if err != nil {
		return err
	}
	ctx, cancel := a.deadline(r)
	defer cancel()
	saved, err := a.config.Store.Update(ctx, id, draft, key)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, saved)
	return nil
}

func (a *api) delete(w http.ResponseWriter, r *http.Request) error {
	id, err := ParseID(mux.Vars(r)["id"])
	if err != nil {
		return err
	}
	key, err := idempotencyKey(r.Header)
	if err != nil {
		return err
	}
	ctx, cancel := a.deadline(r)
	defer cancel()
	if err := a.config.Store.Delete(ctx, id, key); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// idempotencyKey returns the request's key, empty if it has none.
func idempotencyKey(header http.Header) (string, error) {
	keys := header.Values(idempotencyKeyHeader)
	switch len(keys) {
	case 0:
		return "", nil
	case 1:
		return keys[0], ValidateKey(keys[0])
	}
	return "", &InvalidError{idempotencyKeyHeader, "must be given only once"}
}

// description serves the machine-readable contract.
func (a *api) description(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "application/yaml")
	w.Header().Set("Content-Length", strconv.Itoa(len(openAPI)))
	_, exchangeOfWriter(w).err = w.Write(openAPI)
	return nil
}

func (a *api) noSuchPath(http.ResponseWriter, *http.Request) error {
	return &requestError{
		status:  http.StatusNotFound,
		code:    codeNoSuchPath,
		message: "there is nothing at this path; GET /openapi.yaml describes what there is",
	}
}

func (a *api) wrongMethod(w http.ResponseWriter, r *http.Request) error {
	allowed := a.allowed(r)
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	return &requestError{
		status:  http.StatusMethodNotAllowed,
		code:    codeMethodNotAllowed,
		message: "this path answers only to " + strings.Join(allowed, ", "),
	}
}

// allowed asks the router itself which methods the path has, so that no second table can disagree with it.
func (a *api) allowed(r *http.Request) []string {
	var methods []string
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete} {
		probe := *r
		probe.Method = method
		var match mux.RouteMatch
		if a.router.Match(&probe, &match) && match.MatchErr == nil {
			methods = append(methods, method)
			exchangeOf(r.Context()).route, _ = match.Route.GetPathTemplate()
		}
	}
	return methods
}

// withoutTrailingSlash serves /todo/ as /todo, because a redirect would lose the body of a POST.
func withoutTrailingSlash(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if path := r.URL.Path; len(path) > 1 && path[len(path)-1] == '/' {
			trimmed, target := *r, *r.URL
			target.Path, target.RawPath = path[:len(path)-1], ""
			trimmed.URL = &target
			r = &trimmed
		}
		next.ServeHTTP(w, r)
	})
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	var out bytes.Buffer
	encodeJSON(&out, value)
	writeBody(w, status, out.Bytes())
}

func writeBody(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if _, err := w.Write(body); err != nil {
		exchangeOfWriter(w).err = err
	}
}

// encodeJSON writes < and > as they are: the answers are for programs and terminals, not for the inside of a web page.
func encodeJSON(out *bytes.Buffer, value any) {
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		panic(fmt.Errorf("encode answer: %w", err)) // Only a value that cannot be JSON at all, which is a programming error.
	}
}
