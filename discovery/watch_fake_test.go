package discovery

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeConsul answers as a catalogue does, in a synctest bubble: a query with the current index blocks until there is news.
type fakeConsul struct {
	mu      sync.Mutex
	all     []Instance
	index   uint64
	apiErr  error
	dnsErr  error
	news    chan struct{}
	queries []uint64 // the index of each API query
	asked   int      // DNS questions
}

func newFakeConsul(all ...Instance) *fakeConsul {
	return &fakeConsul{all: all, index: 10, news: make(chan struct{})}
}

func (f *fakeConsul) set(change func(f *fakeConsul)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index++
	change(f)
	close(f.news)
	f.news = make(chan struct{})
}

func (f *fakeConsul) api(ctx context.Context, index uint64, wait time.Duration) (answer, error) {
	f.mu.Lock()
	f.queries = append(f.queries, index)
	f.mu.Unlock()
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	for {
		f.mu.Lock()
		a, err, news := answer{all: f.all, index: f.index}, f.apiErr, f.news
		f.mu.Unlock()
		if err != nil {
			return answer{}, err
		}
		if index == 0 || a.index != index {
			return a, nil
		}
		select {
		case <-news:
		case <-timeout.C:
			return a, nil
		case <-ctx.Done():
			return answer{}, ctx.Err()
		}
	}
}

func (f *fakeConsul) dns(context.Context) ([]Instance, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	if f.dnsErr != nil {
		return nil, f.dnsErr
	}
	return f.all, nil
}

// count is how often the API was asked.
func (f *fakeConsul) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.queries)
}

// follow runs a watch of f for the length of a bubble.
func follow(t *testing.T, f *fakeConsul, cfg Config) *Watch {
	w := newWatch(t, cfg)
	w.askAPI, w.askDNS = f.api, f.dns
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		began := time.Now()
		cancel()
		<-done
		if took := time.Since(began); took > 0 {
			t.Errorf("Run took %s to end", took)
		}
	})
	return w
}

func expect(t *testing.T, w *Watch, source Source, want string) {
	t.Helper()
	synctest.Wait()
	all, err := w.Instances(t.Context())
	if err != nil && !errors.Is(err, ErrNoInstances) {
		t.Fatal(err)
	}
	if got := addrs(all); got != want || w.Status().Source != source {
		t.Errorf("got %q from %q, want %q from %q; %+v", got, w.Status().Source, want, source, w.Status())
	}
}
