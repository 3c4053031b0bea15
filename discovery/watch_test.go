package discovery

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestWatch_SeesAChangeWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeConsul(at("a:1")...)
		w := follow(t, f, Config{})
		expect(t, w, FromAPI, "a:1")
		for n := range 20 { // also when changes come one upon another
			f.set(func(f *fakeConsul) { f.all = at(fmt.Sprintf("b:%d", n+1)) })
			time.Sleep(minGap)
			expect(t, w, FromAPI, fmt.Sprintf("b:%d", n+1))
		}
	})
}

func TestWatch_BlocksInsteadOfPolling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeConsul(at("a:1")...)
		w := follow(t, f, Config{})
		time.Sleep(time.Hour)
		expect(t, w, FromAPI, "a:1")
		if n := f.count(); n > 125 {
			t.Errorf("%d queries in an hour in which nothing changed", n)
		}
		if f.asked > 0 {
			t.Errorf("asked DNS %d times although the API answers", f.asked)
		}
	})
}

func TestWatch_BoundsItsQueriesHoweverOftenTheCatalogueChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeConsul(at("a:1")...)
		follow(t, f, Config{})
		for range 10_000 {
			f.set(func(*fakeConsul) {})
			time.Sleep(time.Millisecond)
		}
		if n := f.count(); n > 110 {
			t.Errorf("%d queries in 10 s", n)
		}
	})
}

func TestWatch_BoundsItsQueriesToAnAPIWithoutIndex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeConsul(at("a:1")...)
		w := follow(t, f, Config{})
		synctest.Wait()
		f.set(func(f *fakeConsul) { f.index = 0 })
		time.Sleep(10 * time.Second)
		n := f.count()
		f.mu.Lock()
		f.all = at("b:1") // without telling anybody
		f.mu.Unlock()
		if n > 50 {
			t.Errorf("%d queries in 10 s", n)
		}
		time.Sleep(DefaultPoll)
		expect(t, w, FromAPI, "b:1")
	})
}

func TestWatch_BeginsAnewWhenTheIndexGoesBackwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeConsul(at("a:1")...)
		f.index = 1000
		w := follow(t, f, Config{})
		expect(t, w, FromAPI, "a:1")
		f.set(func(f *fakeConsul) { f.index, f.all = 5, at("b:1") })
		time.Sleep(3 * minGap)
		expect(t, w, FromAPI, "b:1")
		f.mu.Lock()
		last := f.queries[len(f.queries)-2:]
		f.mu.Unlock()
		if last[0] != 0 || last[1] != 5 {
			t.Errorf("after the index went back to 5 the queries had %d", last)
		}
	})
}

func TestNextIndex_NeverKeepsOneThatWentBackwards(t *testing.T) {
	for _, c := range []struct{ last, got, want uint64 }{{0, 0, 0}, {0, 7, 7}, {7, 7, 7}, {7, 8, 8}, {8, 7, 0}, {8, 0, 0}, {8, 1, 0}} {
		if got := nextIndex(c.last, c.got); got != c.want {
			t.Errorf("nextIndex(%d, %d) = %d, want %d", c.last, c.got, got, c.want)
		}
	}
}

func TestWatch_FallsBackToDNSAndThenToWhatItRemembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeConsul(at("a:1")...)
		w := follow(t, f, Config{})
		expect(t, w, FromAPI, "a:1")

		f.set(func(f *fakeConsul) { f.apiErr, f.all = errBroken, at("b:1") })
		time.Sleep(time.Second)
		expect(t, w, FromDNS, "b:1")
		f.set(func(f *fakeConsul) { f.all = at("c:1") })
		time.Sleep(time.Second)
		expect(t, w, FromDNS, "c:1")

		f.set(func(f *fakeConsul) { f.dnsErr = errBroken })
		time.Sleep(24 * time.Hour)
		expect(t, w, FromRemembered, "c:1")
		status := w.Status()
		if status.Age < 23*time.Hour || !strings.Contains(status.LastError, errBroken.Error()) || time.Since(status.LastErrorAt) > lastRetry {
			t.Errorf("after a day without Consul the status is %+v", status)
		}

		f.set(func(f *fakeConsul) { f.apiErr, f.dnsErr, f.all = nil, nil, at("d:1") })
		time.Sleep(lastRetry)
		expect(t, w, FromAPI, "d:1")
		if age := w.Status().Age; age > lastRetry {
			t.Errorf("age is %s", age)
		}
	})
}

func TestWatch_AsksOnlyWhereItsModeAllows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeConsul(at("a:1")...)
		w := follow(t, f, Config{Mode: DNS})
		expect(t, w, FromDNS, "a:1")
		f.set(func(f *fakeConsul) { f.all = at("b:1") })
		time.Sleep(time.Second)
		expect(t, w, FromDNS, "b:1")
		if n := f.count(); n > 0 {
			t.Errorf("asked the API %d times", n)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		f := newFakeConsul(at("a:1")...)
		w := follow(t, f, Config{Mode: API})
		expect(t, w, FromAPI, "a:1")
		f.set(func(f *fakeConsul) { f.apiErr, f.all = errBroken, at("b:1") })
		time.Sleep(time.Minute)
		expect(t, w, FromRemembered, "a:1")
		if f.asked > 0 {
			t.Errorf("asked DNS %d times", f.asked)
		}
	})
}

func TestWatch_DoesNotBelieveAtOnceThatAllInstancesAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeConsul(at("a:1", "b:1")...)
		w := follow(t, f, Config{})
		expect(t, w, FromAPI, "a:1 b:1")
		f.set(func(f *fakeConsul) { f.all = []Instance{} }) // as from a Consul that lost its state
		time.Sleep(DefaultHoldEmpty - time.Second)
		expect(t, w, FromRemembered, "a:1 b:1")
		f.set(func(f *fakeConsul) { f.all = at("b:1") })
		time.Sleep(minGap)
		expect(t, w, FromAPI, "b:1")

		f.set(func(f *fakeConsul) { f.all = []Instance{{Addr: "b:1", Health: Critical}} })
		time.Sleep(DefaultHoldEmpty - time.Second)
		expect(t, w, FromRemembered, "b:1")
		time.Sleep(3 * time.Second)
		expect(t, w, FromAPI, "")
		if _, err := w.Pick(); !errors.Is(err, ErrNoInstances) {
			t.Errorf("Pick gives %v", err)
		}
		if !w.Keep("b:1") {
			t.Error("a connection is given up although nothing better is known")
		}
		n := f.count()
		time.Sleep(time.Hour)
		if n = f.count() - n; n > 125 {
			t.Errorf("%d queries in an hour in which nothing changed", n)
		}
	})
}

func TestWatch_BelievesAnEmptyCatalogueAtTheFirstAnswerAfterItsTime(t *testing.T) {
	for offset := range 30 { // so that the time ends in all of the watch's states, between two queries too
		synctest.Test(t, func(t *testing.T) {
			f := newFakeConsul(at("a:1")...)
			w := follow(t, f, Config{HoldEmpty: 10 * time.Second})
			expect(t, w, FromAPI, "a:1")
			time.Sleep(time.Minute)
			f.set(func(f *fakeConsul) { f.all = []Instance{} })
			time.Sleep(9680*time.Millisecond + time.Duration(offset)*10*time.Millisecond)
			f.set(func(*fakeConsul) {}) // ends the query that blocks
			time.Sleep(minGap / 8)
			f.set(func(*fakeConsul) {}) // and the next, which has to be followed by a pause
			expect(t, w, FromRemembered, "a:1")
			time.Sleep(2 * time.Second)
			expect(t, w, FromAPI, "")
		})
	}
}

func TestWatch_BelievesAnEmptyCatalogueOnlyIfItSaysSoWithoutAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeConsul(at("a:1")...)
		w := follow(t, f, Config{})
		expect(t, w, FromAPI, "a:1")
		f.set(func(f *fakeConsul) { f.all = []Instance{} })
		time.Sleep(DefaultHoldEmpty / 2)
		f.set(func(f *fakeConsul) { f.apiErr, f.dnsErr = errBroken, errBroken })
		time.Sleep(DefaultHoldEmpty)
		f.set(func(f *fakeConsul) { f.apiErr = nil })
		time.Sleep(DefaultHoldEmpty - lastRetry - time.Second)
		expect(t, w, FromRemembered, "a:1")
	})
}

func TestWatch_NeverGivesOutWhatIsInMaintenance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeConsul(at("a:1", "b:1")...)
		w := follow(t, f, Config{})
		expect(t, w, FromAPI, "a:1 b:1")
		f.set(func(f *fakeConsul) {
			f.all = []Instance{{Addr: "a:1", Health: Maintenance}, {Addr: "b:1", Health: Critical}}
		})
		time.Sleep(minGap)
		expect(t, w, FromRemembered, "b:1")
		f.set(func(f *fakeConsul) {
			f.all = []Instance{{Addr: "a:1", Health: Maintenance}, {Addr: "b:1", Health: Maintenance}}
		})
		time.Sleep(minGap)
		expect(t, w, FromAPI, "")
	})
}

func TestWatch_WaitsForTheFirstAnswerAndForNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeConsul(at("a:1")...)
		f.apiErr, f.dnsErr = errBroken, errBroken
		w := follow(t, f, Config{})
		if _, err := w.Pick(); !errors.Is(err, ErrNoAnswer) {
			t.Errorf("Pick gives %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := w.Instances(ctx)
		if !errors.Is(err, ErrNoAnswer) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), errBroken.Error()) {
			t.Errorf("got %v", err)
		}
		go func() {
			time.Sleep(time.Minute)
			f.set(func(f *fakeConsul) { f.apiErr = nil })
		}()
		began := time.Now()
		if all, err := w.Instances(t.Context()); err != nil || addrs(all) != "a:1" {
			t.Errorf("got %v, %v", all, err)
		}
		if took := time.Since(began); took < time.Minute || took > time.Minute+lastRetry {
			t.Errorf("took %s", took)
		}
		f.set(func(f *fakeConsul) { f.apiErr = errBroken })
		cancel()
		if all, err := w.Instances(ctx); err != nil || addrs(all) != "a:1" {
			t.Errorf("with an ended context and an answer in memory: %v, %v", all, err)
		}
	})
}

func TestWatch_TellsOfChangesAndOnlyOfChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeConsul(at("a:1", "b:1")...)
		w := follow(t, f, Config{})
		synctest.Wait()
		changed := w.Changed()
		f.set(func(*fakeConsul) {})
		time.Sleep(10 * time.Minute)
		select {
		case <-changed:
			t.Error("told of a change although there was none")
		default:
		}
		if !w.Keep("a:1") {
			t.Error("a place that is in the catalogue is not kept")
		}
		f.set(func(f *fakeConsul) { f.all = at("b:1") })
		<-changed
		if w.Keep("a:1") || !w.Keep("b:1") {
			t.Error("a place that left is kept, or one that stayed is not")
		}
	})
}

func TestWatch_RunsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := follow(t, newFakeConsul(at("a:1")...), Config{})
		synctest.Wait()
		if err := w.Run(t.Context()); err == nil {
			t.Error("a second Run is allowed")
		}
	})
}

func TestWatch_ServesATruncatedDNSAnswerAndSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatch(t, Config{Mode: DNS})
		w.askDNS = func(context.Context) ([]Instance, error) { return at("a:1"), errTruncated }
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go w.Run(ctx)
		expect(t, w, FromDNS, "a:1")
		if w.Status().LastError != errTruncated.Error() {
			t.Errorf("status is %+v", w.Status())
		}
	})
}

func TestPick_SpreadsEvenlyAndAllocatesNothing(t *testing.T) {
	for _, n := range []int{1, 10, 1000} {
		w := newWatch(t, Config{}, many(n)...)
		counts := make(map[string]int)
		for range 10 * n {
			i, err := w.Pick()
			if err != nil {
				t.Fatal(err)
			}
			counts[i.Addr]++
		}
		for addr, got := range counts {
			if got != 10 {
				t.Errorf("%d instances: %s was picked %d times of %d", n, addr, got, 10*n)
			}
		}
		if allocs := testing.AllocsPerRun(100, func() { _, _ = w.Pick() }); allocs != 0 {
			t.Errorf("%d instances: Pick allocates %v times", n, allocs)
		}
		if allocs := testing.AllocsPerRun(100, func() { w.Keep("10.0.0.1:80") }); allocs != 0 {
			t.Errorf("%d instances: Keep allocates %v times", n, allocs)
		}
	}
	empty := newWatch(t, Config{})
	if allocs := testing.AllocsPerRun(100, func() { _, _ = empty.Pick() }); allocs != 0 {
		t.Errorf("Pick without an answer allocates %v times", allocs)
	}
}

func TestWatch_MayBeUsedByAllAtOnce(t *testing.T) {
	w := newWatch(t, Config{})
	var calls atomic.Int64
	w.askAPI = func(ctx context.Context, _ uint64, _ time.Duration) (answer, error) {
		n := calls.Add(1)
		return answer{all: many(int(n%5 + 1)), index: uint64(n)}, nil
	}
	stop := run(t, w.Run)
	var users sync.WaitGroup
	for range 8 {
		users.Go(func() {
			for range 2000 {
				if _, err := w.Instances(t.Context()); err != nil {
					t.Error(err)
				}
				_, _ = w.Pick()
				w.Keep("10.0.0.1:80")
				_ = w.Status()
				_ = w.Changed()
			}
		})
	}
	users.Wait()
	stop()
}
