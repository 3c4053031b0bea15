package discovery_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"example.com/todo/discovery"
	"example.com/todo/internal/lab"

	"example.com/todo/internal/labtest"
)

// agentMachine has an agent that is no server, so that it can lose everything.
const agentMachine = "mysql"

type site struct{ *lab.Lab }

func (s *site) config() discovery.Config { return discovery.Config{Agent: s.Consul(agentMachine)} }

func (s *site) watch(t *testing.T, cfg discovery.Config, service string) *discovery.Watch {
	t.Helper()
	w, err := discovery.NewWatch(cfg, service)
	if err != nil {
		t.Fatal(err)
	}
	background(t, w.Run)
	return w
}

// background runs what has to end within a second of the test's end.
func background(t *testing.T, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Second):
			t.Error("Run did not end within a second")
		}
	})
}

// web is a service whose health can be set.
type web struct {
	*httptest.Server
	*discovery.Registration
	config     discovery.Config
	definition discovery.Service
	health     atomic.Int64
	addr       string
}

func (s *site) web(t *testing.T, name, id string) *web {
	t.Helper()
	w := &web{}
	w.health.Store(200)
	w.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(int(w.health.Load())) }))
	t.Cleanup(w.Server.Close)
	addr := w.Listener.Addr().(*net.TCPAddr)
	w.addr = addr.String()
	w.config = s.config()
	w.definition = discovery.Service{Name: name, ID: id, Address: addr.IP.String(), Port: addr.Port,
		Interval: time.Second, Meta: map[string]string{"version": "7"}}
	r, err := discovery.NewRegistration(w.config, w.definition)
	if err != nil {
		t.Fatal(err)
	}
	w.Registration = r
	return w
}

// registerOnce does what another process for the same service would do at its start.
func (w *web) registerOnce(t *testing.T, meta map[string]string) {
	t.Helper()
	definition := w.definition
	definition.Meta = meta
	r, err := discovery.NewRegistration(w.config, definition)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	within(t, 5*time.Second, "it is registered", func() bool { return r.Status().Registered })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// up runs the registration until the end of the test.
func (w *web) up(t *testing.T) {
	t.Cleanup(func() {
		if err := w.Deregister(context.Background()); err != nil {
			t.Error(err)
		}
	})
	background(t, w.Run)
}

// within waits for a condition and logs how long it took.
func within(t *testing.T, limit time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	took := labtest.Eventually(t, limit, what, ok)
	t.Logf("%6d ms until %s", took.Milliseconds(), what)
	return took
}

// throughout checks a condition all the time until the returned function is called.
func throughout(t *testing.T, what string, ok func() bool) (end func()) {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				if !ok() {
					t.Errorf("not always: %s", what)
					return
				}
			}
		}
	}()
	return func() { close(stop); <-done }
}

func found(w *discovery.Watch) []string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	all, _ := w.Instances(ctx)
	var list []string
	for _, i := range all {
		list = append(list, i.Addr)
	}
	return list
}

func shows(w *discovery.Watch, addrs ...string) func() bool {
	slices.Sort(addrs)
	return func() bool {
		got := found(w)
		slices.Sort(got)
		return slices.Equal(got, addrs)
	}
}
