package creds

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"database/sql/driver"

	"github.com/go-sql-driver/mysql"
)

// Access-denied errors of MySQL and MariaDB. The server checks privileges before it runs a statement, so each of them
// proves that nothing was executed. Source: the servers' error references (ER_DBACCESS_DENIED_ERROR and others).
const (
	errDBAccessDenied        = 1044
	errAccessDenied          = 1045
	errTableAccessDenied     = 1142
	errColumnAccessDenied    = 1143
	errSpecificAccessDenied  = 1227
	errProcAccessDenied      = 1370
	errAccessDeniedNoPass    = 1698
	errNonexistingGrant      = 1141
	errAccountLocked         = 3118
	errMariaDBAccountLocked  = 4151
	errPasswordExpired       = 1862
	judgements               = 6
	judgementPause           = 100 * time.Millisecond
	usagePrefix              = "GRANT USAGE ON "
	maxGrantRowsWorthReading = 100
)

func number(err error) uint16 {
	var me *mysql.MySQLError
	if errors.As(err, &me) {
		return me.Number
	}
	return 0
}

// denied reports whether the server refused a statement for want of privileges.
func denied(err error) bool {
	switch number(err) {
	case errDBAccessDenied, errAccessDenied, errTableAccessDenied, errColumnAccessDenied, errSpecificAccessDenied,
		errProcAccessDenied:
		return true
	}
	return false
}

// loginDenied reports whether the server refused the user itself.
func loginDenied(err error) bool {
	switch number(err) {
	case errAccessDenied, errAccessDeniedNoPass, errDBAccessDenied, errAccountLocked, errMariaDBAccountLocked, errPasswordExpired:
		return true
	}
	return false
}

// judge finds out whether a denial means that g's user was revoked, by opening a session as that user and asking
// for its grants. A user that is there and has grants lacks the one privilege and nothing else: that is the caller's
// error, and no reason for new credentials. Callers queue, and all but the first find the answer ready.
func (s *Source) judge(ctx context.Context, g *generation) (gone bool, err error) {
	select {
	case s.judging <- struct{}{}:
		defer func() { <-s.judging }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if g.ended.Load() {
		return true, nil
	}
	for n := 1; ; n++ {
		switch found, err := s.examine(ctx, g); {
		case err != nil:
			return false, err
		case found == alive:
			return false, nil
		case found == revoked, n == judgements:
			s.condemn(g, found)
			return true, nil
		}
		// Vault first takes the privileges and then drops the user. One that has just lost its privileges is most
		// likely on its way out; one that stays like that was made by a broken role.
		if err := pause(ctx, judgementPause); err != nil {
			return false, err
		}
	}
}

// examine opens a session as g's user and reads its grants.
func (s *Source) examine(ctx context.Context, g *generation) (fate, error) {
	_, in, err := s.open(ctx, g)
	if err != nil {
		if loginDenied(err) {
			return revoked, nil
		}
		return alive, err
	}
	defer in.Close() //nolint:errcheck // a session of our own, given up
	rows, err := in.QueryContext(ctx, "SHOW GRANTS", nil)
	if err != nil {
		if n := number(err); n == errNonexistingGrant || denied(err) {
			return revoked, nil
		}
		return alive, err
	}
	defer rows.Close() //nolint:errcheck // as above
	row := make([]driver.Value, len(rows.Columns()))
	for range maxGrantRowsWorthReading {
		err := rows.Next(row)
		if errors.Is(err, io.EOF) {
			return grantsMissing, nil
		}
		if err != nil {
			return alive, err
		}
		if !strings.HasPrefix(text(row[0]), usagePrefix) {
			return alive, nil
		}
	}
	return alive, nil
}

func text(v driver.Value) string {
	switch v := v.(type) {
	case []byte:
		return string(v)
	case string:
		return v
	}
	return ""
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
