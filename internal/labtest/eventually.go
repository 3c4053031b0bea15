package labtest

import (
	"testing"
	"time"
)

// Eventually waits in real time until a condition holds, and fails the test if it does not within the limit. It returns how long it
// took. Call it from the test's own goroutine.
func Eventually(t testing.TB, limit time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	const every = 10 * time.Millisecond
	began := time.Now()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for !ok() {
		if time.Since(began) > limit {
			t.Fatalf("not within %v: %s", limit, what)
		}
		<-tick.C
	}
	return time.Since(began)
}
