package todo

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// clientTimeout bounds a call of a Client that was given no http.Client.
	clientTimeout = 10 * time.Second
	// maxErrorBody is as much of an error answer as is read.
	maxErrorBody = 64 << 10
	// clientPage is how many todos All asks for at once.
	clientPage = 500
)

// Client calls the service. It may be used by many goroutines.
//
// A Client sends every request once. To spread requests over instances and to send them again where that is safe, give it an
// http.Client whose Transport does so: every request of a Client only reads or has an Idempotency-Key, and its body is one
// that http.Request.GetBody returns anew. An error of such a Transport that has a method NotSent() bool is believed.
//
// Every method returns ErrUnavailable if nothing was done, and the writing ones ErrOutcomeUnknown if that is not certain.
// Whatever the service itself answered is an *AnswerError as well, which says more. If the request was given up because ctx
// ended, the error is also the context's.
type Client struct {
	base string
	http *http.Client
}

// NewClient returns a Client for the service at baseURL, such as "http://127.20.20.14:8080". A nil httpClient is one with a timeout
// of 10 s. NewClient only parses the URL.
func NewClient(baseURL string, httpClient *http.Client) (*Client, error) {
	base, err := url.Parse(baseURL)
	if err != nil {
		return nil, fmt.Errorf("todo client: %w", err)
	}
	if base.Host == "" || base.Scheme != "http" && base.Scheme != "https" {
		return nil, fmt.Errorf("todo client: %q is not the URL of an HTTP service", baseURL)
	}
	if httpClient == nil {
		httpClient = &http.Client{Timeout: clientTimeout}
	}
	return &Client{base: strings.TrimRight(base.String(), "/"), http: httpClient}, nil
}

// AnswerError is an answer of the service that is not the success that was asked for. It wraps ErrNotFound, ErrKeyReused,
// ErrUnavailable, ErrOutcomeUnknown or an *InvalidError where it means one of them.
type AnswerError struct {
	StatusCode int
	Code       string // As in openapi.yaml; empty if something else than the service answered, a proxy perhaps.
	Message    string
	Retryable  bool // The same request may be sent again, without being done twice.
	RetryAfter time.Duration
	RequestID  string

	meaning error
	body    []byte
}

func (e *AnswerError) Error() string {
	text := "todo service answered " + strconv.Itoa(e.StatusCode)
	if e.Code != "" {
		text += " " + e.Code
	}
	if e.Message != "" {
		text += ": " + e.Message
	}
	if e.RequestID != "" {
		text += " (request " + e.RequestID + ")"
	}
	return text
}

func (e *AnswerError) Unwrap() error { return e.meaning }

// Create stores draft as a new todo, under a new idempotency key: however often the transport sends the request, one todo is
// created. A caller that wants to call again after ErrOutcomeUnknown uses CreateWithKey.
//
// Errors: *InvalidError, ErrUnavailable, ErrOutcomeUnknown.
func (c *Client) Create(ctx context.Context, draft Draft) (Todo, error) {
	return c.CreateWithKey(ctx, draft, rand.Text())
}

// CreateWithKey is Create with a key of the caller's, who may call it again with the same key and draft and gets the same todo.
//
// Errors: *InvalidError, ErrKeyReused, ErrUnavailable, ErrOutcomeUnknown.
func (c *Client) CreateWithKey(ctx context.Context, draft Draft, idempotencyKey string) (Todo, error) {
	if err := ValidateKey(idempotencyKey); err != nil {
		return Todo{}, err
	}
	var created Todo
	err := c.do(ctx, call{method: http.MethodPost, path: "/todo", body: draft, key: idempotencyKey, want: http.StatusCreated, into: &created})
	return created, err
}

// List returns all todos in the order of their ids. See All.
//
// Errors: ErrUnavailable.
func (c *Client) List(ctx context.Context) ([]Todo, error) {
	todos := []Todo{}
	for t, err := range c.All(ctx) {
		if err != nil {
			return nil, err
		}
		todos = append(todos, t)
	}
	return todos, nil
}

// All yields all todos in the order of their ids, every one exactly once that exists throughout. It asks for them page by page,
// so that each request is small enough to be sent again. After an error, which is ErrUnavailable, it ends.
func (c *Client) All(ctx context.Context) iter.Seq2[Todo, error] {
	return func(yield func(Todo, error) bool) {
		after := int64(0)
		for {
			var page []Todo
			path := fmt.Sprintf("/todo?after=%d&limit=%d", after, clientPage)
			if err := c.do(ctx, call{method: http.MethodGet, path: path, want: http.StatusOK, into: &page}); err != nil {
				yield(Todo{}, err)
				return
			}
			for _, t := range page {
				if !yield(t, nil) {
					return
				}
				after = t.ID
			}
			if len(page) < clientPage {
				return
			}
		}
	}
}

// Get returns the todo with this id.
//
// Errors: *InvalidError, ErrNotFound, ErrUnavailable.
func (c *Client) Get(ctx context.Context, id int64) (Todo, error) {
	var found Todo
	err := c.do(ctx, call{method: http.MethodGet, path: todoPath(id), want: http.StatusOK, into: &found})
	return found, err
}

// Update replaces what the todo with this id says and returns the todo as it is saved, under a new idempotency key: however often
// the transport sends the request, it is done once, and not after anything that is written once Update has returned it.
//
// Errors: *InvalidError, ErrNotFound, ErrUnavailable, ErrOutcomeUnknown.
func (c *Client) Update(ctx context.Context, id int64, draft Draft) (Todo, error) {
	return c.UpdateWithKey(ctx, id, draft, rand.Text())
}

// UpdateWithKey is Update with a key of the caller's, who may call it again with the same key, id and draft after
// ErrOutcomeUnknown.
//
// Errors: *InvalidError, ErrNotFound, ErrKeyReused, ErrUnavailable, ErrOutcomeUnknown.
func (c *Client) UpdateWithKey(ctx context.Context, id int64, draft Draft, idempotencyKey string) (Todo, error) {
	if err := ValidateKey(idempotencyKey); err != nil {
		return Todo{}, err
	}
	var saved Todo
	err := c.do(ctx, call{method: http.MethodPut, path: todoPath(id), body: draft, key: idempotencyKey, want: http.StatusOK, into: &saved})
	return saved, err
}

// Delete removes the todo with this id, under a new idempotency key: if only the answer is lost and the transport sends the request
// again, it is not ErrNotFound.
//
// Errors: *InvalidError, ErrNotFound, ErrUnavailable, ErrOutcomeUnknown.
func (c *Client) Delete(ctx context.Context, id int64) error {
	return c.DeleteWithKey(ctx, id, rand.Text())
}

// DeleteWithKey is Delete with a key of the caller's, who may call it again with the same key and id after ErrOutcomeUnknown.
//
// Errors: *InvalidError, ErrNotFound, ErrKeyReused, ErrUnavailable, ErrOutcomeUnknown.
func (c *Client) DeleteWithKey(ctx context.Context, id int64, idempotencyKey string) error {
	if err := ValidateKey(idempotencyKey); err != nil {
		return err
	}
	return c.do(ctx, call{method: http.MethodDelete, path: todoPath(id), key: idempotencyKey, want: http.StatusNoContent})
}

// Health returns how the instance is that answers; its Credentials are a map[string]any. An instance that says it is critical is
// an answer, not an error.
//
// Errors: ErrUnavailable.
func (c *Client) Health(ctx context.Context) (Health, error) {
	var report Health
	err := c.do(ctx, call{method: http.MethodGet, path: "/health", want: http.StatusOK, into: &report})
	var answer *AnswerError
	if errors.As(err, &answer) && json.Unmarshal(answer.body, &report) == nil &&
		report.Status != "" && report.Status.httpStatus() == answer.StatusCode {
		return report, nil
	}
	if err != nil {
		return Health{}, err
	}
	return report, nil
}

func todoPath(id int64) string { return "/todo/" + strconv.FormatInt(id, 10) }

// call is one request and what is wanted of it.
type call struct {
	method, path string
	body         any
	key          string
	want         int
	into         any
}

func (c call) writes() bool { return c.method != http.MethodGet }

// do sends one request and sorts what comes of it.
func (c *Client) do(ctx context.Context, call call) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s %s: %w: %w", call.method, call.path, ErrUnavailable, err)
	}
	var sent atomic.Bool // The transport may still call the trace after it has given up.
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }})
	request, err := c.request(ctx, call)
	if err != nil {
		return err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return call.lost(err, neverSent(err, sent.Load()))
	}
	defer response.Body.Close()
	if response.StatusCode != call.want {
		return call.refused(response)
	}
	if call.into == nil {
		return nil
	}
	if err := json.NewDecoder(response.Body).Decode(call.into); err != nil {
		return call.lost(fmt.Errorf("read the answer: %w", err), false)
	}
	// Reading to the end lets the connection be used again.
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, maxErrorBody))
	return nil
}

func (c *Client) request(ctx context.Context, call call) (*http.Request, error) {
	var body io.Reader
	if call.body != nil {
		text, err := json.Marshal(call.body)
		if err != nil {
			return nil, fmt.Errorf("encode todo: %w", err)
		}
		body = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, call.method, c.base+call.path, body)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	request.Header.Set("Accept", "application/json")
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if call.key != "" {
		request.Header.Set(idempotencyKeyHeader, call.key)
	}
	return request, nil
}

// lost names what it means that no answer came.
func (c call) lost(err error, unsent bool) error {
	if c.writes() && !unsent {
		return fmt.Errorf("%s %s: %w: %w", c.method, c.path, ErrOutcomeUnknown, err)
	}
	return fmt.Errorf("%s %s: %w: %w", c.method, c.path, ErrUnavailable, err)
}

// neverSent reports whether err proves that the request did not leave. A transport that sends requests several times says so itself
// with a method NotSent() bool on its error. Of any other, a failed dial is the proof, unless some try had a connection before.
func neverSent(err error, hadConnection bool) bool {
	var transport interface{ NotSent() bool }
	if errors.As(err, &transport) {
		return transport.NotSent()
	}
	var network *net.OpError
	return !hadConnection && errors.As(err, &network) && network.Op == "dial"
}

// refused makes an error of an answer that is not what was wanted. The body may be cut, or anything at all: then the status is what
// counts.
func (c call) refused(response *http.Response) error {
	body, _ := io.ReadAll(io.LimitReader(response.Body, maxErrorBody))
	var answer errorAnswer
	_ = json.Unmarshal(body, &answer)
	return &AnswerError{
		StatusCode: response.StatusCode,
		Code:       answer.Error.Code,
		Message:    answer.Error.Message,
		Retryable:  answer.Error.Retryable,
		RetryAfter: retryAfter(response.Header),
		RequestID:  response.Header.Get(requestIDHeader),
		meaning:    c.meaning(response.StatusCode, answer.Error),
		body:       body,
	}
}

// meaning is the table from error answers back to errors.
func (c call) meaning(status int, detail errorDetail) error {
	switch detail.Code {
	case codeInvalid:
		return &InvalidError{Field: detail.Field, Reason: strings.TrimPrefix(detail.Message, detail.Field+" ")}
	case codeNotFound:
		return ErrNotFound
	case codeKeyReused:
		return ErrKeyReused
	case codeUnavailable, codeNotReady, codeBodyTimeout, codeBodyIncomplete:
		return ErrUnavailable
	case codeOutcomeUnknown:
		return ErrOutcomeUnknown
	}
	switch {
	case status < http.StatusInternalServerError && status >= http.StatusBadRequest:
		return nil // Refused, by whomever: the caller's mistake, or a wrong address.
	case c.writes():
		return ErrOutcomeUnknown
	}
	return ErrUnavailable
}

func retryAfter(header http.Header) time.Duration {
	seconds, err := strconv.Atoi(header.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return time.Duration(min(seconds, int(time.Hour/time.Second))) * time.Second
}
