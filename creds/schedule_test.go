package creds

import (
	"testing"
	"time"
)

func TestRenewDelay_StaysBetweenAHalfAndTwoThirds(t *testing.T) {
	for _, ttl := range []time.Duration{time.Second, 3 * time.Second, time.Minute, 768 * time.Hour} {
		for _, r := range []float64{0, 0.5, 0.999999} {
			if got := renewDelay(ttl, r); got < ttl/2 || got > ttl*2/3 {
				t.Errorf("renewDelay(%v, %v) = %v, want between %v and %v", ttl, r, got, ttl/2, ttl*2/3)
			}
		}
	}
}

func TestCapped_TellsARoundingFromAMaximum(t *testing.T) {
	for _, c := range []struct {
		granted, nominal time.Duration
		want             bool
	}{
		{60 * time.Second, 60 * time.Second, false},
		{59 * time.Second, 60 * time.Second, false},
		{54 * time.Second, 60 * time.Second, false},
		{53 * time.Second, 60 * time.Second, true},
		{0, 60 * time.Second, true},
		{2 * time.Second, 3 * time.Second, true},
	} {
		if got := capped(c.granted, c.nominal); got != c.want {
			t.Errorf("capped(%v, %v) = %v, want %v", c.granted, c.nominal, got, c.want)
		}
	}
}

func TestRetryDelay_IsPacedByWhatIsLeft(t *testing.T) {
	for _, c := range []struct {
		n        int
		left     time.Duration
		min, max time.Duration
	}{
		{1, time.Hour, firstRetry / 2, firstRetry},
		{2, time.Hour, firstRetry, 2 * firstRetry},
		{20, time.Hour, calmRetry / 2, calmRetry},
		{1000, time.Hour, calmRetry / 2, calmRetry}, // no overflow
		{20, 20 * time.Second, 2 * time.Second, 4 * time.Second},
		{20, time.Second, urgentRetry / 8, urgentRetry / 4},
		{20, 0, urgentRetry / 2, urgentRetry},
		{20, -time.Hour, urgentRetry / 2, urgentRetry},
	} {
		for _, r := range []float64{0, 0.5, 0.999999} {
			if got := retryDelay(c.n, c.left, r); got < c.min || got > c.max {
				t.Errorf("retryDelay(%d, %v, %v) = %v, want between %v and %v", c.n, c.left, r, got, c.min, c.max)
			}
		}
	}
}

func TestOverdue_BeginsAtFiveSixths(t *testing.T) {
	start := time.Unix(1000, 0)
	g := grant{issued: start, ttl: time.Minute}
	if overdue(start.Add(49*time.Second), g) {
		t.Error("overdue after 49 s of 60")
	}
	if !overdue(start.Add(51*time.Second), g) {
		t.Error("not overdue after 51 s of 60")
	}
}
