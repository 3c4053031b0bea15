package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"example.com/todo/internal/labtest"
)

// serve starts an agent that answers as told.
func serve(t testing.TB, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

func agentAt(t *testing.T, cfg Config, s *httptest.Server) *agent {
	t.Helper()
	cfg.Agent = s.URL
	cfg, err := cfg.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAgent(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

const twoEntries = `[
 {"Node":{"Node":"n2","Address":"10.0.0.2"},"Service":{"ID":"t2","Service":"todo","Address":"","Port":81,"Tags":null,"ModifyIndex":9},
  "Checks":[{"CheckID":"serfHealth","Status":"passing"},{"CheckID":"service:t2","Status":"warning","Definition":null}]},
 {"Node":{"Node":"n1","Address":"10.0.0.1"},"Service":{"ID":"t1","Service":"todo","Address":"10.9.0.1","Port":80,"Tags":["active"],"Meta":{"version":"3"}},
  "Checks":[{"CheckID":"serfHealth","Status":"passing"}]}]`

func TestParseHealth_ReadsWhatConsulSays(t *testing.T) {
	all, err := parseHealth([]byte(twoEntries))
	if err != nil {
		t.Fatal(err)
	}
	want := []Instance{
		{Addr: "10.0.0.2:81", ID: "t2", Node: "n2", Health: Warning, index: 9},
		{Addr: "10.9.0.1:80", ID: "t1", Node: "n1", Health: Passing, Tags: []string{"active"}, Meta: map[string]string{"version": "3"}},
	}
	if len(all) != 2 || !all[0].equal(want[0]) || !all[1].equal(want[1]) {
		t.Errorf("got %+v, want %+v", all, want)
	}
}

func TestParseHealth_TakesTheWorstCheck(t *testing.T) {
	for _, c := range []struct {
		checks string
		want   Health
	}{
		{`[]`, Passing},
		{`null`, Passing},
		{`[{"Status":"passing"},{"Status":"warning"}]`, Warning},
		{`[{"Status":"critical"},{"Status":"warning"},{"Status":"passing"}]`, Critical},
		{`[{"Status":"splendid"}]`, Critical},
		{`[null]`, Critical},
		{`[{"Status":"critical"},{"CheckID":"_node_maintenance","Status":"critical"}]`, Maintenance},
		{`[{"CheckID":"_service_maintenance:t1","Status":"critical"},{"Status":"passing"}]`, Maintenance},
	} {
		all, err := parseHealth([]byte(`[{"Node":{"Address":"10.0.0.1"},"Service":{"Port":1},"Checks":` + c.checks + `}]`))
		if err != nil || len(all) != 1 || all[0].Health != c.want {
			t.Errorf("%s: got %+v, %v, want %s", c.checks, all, err, c.want)
		}
	}
}

func TestParseHealth_RefusesWhatIsNoList(t *testing.T) {
	for _, body := range []string{"", "null", "{}", `"x"`, "[", `[{}`, `[{"Service":[]}]`, `[{"Service":{"Port":"80"}}]`, `[{}}`, `[1]`, "\x00"} {
		if all, err := parseHealth([]byte(body)); err == nil {
			t.Errorf("%q is taken for %v", body, all)
		}
	}
	if all, err := parseHealth([]byte("[" + strings.Repeat("{},", maxInstances) + "{}]")); !errors.Is(err, errTooLarge) {
		t.Errorf("a list of %d is taken for %d instances, %v", maxInstances+1, len(all), err)
	}
}

func FuzzParseHealth(f *testing.F) {
	f.Add([]byte(twoEntries))
	f.Add([]byte(`[null,{"Checks":[null]},{"Service":{"Port":1e9}}]`))
	f.Add([]byte(`[{"Checks":[{"Definition":null}],"Service":{"Address":"a b","Port":1}}]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		all, err := parseHealth(body)
		if err != nil && all != nil {
			t.Error("an answer and an error")
		}
		for _, i := range all {
			if host, port, err := net.SplitHostPort(i.Addr); err != nil || host == "" || port == "0" {
				t.Errorf("%q cannot be dialled", i.Addr)
			}
		}
	})
}

func TestAgent_SurvivesAnswersThatConsulsOwnClientDoesNot(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, twoEntries) })
	// With "Definition": null in a check, api.Health.Service panics.
	if a, err := agentAt(t, Config{}, s).service(t.Context(), "todo", 0, time.Second); err != nil || len(a.all) != 2 || a.index != 0 {
		t.Errorf("got %+v, %v", a, err)
	}
}

func TestAgent_ReadsNoMoreThanItsBound(t *testing.T) {
	for _, status := range []int{200, 500} {
		var sent int
		s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			chunk := []byte(strings.Repeat(" ", 1<<20))
			for {
				n, err := w.Write(chunk)
				if sent += n; err != nil {
					return
				}
			}
		})
		a := agentAt(t, Config{}, s)
		_, err := a.service(t.Context(), "todo", 0, time.Second)
		if err == nil || len(err.Error()) > 4*maxErrorText {
			t.Errorf("status %d: got %d bytes of error: %.200v", status, len(err.Error()), err)
		}
		s.Close() // waits for the handler
		if sent > maxAnswer+16<<20 {
			t.Errorf("status %d: %d bytes were taken", status, sent)
		}
	}
}

func TestAgent_SendsOnlyWhatItsConfigSays(t *testing.T) {
	t.Setenv("CONSUL_HTTP_ADDR", "127.0.0.1:1")
	t.Setenv("CONSUL_HTTP_TOKEN", "of the environment")
	t.Setenv("CONSUL_HTTP_TOKEN_FILE", filepath.Join(t.TempDir(), "missing"))
	t.Setenv("CONSUL_HTTP_AUTH", "user:password")
	t.Setenv("CONSUL_HTTP_SSL", "true")
	t.Setenv("CONSUL_NAMESPACE", "ns")
	t.Setenv("CONSUL_PARTITION", "part")
	t.Setenv("CONSUL_CACERT", os.DevNull)
	var got *http.Request
	s := serve(t, func(w http.ResponseWriter, r *http.Request) { got = r; fmt.Fprint(w, "[]") })
	token := "one"
	for _, cfg := range []Config{{}, {Token: func() string { return token }}} {
		if _, err := agentAt(t, cfg, s).service(t.Context(), "todo", 7, 30*time.Second); err != nil {
			t.Fatal(err)
		}
		want := ""
		if cfg.Token != nil {
			want = token
		}
		if got.Header.Get("X-Consul-Token") != want || got.Header.Get("Authorization") != "" {
			t.Errorf("headers are %v", got.Header)
		}
		if q := got.URL.RawQuery; q != "index=7&stale=&wait=30000ms" {
			t.Errorf("query is %s", q)
		}
	}
}

func TestAgent_TakesAnEmptyAnswerForATokenThatMayNotReadAsAnError(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Consul-Results-Filtered-By-ACLs", "true")
		w.Header().Set("X-Consul-LastContact", "0")
		fmt.Fprint(w, "[]")
	})
	if _, err := agentAt(t, Config{}, s).service(t.Context(), "todo", 0, time.Second); err == nil || !strings.Contains(err.Error(), "token may not read") {
		t.Errorf("got %v", err)
	}
}

func TestAgent_FollowsNoRedirect(t *testing.T) {
	other := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, twoEntries) })
	s := serve(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL, http.StatusFound) })
	if a, err := agentAt(t, Config{}, s).service(t.Context(), "todo", 0, time.Second); err == nil {
		t.Errorf("took %v", a)
	}
}

func TestWatch_EndsABlockingQueryAtOnce(t *testing.T) {
	asked := make(chan struct{}, 100)
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Consul-Index", "5")
		asked <- struct{}{}
		if r.URL.Query().Get("index") != "" {
			<-r.Context().Done()
			return
		}
		fmt.Fprint(w, twoEntries)
	})
	w, err := NewWatch(Config{Agent: s.URL}, "todo")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()
	<-asked
	<-asked // this one blocks
	began := time.Now()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("took %s", took)
	}
}

func TestWatch_LeavesNoConnectionBehind(t *testing.T) {
	var open atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, twoEntries) }))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed:
			open.Add(-1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	w, err := NewWatch(Config{Agent: s.URL}, "todo")
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, w.Run)
	// After the first answer there is a pause: no query is under way that its cancelling would end.
	labtest.Eventually(t, 5*time.Second, "there is an answer", func() bool { _, err := w.Pick(); return err == nil })
	stop()
	labtest.Eventually(t, time.Second, "all connections are closed", func() bool { return open.Load() == 0 })
}
