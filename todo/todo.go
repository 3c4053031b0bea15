// Package todo is a todo list kept in a MySQL database and served over HTTP.
//
// What it guarantees:
//
//   - A write is one statement or one transaction: it happened or it did not, and no request leaves half of one behind.
//   - Every error says whether the write may have happened. [ErrUnavailable] means that it did not; only
//     [ErrOutcomeUnknown] leaves it open.
//   - A write with an idempotency key happens once, however often it is sent, and never after a write that was sent when it had been
//     answered. A key is remembered for [KeyMemory] at least.
//   - Whatever a client sends is answered with JSON that says what was wrong, never with a status of 500.
//
// [Store] keeps todos, [Migrate] prepares its schema, [NewHandler] serves it, [NewServer] guards it against slow
// clients, and [Client] calls it from elsewhere. The package reads no environment, owns no goroutine, and knows nothing
// of where its *sql.DB gets its address and credentials from.
package todo

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The limits of a todo. Lengths count characters (Unicode code points), as the VARCHAR columns that hold them do.
const (
	MaxStatusLength  = 32
	MaxContentLength = 4096
	MaxKeyLength     = 255

	// StatusNew is what a todo gets that is created without a status.
	StatusNew = "new"
)

// Todo is one thing to do.
type Todo struct {
	ID      int64  `json:"id"` // Positive, given by the database, never used twice.
	Status  string `json:"status"`
	Content string `json:"content"`
}

// Draft is a todo without its identity: what a client may choose.
type Draft struct {
	// Status is free text without control characters, 1 to MaxStatusLength characters, not blank. A Create takes none for StatusNew.
	Status string `json:"status,omitempty"`
	// Content is 1 to MaxContentLength characters, not blank.
	Content string `json:"content"`
}

var (
	// ErrNotFound says that there is no todo with this id.
	ErrNotFound = errors.New("no such todo")

	// ErrKeyReused says that the idempotency key belongs to another write: of another kind, of another todo, or with another draft.
	ErrKeyReused = errors.New("idempotency key was used for another write")

	// ErrUnavailable says that the database could not be asked, or refused. Nothing was changed: the same call may be
	// made again.
	ErrUnavailable = errors.New("todos are unavailable")

	// ErrOutcomeUnknown says that a write was handed over and its answer never came: it may have happened or not, or happen
	// yet. With the same idempotency key it may be made again. Without one, an Update or a Delete may be made again by whoever
	// is sure that nothing else was written meanwhile, and a Create may not, because it could happen twice.
	ErrOutcomeUnknown = errors.New("outcome of the write is unknown")
)

// InvalidError says which field of a request breaks which rule. The same request will never succeed.
type InvalidError struct {
	Field  string // As the client knows it: "content", "id", "Idempotency-Key".
	Reason string // Completes a sentence that begins with the field.
}

func (e *InvalidError) Error() string { return e.Field + " " + e.Reason }

// Validate returns an *InvalidError for the first rule that the draft breaks, and nil if it may be stored.
func (d Draft) Validate() error {
	if err := validateText("status", d.Status, MaxStatusLength); err != nil {
		return err
	}
	if strings.ContainsFunc(d.Status, unicode.IsControl) {
		return &InvalidError{"status", "must not contain control characters"}
	}
	return validateText("content", d.Content, MaxContentLength)
}

func validateText(field, text string, limit int) error {
	switch {
	case text == "":
		return &InvalidError{field, "must not be empty"}
	case !utf8.ValidString(text):
		return &InvalidError{field, "must be valid UTF-8"}
	case utf8.RuneCountInString(text) > limit:
		return &InvalidError{field, fmt.Sprintf("must be at most %d characters long", limit)}
	case strings.TrimSpace(text) == "":
		return &InvalidError{field, "must not be blank"}
	}
	return nil
}

// ParseID reads an id as it stands in a path: decimal digits, from 1 to 9223372036854775807. Everything else is an
// *InvalidError.
func ParseID(text string) (int64, error) {
	if text == "" || strings.Trim(text, "0123456789") != "" {
		return 0, &InvalidError{"id", "must be a number"}
	}
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil || id < 1 {
		return 0, &InvalidError{"id", fmt.Sprintf("must be from 1 to %d", math.MaxInt64)}
	}
	return id, nil
}

// ValidateKey returns an *InvalidError unless key can be an idempotency key: 1 to MaxKeyLength printable ASCII characters.
func ValidateKey(key string) error {
	if key == "" || len(key) > MaxKeyLength {
		return &InvalidError{idempotencyKeyHeader, fmt.Sprintf("must be 1 to %d characters long", MaxKeyLength)}
	}
	for i := range len(key) {
		if key[i] < ' ' || key[i] > '~' {
			return &InvalidError{idempotencyKeyHeader, "must be printable ASCII"}
		}
	}
	return nil
}
