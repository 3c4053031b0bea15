package discovery

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errBroken = errors.New("broken on purpose")

// at makes passing instances.
func at(addrs ...string) []Instance {
	all := []Instance{}
	for _, a := range addrs {
		all = append(all, Instance{Addr: a, Health: Passing})
	}
	sortInstances(all)
	return all
}

func many(n int) []Instance {
	all := make([]Instance, n)
	for i := range all {
		all[i] = Instance{Addr: fmt.Sprintf("10.0.%d.%d:80", i/256, i%256), Health: Passing}
	}
	sortInstances(all)
	return all
}

// newWatch makes a watch without an agent: tests put their own askAPI and askDNS into it, or call take.
func newWatch(t testing.TB, cfg Config, all ...Instance) *Watch {
	t.Helper()
	w, err := NewWatch(cfg, "todo")
	if err != nil {
		t.Fatal(err)
	}
	if all != nil {
		w.take(FromAPI, all, nil)
	}
	return w
}

// run starts what ends with the test, and fails the test if it does not end within a second.
func run(t *testing.T, f func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run ended with %v", err)
			}
			done <- nil
		case <-time.After(time.Second):
			t.Error("Run did not end within a second")
		}
	}
	t.Cleanup(stop)
	return stop
}

func hostOf(s *httptest.Server) string { return strings.TrimPrefix(s.URL, "http://") }

func addrs(all []Instance) string {
	var list []string
	for _, i := range all {
		list = append(list, i.Addr)
	}
	return strings.Join(list, " ")
}
