package discovery

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"example.com/todo/internal/labtest"
)

// fakeAgent keeps what is registered with it, as far as a Registration looks.
type fakeAgent struct {
	*httptest.Server
	mu        sync.Mutex
	services  map[string]api.AgentServiceRegistration
	checks    map[string]map[string]string // "Status", "Notes"
	away      bool
	calls     []string
	initially []string // the status of each registration's check
}

func newFakeAgent(t *testing.T) *fakeAgent {
	f := &fakeAgent{}
	f.forget()
	f.Server = serve(t, func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.away {
			panic(http.ErrAbortHandler)
		}
		f.calls = append(f.calls, r.Method+" "+r.URL.Path)
		f.answer(w, r)
	})
	return f
}

func (f *fakeAgent) answer(w http.ResponseWriter, r *http.Request) {
	dir, id, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/agent/"), "/")
	verb, rest, _ := strings.Cut(id, "/")
	if s, ok := f.services[id]; r.Method == "GET" && dir == "service" && ok {
		_ = json.NewEncoder(w).Encode(map[string]any{"ID": s.ID, "Service": s.Name, "Address": s.Address, "Port": s.Port, "Meta": s.Meta, "Tags": s.Tags})
		return
	}
	_, known := f.services[rest]
	switch {
	case r.Method == "GET" && dir == "checks":
		_ = json.NewEncoder(w).Encode(f.checks)
	case r.Method == "PUT" && verb == "register":
		var s api.AgentServiceRegistration
		_ = json.NewDecoder(r.Body).Decode(&s)
		f.services[s.ID] = s
		f.initially = append(f.initially, s.Check.Status)
		if f.checks[s.Check.CheckID] == nil {
			f.checks[s.Check.CheckID] = map[string]string{"Status": s.Check.Status}
		}
	case r.Method == "PUT" && verb == "deregister" && known:
		delete(f.services, rest)
		clear(f.checks)
	case r.Method == "PUT" && verb == "maintenance" && known:
		delete(f.checks, serviceMaintenance+rest)
		if r.URL.Query().Get("enable") == "true" {
			f.checks[serviceMaintenance+rest] = map[string]string{"Status": "critical", "Notes": r.URL.Query().Get("reason")}
		}
	default:
		http.Error(w, "Unknown service ID", http.StatusNotFound)
	}
}

func (f *fakeAgent) forget() {
	f.services = make(map[string]api.AgentServiceRegistration)
	f.checks = make(map[string]map[string]string)
}

func (f *fakeAgent) with(change func(f *fakeAgent)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// writes counts the calls that change something.
func (f *fakeAgent) writes() (n int) {
	f.with(func(f *fakeAgent) {
		for _, c := range f.calls {
			if strings.HasPrefix(c, "PUT") {
				n++
			}
		}
	})
	return n
}

func (f *fakeAgent) has(id string) (there bool) {
	f.with(func(f *fakeAgent) { _, there = f.services[id] })
	return there
}

func newRegistration(t *testing.T, f *fakeAgent, change func(*Service)) *Registration {
	t.Helper()
	health := serve(t, func(http.ResponseWriter, *http.Request) {})
	s := Service{Name: "todo", ID: "todo-1", Address: "10.0.0.1", Port: 80, Meta: map[string]string{"version": "3"}, HealthURL: health.URL}
	if change != nil {
		change(&s)
	}
	r, err := NewRegistration(Config{Agent: f.URL}, s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func verify(t *testing.T, r *Registration) {
	t.Helper()
	if err := r.verify(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestRegistration_TellsConsulTheWholeDefinition(t *testing.T) {
	f := newFakeAgent(t)
	r := newRegistration(t, f, func(s *Service) { s.HealthURL = "" })
	r.probe.Timeout = time.Millisecond // 10.0.0.1 is nobody
	verify(t, r)
	got := f.services["todo-1"]
	if got.Name != "todo" || got.Address != "10.0.0.1" || got.Port != 80 || !maps.Equal(got.Meta, map[string]string{"version": "3"}) {
		t.Errorf("got %+v", got)
	}
	want := api.AgentServiceCheck{CheckID: "service:todo-1", Name: "todo answers", HTTP: "http://10.0.0.1:80/health", Interval: "5s", Timeout: "2s",
		Status: "critical", DeregisterCriticalServiceAfter: "10m0s"}
	if fmt.Sprintf("%+v", *got.Check) != fmt.Sprintf("%+v", want) {
		t.Errorf("got check %+v, want %+v", *got.Check, want)
	}
}

func TestRegistration_ChangesNothingThatIsAsItShouldBe(t *testing.T) {
	f := newFakeAgent(t)
	r := newRegistration(t, f, nil)
	for range 5 {
		verify(t, r)
	}
	if n := f.writes(); n != 1 {
		t.Errorf("wrote %d times: %s", n, f.calls)
	}
	if s := r.Status(); !s.Registered || s.Health != Passing {
		t.Errorf("status is %+v", s)
	}
}

func TestRegistration_BeginsWithTheHealthThatItsCheckWillFind(t *testing.T) {
	for code, want := range map[int]string{200: "passing", 204: "passing", 429: "warning", 503: "critical", 404: "critical", 0: "critical"} {
		f := newFakeAgent(t)
		health := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			if code == 0 {
				panic(http.ErrAbortHandler)
			}
			w.WriteHeader(code)
		})
		verify(t, newRegistration(t, f, func(s *Service) { s.HealthURL = health.URL }))
		if len(f.initially) != 1 || f.initially[0] != want {
			t.Errorf("with /health at %d registered as %s", code, f.initially)
		}
	}
}

func TestRegistration_ComesBackWhateverTheAgentForgot(t *testing.T) {
	for name, fault := range map[string]func(f *fakeAgent){
		"everything": (*fakeAgent).forget,
		"the check":  func(f *fakeAgent) { clear(f.checks) },
		"the meta": func(f *fakeAgent) {
			s := f.services["todo-1"]
			s.Meta = nil
			f.services["todo-1"] = s
		},
	} {
		f := newFakeAgent(t)
		r := newRegistration(t, f, nil)
		verify(t, r)
		f.with(fault)
		verify(t, r)
		if s := f.services["todo-1"]; s.Meta["version"] != "3" || f.checks["service:todo-1"]["Status"] != "passing" {
			t.Errorf("after the agent forgot %s it has %+v, %v", name, s, f.checks)
		}
		if n := f.writes(); n != 2 {
			t.Errorf("after the agent forgot %s: %d writes", name, n)
		}
	}
}

func TestRegistration_WaitsForAnAgentAndComesBackWithIt(t *testing.T) {
	f := newFakeAgent(t)
	f.away = true
	r := newRegistration(t, f, nil)
	stop := run(t, r.Run)
	labtest.Eventually(t, 5*time.Second, "the failure is known", func() bool { return r.Status().LastError != "" })
	f.with(func(f *fakeAgent) { f.away = false })
	labtest.Eventually(t, 10*time.Second, "registered", func() bool { return r.Status().Registered && f.has("todo-1") })
	f.with(func(f *fakeAgent) { f.away = true; f.forget() })
	labtest.Eventually(t, 10*time.Second, "the agent's absence is noticed", func() bool { return !r.Status().Registered })
	f.with(func(f *fakeAgent) { f.away = false })
	labtest.Eventually(t, 10*time.Second, "registered again", func() bool { return f.has("todo-1") })
	stop()
	if !f.has("todo-1") {
		t.Error("the end of Run deregistered the service")
	}
}

// TestRegistration_TriesAgainEverLaterButNeverMuchLater lets an agent be away for an hour: when it returns, so does the service, soon.
func TestRegistration_TriesAgainEverLaterButNeverMuchLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Nobody listens at port 1, so each try ends at once, in no time of the test's clock.
		r, err := NewRegistration(Config{Agent: "127.0.0.1:1"}, Service{Name: "todo", ID: "todo-1", Address: "10.0.0.1", Port: 80})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var tries []time.Time
		watching := make(chan struct{})
		go func() {
			defer close(watching)
			for ctx.Err() == nil {
				if at := r.Status().LastErrorAt; !at.IsZero() && (len(tries) == 0 || !at.Equal(tries[len(tries)-1])) {
					tries = append(tries, at)
				}
				time.Sleep(firstRetry / 10)
			}
		}()
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
		<-watching
		first, longest := tries[1].Sub(tries[0]), time.Duration(0)
		for n := range tries[1:] {
			longest = max(longest, tries[n+1].Sub(tries[n]))
		}
		if first > firstRetry || longest > verifyEvery || longest < verifyEvery*3/4 {
			t.Errorf("%d tries in an hour, the second after %v, the longest pause %v; want at most %v and about %v", len(tries), first, longest, firstRetry, verifyEvery)
		}
	})
}

func TestRegistration_LeavesAndStaysAway(t *testing.T) {
	f := newFakeAgent(t)
	r := newRegistration(t, f, nil)
	done := make(chan error, 1)
	go func() { done <- r.Run(t.Context()) }()
	labtest.Eventually(t, 5*time.Second, "registered", func() bool { return f.has("todo-1") })
	if err := r.Deregister(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Second):
		t.Error("Run goes on after Deregister")
	}
	verify(t, r)
	if f.has("todo-1") || r.Status().Registered {
		t.Error("it came back")
	}
	if err := r.Deregister(t.Context()); err != nil {
		t.Errorf("the second time: %v", err)
	}
}

func TestRegistration_IsNotHeldUpByAnAgentThatDoesNotAnswer(t *testing.T) {
	s := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	r := newRegistration(t, &fakeAgent{Server: s}, nil)
	began := time.Now()
	err := r.Deregister(t.Context())
	if took := time.Since(began); err == nil || took > deregisterTimeout+500*time.Millisecond {
		t.Errorf("after %s: %v", took, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	for name, call := range map[string]func() error{
		"Deregister":  func() error { return r.Deregister(ctx) },
		"Maintenance": func() error { return r.Maintenance(ctx, true, "") },
	} {
		began := time.Now()
		if err := call(); err == nil || time.Since(began) > time.Second {
			t.Errorf("%s after %s: %v", name, time.Since(began), err)
		}
	}
}

func TestRegistration_LeavesAloneWhatAnotherProcessRegistered(t *testing.T) {
	f := newFakeAgent(t)
	old := newRegistration(t, f, nil)
	young := newRegistration(t, f, func(s *Service) { s.Port = 81 })
	verify(t, old)
	verify(t, young)
	if err := old.verify(t.Context()); err == nil || !strings.Contains(err.Error(), "10.0.0.1:81") {
		t.Errorf("got %v", err)
	}
	if err := old.Deregister(t.Context()); err != nil {
		t.Error(err)
	}
	if f.services["todo-1"].Port != 81 {
		t.Error("the younger one's entry is gone or changed")
	}
	// A process that starts takes the place of one that did not leave.
	verify(t, newRegistration(t, f, func(s *Service) { s.Port = 82 }))
	if f.services["todo-1"].Port != 82 {
		t.Error("a process that starts does not register")
	}
}

func TestRegistration_RestoresItsMaintenance(t *testing.T) {
	f := newFakeAgent(t)
	r := newRegistration(t, f, nil)
	verify(t, r)
	operator := newRegistration(t, f, nil) // another process, which only says so
	if err := operator.Maintenance(t.Context(), true, "deploy"); err != nil {
		t.Fatal(err)
	}
	verify(t, r)
	if s := r.Status(); !s.Registered || s.Health != Maintenance || s.Reason != "deploy" {
		t.Errorf("status is %+v", s)
	}
	f.with((*fakeAgent).forget)
	verify(t, r)
	if f.checks[serviceMaintenance+"todo-1"]["Notes"] != "deploy" || f.initially[1] != "critical" {
		t.Errorf("restored as %v, registered as %v", f.checks, f.initially)
	}
	if err := operator.Maintenance(t.Context(), false, ""); err != nil {
		t.Fatal(err)
	}
	verify(t, r)
	f.with((*fakeAgent).forget)
	verify(t, r)
	if s := r.Status(); s.Health != Passing || f.initially[2] != "passing" {
		t.Errorf("status is %+v, registered as %v", s, f.initially)
	}
}

func TestRegistration_SaysThatMaintenanceNeedsAService(t *testing.T) {
	r := newRegistration(t, newFakeAgent(t), nil)
	if err := r.Maintenance(t.Context(), true, ""); err == nil || !strings.Contains(err.Error(), "Unknown service") {
		t.Errorf("got %v", err)
	}
}

func TestRegistration_SurvivesGarbledAnswers(t *testing.T) {
	for _, body := range []string{"", "null", "[]", "{", `{"Port":"x"}`, "\x00", "{}"} {
		s := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) })
		r := newRegistration(t, &fakeAgent{Server: s}, nil)
		_ = r.verify(t.Context())
		_ = r.verify(t.Context())
		_ = r.Deregister(t.Context())
	}
}

func TestNewRegistration_SaysWhatIsWrong(t *testing.T) {
	good := Service{Name: "todo", ID: "todo-1", Address: "10.0.0.1", Port: 80}
	if _, err := NewRegistration(Config{}, good); err != nil {
		t.Error(err)
	}
	for _, change := range []func(s *Service){
		func(s *Service) { s.Name = "" },
		func(s *Service) { s.ID = "a/b" },
		func(s *Service) { s.ID = "" },
		func(s *Service) { s.Address = "" },
		func(s *Service) { s.Port = 0 },
		func(s *Service) { s.HealthURL = "localhost/health" },
		func(s *Service) { s.Interval = time.Millisecond },
		func(s *Service) { s.Timeout = -1 },
		func(s *Service) { s.DeregisterAfter = time.Second },
	} {
		bad := good
		change(&bad)
		if _, err := NewRegistration(Config{}, bad); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}
