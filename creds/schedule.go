package creds

import "time"

// Every rule of timing is a pure function of what was granted, what is left, and a random number in [0, 1).

const (
	// firstRetry is the wait after a first failure; it doubles from there.
	firstRetry = 100 * time.Millisecond
	// calmRetry caps the wait while there is much left to lose nothing with.
	calmRetry = 30 * time.Second
	// urgentRetry caps the wait once the lease has ended or there is none: Vault is then asked about its health only, which is
	// cheap, and a current lease follows within two seconds of its answer.
	urgentRetry = time.Second
)

// renewDelay is when to renew something granted for ttl: after between a half and two thirds of it. The spread keeps
// instances that started together from asking together, and the last third is left for retries.
func renewDelay(ttl time.Duration, random float64) time.Duration {
	return ttl/2 + time.Duration(float64(ttl)/6*random)
}

// capped reports whether a renewal was cut short by a maximum, so that the next one cannot help and a
// replacement is due.
func capped(granted, nominal time.Duration) bool {
	return granted < nominal-nominal/10
}

// retryDelay is how long to wait after the n-th failure in a row (from 1), with this much time left before something is lost.
// At least four more tries fit into what is left.
func retryDelay(n int, left time.Duration, random float64) time.Duration {
	limit := urgentRetry
	if left > 0 {
		limit = min(max(left/5, urgentRetry/4), calmRetry)
	}
	delay := limit
	if n < 16 {
		delay = min(firstRetry<<(n-1), limit)
	}
	return delay/2 + time.Duration(float64(delay)/2*random)
}

// overdue reports whether a renewal should have succeeded by now: five sixths of the time granted have gone, which
// leaves out a single failure such as an orderly failover of Vault.
func overdue(now time.Time, g grant) bool {
	return now.After(g.issued.Add(g.ttl - g.ttl/6))
}
