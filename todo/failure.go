package todo

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"
)

// The codes of an error answer are part of the contract: programs branch on them, people read the message.
const (
	codeInvalid          = "invalid"                // 400: a field, the path or a header breaks a rule.
	codeNotJSON          = "not_json"               // 400: the body is not one JSON object.
	codeBodyIncomplete   = "body_incomplete"        // 400: the body broke off.
	codeNotFound         = "not_found"              // 404: no todo has this id.
	codeNoSuchPath       = "no_such_path"           // 404: nothing is served there.
	codeMethodNotAllowed = "method_not_allowed"     // 405, with Allow.
	codeBodyTimeout      = "body_timeout"           // 408: the body came too slowly.
	codeBodyTooLarge     = "body_too_large"         // 413
	codeMediaType        = "unsupported_media_type" // 415
	codeKeyReused        = "idempotency_key_reused" // 422: the key belongs to another request.
	codeInternal         = "internal"               // 500: a defect of the service.
	codeUnavailable      = "unavailable"            // 503: nothing was changed.
	codeOutcomeUnknown   = "outcome_unknown"        // 503: the write may have happened or not.
	codeNotReady         = "not_ready"              // 503 of /readyz.
)

// retryAfterSeconds is what a 503 advises. Another instance may well answer at once.
const retryAfterSeconds = "1"

// requestError is an error that knows its answer.
type requestError struct {
	status    int
	code      string
	message   string
	field     string
	retryable bool
	cause     error
}

func (e *requestError) Error() string {
	if e.cause != nil {
		return e.message + ": " + e.cause.Error()
	}
	return e.message
}

func (e *requestError) Unwrap() error { return e.cause }

// errorAnswer is the body of every answer that is an error.
type errorAnswer struct {
	Error errorDetail `json:"error"`
}

type errorDetail struct {
	Code      string `json:"code"`
	Message   string `json:"message"`
	Field     string `json:"field,omitempty"`
	Retryable bool   `json:"retryable"` // The same request may be sent again: it will not be done twice.
	RequestID string `json:"request_id"`
}

// failureOf is the table from errors to answers.
func failureOf(err error, r *http.Request) *requestError {
	var known *requestError
	var invalid *InvalidError
	var notJSON *notJSONError
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &invalid):
		return &requestError{status: http.StatusBadRequest, code: codeInvalid, message: invalid.Error(), field: invalid.Field}
	case errors.As(err, &notJSON):
		return &requestError{status: http.StatusBadRequest, code: codeNotJSON, message: notJSON.Error()}
	case errors.Is(err, ErrNotFound):
		return &requestError{status: http.StatusNotFound, code: codeNotFound, message: "there is no todo with this id"}
	case errors.Is(err, ErrKeyReused):
		return &requestError{status: http.StatusUnprocessableEntity, code: codeKeyReused,
			message: "this idempotency key belongs to another request: a key is for one method, one path and one body", field: idempotencyKeyHeader}
	case errors.Is(err, ErrOutcomeUnknown):
		return &requestError{status: http.StatusServiceUnavailable, code: codeOutcomeUnknown, retryable: repeatable(r),
			message: "the database was lost while it worked on this request, which may have been done or not"}
	case errors.Is(err, ErrUnavailable):
		return &requestError{status: http.StatusServiceUnavailable, code: codeUnavailable, retryable: true,
			message: "the database does not answer at the moment; nothing was changed"}
	}
	return &requestError{status: http.StatusInternalServerError, code: codeInternal,
		message: "the service made a mistake; its log has the details under this request id"}
}

// repeatable tells whether a request that may have been done can be done again without doing it twice.
func repeatable(r *http.Request) bool {
	return r.Method != http.MethodPost || r.Header.Get(idempotencyKeyHeader) != ""
}

// writeError answers with what failureOf says. The cause stays in the log: it may tell of addresses and users.
func writeError(w http.ResponseWriter, r *http.Request, err error) {
	failure := failureOf(err, r)
	switch failure.status {
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", retryAfterSeconds)
	case http.StatusRequestTimeout, http.StatusRequestEntityTooLarge:
		w.Header().Set("Connection", "close") // The rest of the body is not worth reading.
	}
	writeJSON(w, failure.status, errorAnswer{errorDetail{
		Code:      failure.code,
		Message:   failure.message,
		Field:     failure.field,
		Retryable: failure.retryable,
		RequestID: RequestID(r.Context()),
	}})
}

// readBody returns the whole body, or an error with its answer.
func (a *api) readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if err := checkMediaType(r.Header); err != nil {
		return nil, err
	}
	tooLarge := &requestError{status: http.StatusRequestEntityTooLarge, code: codeBodyTooLarge, message: "the body is larger than the service takes"}
	if r.ContentLength > a.config.MaxBodyBytes && r.Header.Get("Expect") != "" {
		return nil, tooLarge // nothing of it was sent yet
	}
	// A body that is plainly too large is read up to the limit all the same: who has to send on may never see an answer that comes
	// before. When the limit is hit, net/http closes the connection gently; otherwise only where the client meant to keep it.
	// The reader gets net/http's own writer, which it tells to close the connection.
	body, err := io.ReadAll(http.MaxBytesReader(exchangeOfWriter(w).ResponseWriter, r.Body, a.config.MaxBodyBytes))
	var overflow *http.MaxBytesError
	switch {
	case err == nil:
		return body, nil
	case errors.As(err, &overflow):
		return nil, tooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, &requestError{status: http.StatusRequestTimeout, code: codeBodyTimeout,
			message: "the body did not arrive in time", retryable: true, cause: err}
	}
	return nil, &requestError{status: http.StatusBadRequest, code: codeBodyIncomplete, message: "the body could not be read to its end", cause: err}
}

// checkMediaType refuses a body that plainly claims to be something else than JSON in UTF-8. No claim is no lie, and the form
// type is what curl -d claims of anything.
func checkMediaType(header http.Header) error {
	if encoding := header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return unsupported("the body must not be encoded (Content-Encoding)")
	}
	claim := header.Get("Content-Type")
	if claim == "" {
		return nil
	}
	mediaType, params, err := mime.ParseMediaType(claim)
	if err != nil {
		return unsupported("the content type cannot be understood; application/json is wanted")
	}
	switch {
	case mediaType == "application/json", mediaType == "text/json", mediaType == "application/x-www-form-urlencoded":
	case strings.HasPrefix(mediaType, "application/") && strings.HasSuffix(mediaType, "+json"):
	default:
		return unsupported("the content type must be application/json")
	}
	switch strings.ToLower(params["charset"]) {
	case "", "utf-8", "utf8", "us-ascii":
		return nil
	}
	return unsupported("the body must be in UTF-8")
}

func unsupported(message string) error {
	return &requestError{status: http.StatusUnsupportedMediaType, code: codeMediaType, message: message}
}
