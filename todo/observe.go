package todo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	maxRequestIDLength = 128
	maxLoggedPath      = 200
	// noRoute is the route of a request that met none.
	noRoute = "none"
	// statusClientGone stands in log and metrics for a client that left before its answer, by nginx's convention: the 503 that
	// nobody read is no failure of the service.
	statusClientGone = 499
)

// metrics are bounded: routes and methods are those of the router's table, or "none" and "other".
type metrics struct {
	seconds  *prometheus.HistogramVec
	inFlight prometheus.Gauge
}

func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "todo_http_request_duration_seconds",
			Help:    "Time from the end of a request's header to the end of its answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"route", "method", "code"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "todo_http_requests_in_flight",
			Help: "Requests that are being answered.",
		}),
	}
	if err := registry.Register(m.seconds); err != nil {
		return nil, err
	}
	return m, registry.Register(m.inFlight)
}

// observer stands around everything else: it gives each request its id, survives its panic, and measures and logs it once.
type observer struct {
	next    http.Handler
	metrics *metrics
	logger  *slog.Logger
}

// exchange is what the observer learns of one request. It belongs to the request's goroutine.
type exchange struct {
	http.ResponseWriter
	id     string
	route  string
	status int // 0 until the header is written.
	bytes  int64
	err    error
	stack  []byte
}

func (x *exchange) WriteHeader(status int) {
	if x.status == 0 {
		x.status = status
	}
	x.ResponseWriter.WriteHeader(status)
}

func (x *exchange) Write(p []byte) (int, error) {
	if x.status == 0 {
		x.status = http.StatusOK
	}
	n, err := x.ResponseWriter.Write(p)
	x.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

type exchangeKey struct{}

// exchangeOf returns the exchange of a request that came through an observer.
func exchangeOf(ctx context.Context) *exchange { return ctx.Value(exchangeKey{}).(*exchange) }

// exchangeOfWriter is for places that have only the writer, which inside the observer is always the exchange.
func exchangeOfWriter(w http.ResponseWriter) *exchange { return w.(*exchange) }

// RequestID returns the id of the request that ctx belongs to, and "" outside of one.
func RequestID(ctx context.Context) string {
	if x, ok := ctx.Value(exchangeKey{}).(*exchange); ok {
		return x.id
	}
	return ""
}

func (o *observer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	x := &exchange{ResponseWriter: w, id: requestID(r.Header), route: noRoute}
	w.Header().Set(requestIDHeader, x.id)
	r = r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x))
	o.metrics.inFlight.Inc()
	aborted := true
	defer func() {
		o.metrics.inFlight.Dec()
		o.record(x, r, time.Since(began), aborted)
		if aborted {
			panic(http.ErrAbortHandler) // net/http closes the connection, and does not log this one.
		}
	}()
	aborted = o.serve(x, r)
}

// serve answers the request and turns a panic into a 500. It reports whether the connection must be broken because part of
// an answer was sent that will not be completed.
func (o *observer) serve(x *exchange, r *http.Request) (abort bool) {
	defer func() {
		cause := recover()
		if cause == nil {
			return
		}
		if err, ok := cause.(error); ok && errors.Is(err, http.ErrAbortHandler) {
			abort = true
			return
		}
		x.err, x.stack = fmt.Errorf("panic: %v", cause), debug.Stack()
		if x.status != 0 {
			abort = true
			return
		}
		writeError(x, r, x.err)
	}()
	o.next.ServeHTTP(x, r)
	return false
}

func (o *observer) record(x *exchange, r *http.Request, took time.Duration, aborted bool) {
	status := x.status
	if status == 0 {
		status = http.StatusOK // What net/http sends for a handler that wrote nothing.
	}
	if status >= http.StatusInternalServerError && errors.Is(r.Context().Err(), context.Canceled) {
		status = statusClientGone
	}
	o.metrics.seconds.WithLabelValues(x.route, methodLabel(r.Method), strconv.Itoa(status)).Observe(took.Seconds())

	attrs := []slog.Attr{
		slog.String("request_id", x.id),
		slog.String("method", printable(r.Method)),
		slog.String("path", r.URL.Path[:min(len(r.URL.Path), maxLoggedPath)]),
		slog.String("route", x.route),
		slog.Int("status", status),
		slog.Int64("bytes", x.bytes),
		slog.Float64("milliseconds", milliseconds(took)),
		slog.String("remote", r.RemoteAddr),
	}
	if x.err != nil {
		attrs = append(attrs, slog.String("error", x.err.Error()))
	}
	if x.stack != nil {
		attrs = append(attrs, slog.String("stack", string(x.stack)))
	}
	if aborted {
		attrs = append(attrs, slog.Bool("aborted", true))
	}
	o.logger.LogAttrs(r.Context(), logLevel(x, status, aborted), "request", attrs...)
}

func logLevel(x *exchange, status int, aborted bool) slog.Level {
	if status >= http.StatusInternalServerError || aborted || x.stack != nil {
		return slog.LevelError
	}
	switch x.route {
	case "/health", "/livez", "/readyz", "/metrics":
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

func methodLabel(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete,
		http.MethodPatch, http.MethodOptions:
		return method
	}
	return "other"
}

// requestID takes the client's id if it can be trusted in a log and a header, and otherwise makes one.
func requestID(header http.Header) string {
	id := header.Get(requestIDHeader)
	if id == "" || len(id) > maxRequestIDLength {
		return rand.Text()
	}
	for i := range len(id) {
		c := id[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.', c == ':':
		default:
			return rand.Text()
		}
	}
	return id
}
