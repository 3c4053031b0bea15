// Package wait asks until the answer is good: the one way in which the lab, its operator and its tests wait for
// something that happens in another process.
package wait

import (
	"context"
	"fmt"
	"time"
)

// Until asks at once and then once per interval until ask returns nil. When ctx ends first, the error names what was
// last in the way and wraps the cause of the end.
func Until(ctx context.Context, interval time.Duration, ask func(context.Context) error) error {
	var last error
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		// An answer cut short by the end of ctx says nothing about what was in the way.
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", last, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// Within is Until with a limit of its own.
func Within(ctx context.Context, limit, interval time.Duration, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, limitError(limit))
	defer cancel()
	return Until(ctx, interval, ask)
}

// limitError says which limit ended a wait; it is a deadline like any other.
type limitError time.Duration

func (e limitError) Error() string { return "gave up after " + time.Duration(e).String() }
func (e limitError) Unwrap() error { return context.DeadlineExceeded }
