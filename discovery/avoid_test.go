package discovery

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestAvoidance_DoublesWithFailuresInARowAndEndsWithSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a avoidance
		for round := range 2 {
			for _, want := range []time.Duration{1, 2, 4, 8, 16, 16} {
				want *= firstAvoid
				for range 50 { // Requests that fail together are one failure.
					a.failed("a:1", 0)
				}
				time.Sleep(want - 1)
				if !a.avoids("a:1") || a.avoids("b:1") {
					t.Errorf("round %d: not avoided for %s, or another is", round, want)
				}
				time.Sleep(2 * time.Nanosecond)
				if a.avoids("a:1") {
					t.Errorf("round %d: avoided for more than %s", round, want)
				}
			}
			a.worked("a:1")
			if a.count.Load() != 0 {
				t.Error("a success is not the end of it")
			}
		}
	})
}

func TestAvoidance_HonoursARequestForRestWithinReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a avoidance
		a.failed("a:1", 2*time.Second)
		a.failed("b:1", time.Hour)
		a.closing("c:1")
		time.Sleep(2*time.Second - 1)
		if !a.avoids("a:1") || !a.avoids("c:1") {
			t.Error("not left in peace as asked")
		}
		time.Sleep(2 * time.Nanosecond)
		if a.avoids("a:1") || a.avoids("c:1") {
			t.Error("avoided for too long")
		}
		time.Sleep(lastAvoid)
		if a.avoids("b:1") {
			t.Error("one answer puts an instance out of use for an hour")
		}
	})
}

func TestAvoidance_ForgetsInstancesThatAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a avoidance
		for n := range 1000 {
			a.failed(fmt.Sprintf("a:%d", n), 0)
			time.Sleep(time.Second)
		}
		if n := a.count.Load(); n > 100 {
			t.Errorf("%d marks", n)
		}
	})
}
