package creds

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// txAttempts bounds how often InTx runs one transaction.
const txAttempts = 5

// InTx runs fn in a transaction and commits it. A transaction whose credentials were revoked was never committed, so it is
// run again from the start, at most five times: fn must therefore have no effect outside its transaction that
// it cannot have twice. Any other error of fn rolls back and is returned as it is. A commit whose
// connection was lost has an unknown outcome; its error is returned and not retried.
func InTx(ctx context.Context, db *sql.DB, opts *sql.TxOptions, fn func(*sql.Tx) error) error {
	for attempt := 1; ; attempt++ {
		err := once(ctx, db, opts, fn)
		if !errors.Is(err, ErrRevoked) || attempt == txAttempts {
			return err
		}
	}
}

func once(ctx context.Context, db *sql.DB, opts *sql.TxOptions, fn func(*sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, opts)
	if err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it has nothing to do, and a panic of fn must not keep the session
	if err := fn(tx); err != nil {
		return err
	}
	return tx.Commit()
}
