package todo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"time"
)

const (
	// KeyMemory is how long an idempotency key is remembered at least.
	KeyMemory = 24 * time.Hour
	// onceAttempts bounds how often a transaction is begun again that the server ended because of a deadlock.
	onceAttempts = 5
	// forgetAtOnce bounds the rows that one Forget deletes, and so how long it holds their locks.
	forgetAtOnce = 1000
)

// InTx runs fn in a transaction and commits it. It may run fn several times, if the earlier transactions are known not to have been
// committed; an error of fn rolls back and is returned, and so is an error of the commit.
type InTx func(ctx context.Context, opts *sql.TxOptions, fn func(*sql.Tx) error) error

// inTx is the InTx of a pool that needs no more.
func inTx(db *sql.DB) InTx {
	return func(ctx context.Context, opts *sql.TxOptions, fn func(*sql.Tx) error) error {
		tx, err := db.BeginTx(ctx, opts)
		if err != nil {
			return err
		}
		defer tx.Rollback() // After Commit it has nothing to do.
		if err := fn(tx); err != nil {
			return err
		}
		return tx.Commit()
	}
}

// keyed is a write that is done once: its key, and what tells it from another write.
type keyed struct {
	key, digest []byte
}

// newKeyed describes a write. The length in front keeps a status and a content from being taken for others with the same text
// when put together.
func newKeyed(key, method string, id int64, draft Draft) (keyed, error) {
	if err := ValidateKey(key); err != nil {
		return keyed{}, err
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d %d:%s%s", method, id, len(draft.Status), draft.Status, draft.Content))
	return keyed{[]byte(key), sum[:]}, nil
}

// doneError says that a write with this key was committed before, and which todo it was about.
type doneError struct {
	id int64
}

func (doneError) Error() string { return "the write of this idempotency key is done" }

// remember claims the key within the transaction of its write. It waits for another transaction that has claimed it, and returns a
// doneError or ErrKeyReused if that one was committed.
func (k keyed) remember(ctx context.Context, tx *sql.Tx, id int64) error {
	_, err := tx.ExecContext(ctx,
		"INSERT INTO todo_write (idempotency_key, digest, todo_id, created_at) VALUES (?, ?, ?, UTC_TIMESTAMP())", k.key, k.digest, id)
	if !isDuplicate(err) {
		return err
	}
	var done doneError
	var digest []byte
	// The failed INSERT keeps the row from being forgotten meanwhile.
	err = tx.QueryRowContext(ctx, "SELECT todo_id, digest FROM todo_write WHERE idempotency_key = ?", k.key).Scan(&done.id, &digest)
	switch {
	case err != nil:
		return err
	case !bytes.Equal(digest, k.digest):
		return ErrKeyReused
	}
	return done
}

// once runs a write and the claim of its key in one transaction. So a statement of an instance that has died, which may come to the
// server long after everything that the client sent since, either finds the key and changes nothing, or is undone because nobody is
// there to commit it.
//
// It is read committed, where no lock is taken on what is not there: a transaction of an instance that hangs, which holds its locks
// until the server ends it, must not stop anybody from adding todos.
//
// Errors: those of do that are no trouble with the database, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) once(ctx context.Context, what string, do func(*sql.Tx) error) error {
	for attempt := 1; ; attempt++ {
		committing := false
		err := s.inTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted}, func(tx *sql.Tx) error {
			committing = false
			err := do(tx)
			committing = err == nil
			return err
		})
		var done doneError
		switch {
		case err == nil, errors.As(err, &done), errors.Is(err, ErrKeyReused), errors.Is(err, ErrNotFound), errors.Is(err, errKeyOfTodo):
			return err
		case isDeadlock(err) && attempt < onceAttempts:
			continue // The server has rolled back, and let the other one pass.
		case committing && mayHaveRun(err):
			return fmt.Errorf("%s: %w: commit: %w", what, ErrOutcomeUnknown, err)
		}
		return fmt.Errorf("%s: %w: %w", what, ErrUnavailable, err)
	}
}

// errKeyOfTodo says that there is a todo which was created with this key.
var errKeyOfTodo = errors.New("the key belongs to a todo")

// createOnce is Create with a key. The todo has the key as well as todo_write, because an instance of an older version looks only
// there, and so that the key is known for as long as the todo exists.
func (s *Store) createOnce(ctx context.Context, draft Draft, key string) (Todo, error) {
	k, err := newKeyed(key, http.MethodPost, 0, draft)
	if err != nil {
		return Todo{}, err
	}
	digest := draftDigest(draft)
	for range createAttempts {
		created := Todo{Status: draft.Status, Content: draft.Content}
		err := s.once(ctx, "create todo", func(tx *sql.Tx) error {
			result, err := tx.ExecContext(ctx, insertTodo, draft.Status, draft.Content, k.key, digest)
			if isDuplicate(err) {
				return errKeyOfTodo
			}
			if err != nil {
				return err
			}
			if created.ID, err = result.LastInsertId(); err != nil {
				return err
			}
			return k.remember(ctx, tx, created.ID)
		})
		var done doneError
		switch {
		case err == nil:
			return created, nil
		case errors.As(err, &done):
			created.ID = done.id
			return created, nil
		case !errors.Is(err, errKeyOfTodo):
			return Todo{}, err
		}
		existing, err := s.replay(ctx, draft, k.key, digest)
		if !errors.Is(err, ErrNotFound) {
			return existing, err
		}
	}
	return Todo{}, fmt.Errorf("create todo: %w: its key kept appearing and vanishing", ErrUnavailable)
}

// replay answers a Create whose key a todo has. It repeats the first answer, which is the draft under the id it got then.
// Errors: ErrKeyReused, ErrUnavailable, and ErrNotFound if the todo has been deleted meanwhile.
func (s *Store) replay(ctx context.Context, draft Draft, key, digest []byte) (Todo, error) {
	var id int64
	var first []byte
	err := s.db.QueryRowContext(ctx, "SELECT id, idempotency_digest FROM todo WHERE idempotency_key = ?", key).Scan(&id, &first)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return Todo{}, ErrNotFound
	case err != nil:
		return Todo{}, readError("find the todo of an idempotency key", err)
	case !bytes.Equal(first, digest):
		return Todo{}, ErrKeyReused
	}
	return Todo{ID: id, Status: draft.Status, Content: draft.Content}, nil
}

// draftDigest tells the drafts of creations apart, as newKeyed does.
func draftDigest(draft Draft) []byte {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d:%s%s", len(draft.Status), draft.Status, draft.Content))
	return sum[:]
}

// updateOnce is Update with a key.
func (s *Store) updateOnce(ctx context.Context, id int64, draft Draft, key string) (Todo, error) {
	k, err := newKeyed(key, http.MethodPut, id, draft)
	if err != nil {
		return Todo{}, err
	}
	err = s.once(ctx, "update todo", func(tx *sql.Tx) error {
		if err := k.remember(ctx, tx, id); err != nil {
			return err
		}
		result, err := tx.ExecContext(ctx, updateTodo, draft.Status, draft.Content, id)
		if err != nil {
			return err
		}
		if touched, err := result.RowsAffected(); err != nil || touched > 0 {
			return err
		}
		// Nothing matched, or the connection counts changed rows and these were the same already: only looking tells.
		err = tx.QueryRowContext(ctx, "SELECT id FROM todo WHERE id = ?", id).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			return ErrNotFound
		}
		return err
	})
	if err = unlessDone(err); err != nil {
		return Todo{}, err
	}
	return Todo{ID: id, Status: draft.Status, Content: draft.Content}, nil
}

// deleteOnce is Delete with a key.
func (s *Store) deleteOnce(ctx context.Context, id int64, key string) error {
	k, err := newKeyed(key, http.MethodDelete, id, Draft{})
	if err != nil {
		return err
	}
	return unlessDone(s.once(ctx, "delete todo", func(tx *sql.Tx) error {
		if err := k.remember(ctx, tx, id); err != nil {
			return err
		}
		result, err := tx.ExecContext(ctx, deleteTodo, id)
		if err != nil {
			return err
		}
		if gone, err := result.RowsAffected(); err != nil || gone > 0 {
			return err
		}
		return ErrNotFound
	}))
}

// unlessDone is nil for a write that was done before.
func unlessDone(err error) error {
	if errors.As(err, new(doneError)) {
		return nil
	}
	return err
}

// Forget deletes keys that are older than KeyMemory, a limited number at once. It reports whether there may be more. Call it now and
// then, from as many instances as you like.
//
// Errors: ErrUnavailable.
func (s *Store) Forget(ctx context.Context) (more bool, err error) {
	result, err := s.db.ExecContext(ctx,
		"DELETE FROM todo_write WHERE created_at < UTC_TIMESTAMP() - INTERVAL ? SECOND ORDER BY created_at LIMIT ?",
		int(KeyMemory.Seconds()), forgetAtOnce)
	if err != nil {
		return false, fmt.Errorf("forget old idempotency keys: %w: %w", ErrUnavailable, err)
	}
	forgotten, err := result.RowsAffected()
	return forgotten == forgetAtOnce, err
}
