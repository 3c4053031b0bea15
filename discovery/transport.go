package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Defaults of TransportConfig, and the transport's own limits.
const (
	DefaultTries      = 5
	DefaultTryTimeout = 5 * time.Second
	DefaultTimeout    = 30 * time.Second

	idlePerInstance = 64
	firstPause      = 50 * time.Millisecond // after every instance has failed once
	lastPause       = time.Second
	maxRetryAfter   = 2 * time.Second // what is waited for; a caller asked to wait longer is given the answer
	discardTimeout  = 100 * time.Millisecond
	maxDiscard      = 4 << 10 // bytes of a refused answer that are read to keep its connection
)

// AttemptHeader counts from 2 on requests that a Transport sends again. The server may log it, and a caller finds it in
// http.Response.Request: a DELETE that was sent again may rightly be answered with 404.
const AttemptHeader = "X-Attempt"

// TransportConfig says how patiently requests are tried. Its zero value is a good one.
type TransportConfig struct {
	// Base sends the requests. Default: an http.Transport without a proxy, whose idle connections CloseIdleConnections closes.
	Base http.RoundTripper
	// Tries is how often a request is sent at most, where it may be sent again. Default DefaultTries.
	Tries int
	// TryTimeout is how long an instance may take to begin its answer before another is asked, where one may be. Default
	// DefaultTryTimeout.
	TryTimeout time.Duration
	// Timeout is how long all of it may take until an answer begins. Default DefaultTimeout. Reading the answer's body is for
	// the request's context to bound.
	Timeout time.Duration
}

// Transport is an http.RoundTripper that sends requests for http://<service>/… to the service's instances in turn. It avoids an
// instance that just failed, or that said it is closing, as long as there are others. It sends a request to another instance
//
//   - if none could be reached so that nothing was sent, whatever the request;
//   - if the connection was lost, or the answer did not begin in time, or was 502, 503 or 504, and the request's method is idempotent
//     (RFC 9110, 9.2.2) or it carries an Idempotency-Key;
//
// and in each case only if its body can be sent again (http.Request.GetBody). Once an answer is returned it is never asked for again,
// though it may break off. If all tries end in 502, 503 or 504, the last such answer is returned.
type Transport struct {
	watch *Watch
	cfg   TransportConfig
	avoid avoidance
}

var _ http.RoundTripper = (*Transport)(nil)

// NewTransport makes a transport over a Watch, whose Run it needs.
func NewTransport(w *Watch, cfg TransportConfig) (*Transport, error) {
	if w == nil {
		return nil, errors.New("transport needs a watch")
	}
	cfg.Tries = cmp.Or(cfg.Tries, DefaultTries)
	cfg.TryTimeout = cmp.Or(cfg.TryTimeout, DefaultTryTimeout)
	cfg.Timeout = cmp.Or(cfg.Timeout, DefaultTimeout)
	if cfg.Tries < 1 || cfg.TryTimeout < 0 || cfg.Timeout < 0 {
		return nil, errors.New("transport: tries and times must be positive")
	}
	if cfg.Base == nil {
		cfg.Base = &http.Transport{
			DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
			MaxIdleConnsPerHost: idlePerInstance,
			IdleConnTimeout:     90 * time.Second,
			TLSHandshakeTimeout: 5 * time.Second,
			ForceAttemptHTTP2:   true,
		}
	}
	return &Transport{watch: w, cfg: cfg}, nil
}

// CloseIdleConnections closes the connections that no request uses. http.Client.CloseIdleConnections calls it.
func (t *Transport) CloseIdleConnections() {
	if base, ok := t.cfg.Base.(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
}

// TransportError says that a request got no answer from any instance.
type TransportError struct {
	Service string
	Tries   []error // what came of each, in order; empty if there was no instance to try
	cause   error
	notSent bool
}

func (e *TransportError) Error() string {
	if len(e.Tries) == 0 {
		return e.cause.Error()
	}
	var tries []string
	for _, err := range e.Tries {
		tries = append(tries, err.Error())
	}
	return fmt.Sprintf("service %s: tried %d times: %s", e.Service, len(tries), strings.Join(tries, "; "))
}

// Unwrap gives what ended the last try: ErrNoInstances, ErrNoAnswer, a context's error, a net.Error, ….
func (e *TransportError) Unwrap() error { return e.cause }

// NotSent reports that no part of the request has left, in any try: it had no effect and may be made again, whatever it is.
func (e *TransportError) NotSent() bool { return e.notSent }

// Timeout makes it a net.Error's way to say that time ran out.
func (e *TransportError) Timeout() bool {
	timeout, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](e.cause)
	return ok && timeout.Timeout()
}

// errTryTimeout ends a try whose answer does not begin.
var errTryTimeout error = tryTimeout{}

type tryTimeout struct{}

func (tryTimeout) Error() string   { return "answer did not begin in time" }
func (tryTimeout) Timeout() bool   { return true }
func (tryTimeout) Temporary() bool { return true }

// RoundTrip sends the request to one instance after another. Its error is a *TransportError.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	deadline := time.Now().Add(t.cfg.Timeout)
	failure := &TransportError{Service: t.watch.service, notSent: true}
	if !strings.EqualFold(r.URL.Host, t.watch.service) {
		closeBody(r)
		failure.cause = fmt.Errorf("request for %s in the transport of service %s", r.URL.Host, t.watch.service)
		return nil, failure
	}
	pause := backoff{first: firstPause, most: lastPause}
	var tried []string
	for {
		instance, err := t.pick(ctx, deadline, tried)
		if err != nil {
			if len(tried) == 0 {
				closeBody(r)
			}
			failure.cause = err
			return nil, failure
		}
		tried = append(tried, instance.Addr)
		more := len(tried) < t.cfg.Tries && replayable(r)
		limit := time.Until(deadline)
		if more && repeatable(r) {
			limit = min(limit, t.cfg.TryTimeout)
		}
		out := t.try(r, instance.Addr, len(tried), limit)
		if ctx.Err() == nil {
			t.judge(r, instance.Addr, out)
		}
		wait := time.Duration(0)
		if !t.othersThan(tried) {
			wait = max(pause.next(), out.retryAfter)
		}
		more = more && ctx.Err() == nil && wait <= maxRetryAfter && wait < time.Until(deadline)
		if out.err == nil && !(more && out.refused() && repeatable(r)) {
			return out.response, nil
		}
		failure.note(instance.Addr, out)
		if !more || out.err != nil && out.sent && !repeatable(r) {
			if ctx.Err() != nil {
				failure.cause = ctx.Err()
			}
			return nil, failure
		}
		out.discard()
		sleep(ctx, wait)
	}
}

// pick chooses the next instance in turn that has not been tried and did not just fail; if there is none, one that at least has not been
// tried; if there is none, any.
func (t *Transport) pick(ctx context.Context, deadline time.Time, tried []string) (Instance, error) {
	if err := ctx.Err(); err != nil {
		return Instance{}, err
	}
	next, err := t.watch.Pick()
	if errors.Is(err, ErrNoAnswer) {
		ctx, cancel := context.WithDeadline(ctx, deadline)
		defer cancel()
		if _, err := t.watch.answered(ctx); err != nil {
			return Instance{}, err
		}
		next, err = t.watch.Pick()
	}
	if err != nil {
		return Instance{}, err
	}
	best, bestScore := next, -1
	for range len(t.watch.current.Load().usable) {
		score := 0
		if !slices.Contains(tried, next.Addr) {
			score += 2
		}
		if !t.avoid.avoids(next.Addr) {
			score++
		}
		if score > bestScore {
			best, bestScore = next, score
		}
		if score == 3 {
			break
		}
		if next, err = t.watch.Pick(); err != nil {
			break // The catalogue has just emptied: what was chosen before is as good as anything.
		}
	}
	return best, nil
}

// othersThan reports whether there is an instance that has not been tried.
func (t *Transport) othersThan(tried []string) bool {
	for _, i := range t.watch.current.Load().usable {
		if !slices.Contains(tried, i.Addr) {
			return true
		}
	}
	return false
}

// outcome is what came of one try: an answer or an error.
type outcome struct {
	response   *http.Response
	retryAfter time.Duration
	err        error
	sent       bool // something may have left
	cancel     context.CancelCauseFunc
}

// try sends the request to one instance, and gives it limit to begin its answer.
func (t *Transport) try(r *http.Request, addr string, attempt int, limit time.Duration) outcome {
	ctx, cancel := context.WithCancelCause(r.Context())
	var connected atomic.Bool
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	request := r.Clone(traced)
	request.URL.Host = addr
	request.Host = cmp.Or(r.Host, r.URL.Host)
	if attempt > 1 {
		request.Header.Set(AttemptHeader, strconv.Itoa(attempt))
		if r.GetBody != nil {
			body, err := r.GetBody()
			if err != nil {
				cancel(nil)
				return outcome{err: fmt.Errorf("repeat the body: %w", err)}
			}
			request.Body = body
		}
	}
	timer := time.AfterFunc(limit, func() { cancel(errTryTimeout) })
	response, err := t.cfg.Base.RoundTrip(request)
	inTime := timer.Stop()
	if err == nil && !inTime { // The answer's body could not be read any more.
		response.Body.Close()
		err = errTryTimeout
	}
	if err != nil {
		if cause := context.Cause(ctx); cause == errTryTimeout {
			err = cause
		}
		cancel(nil)
		dial, isDial := errors.AsType[*net.OpError](err)
		return outcome{err: err, sent: connected.Load() || !isDial || dial.Op != "dial"}
	}
	// To the caller it is the answer to its own request, whichever instance sent it.
	asked := r.WithContext(r.Context())
	asked.Header = request.Header
	response.Request = asked
	response.Body = &cancelBody{ReadCloser: response.Body, cancel: cancel}
	return outcome{response: response, retryAfter: retryAfter(response), sent: true, cancel: cancel}
}

// judge remembers what a try says about the instance.
func (t *Transport) judge(r *http.Request, addr string, out outcome) {
	switch {
	case out.err != nil || out.refused():
		t.avoid.failed(addr, out.retryAfter)
	case out.response.Close && !r.Close:
		t.avoid.closing(addr)
	default:
		t.avoid.worked(addr)
	}
}

// refused reports whether the answer is one with which a server, or something before it, says that it does not serve now.
func (o outcome) refused() bool {
	if o.response == nil {
		return false
	}
	switch o.response.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// discard ends an answer that the caller will not see. A short one is read, so that its connection can be used again.
func (o outcome) discard() {
	if o.response == nil {
		return
	}
	timer := time.AfterFunc(discardTimeout, func() { o.cancel(errTryTimeout) })
	defer timer.Stop()
	_, _ = io.CopyN(io.Discard, o.response.Body, maxDiscard)
	o.response.Body.Close()
}

// note adds what came of a try.
func (e *TransportError) note(addr string, out outcome) {
	err := out.err
	if err == nil {
		err = fmt.Errorf("answered %s", out.response.Status)
	}
	e.Tries = append(e.Tries, fmt.Errorf("%s: %w", addr, err))
	e.cause = err
	e.notSent = e.notSent && !out.sent
}

// cancelBody ends the try's context with the answer's body.
type cancelBody struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

func (b *cancelBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.cancel(nil)
	}
	return n, err
}

func (b *cancelBody) Close() error {
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

// replayable reports whether the request's body can be sent again.
func replayable(r *http.Request) bool {
	return r.Body == nil || r.Body == http.NoBody || r.GetBody != nil
}

// repeatable reports whether doing the request twice is the same as doing it once.
func repeatable(r *http.Request) bool {
	switch cmp.Or(r.Method, http.MethodGet) {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return r.Header.Get("Idempotency-Key") != ""
}

// retryAfter reads the header of that name in seconds; its other form, a date, is for clocks that agree.
func retryAfter(response *http.Response) time.Duration {
	seconds, err := strconv.ParseUint(response.Header.Get("Retry-After"), 10, 31)
	if err != nil {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		r.Body.Close()
	}
}

// unwrapURL takes off what http.Client puts around an error: method and URL, which the caller knows.
func unwrapURL(err error) error {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		return wrapped.Err
	}
	return err
}
