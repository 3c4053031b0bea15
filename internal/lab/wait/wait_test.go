package wait_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"example.com/todo/internal/lab/wait"
)

var errNotYet = errors.New("not yet")

func TestUntil_AsksAtOnceAndThenOncePerInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, asked := time.Now(), 0
		err := wait.Until(t.Context(), time.Second, func(context.Context) error {
			if asked++; asked < 4 {
				return errNotYet
			}
			return nil
		})
		if took := time.Since(begun); err != nil || asked != 4 || took != 3*time.Second {
			t.Errorf("asked %d times in %v: %v; want 4 times in 3 s", asked, took, err)
		}
	})
}

func TestWithin_NamesWhatWasInTheWayAndTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		err := wait.Within(t.Context(), 10*time.Second, time.Second, func(ctx context.Context) error {
			if ctx.Err() != nil {
				return ctx.Err() // a call cut short says nothing
			}
			return errNotYet
		})
		if !errors.Is(err, errNotYet) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want both what was in the way and that the time was up", err)
		}
	})
}

func TestUntil_EndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if err := wait.Until(ctx, time.Hour, func(context.Context) error { return errNotYet }); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want to have been cancelled", err)
		}
	})
}
