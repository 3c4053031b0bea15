package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/todo/discovery"
	"example.com/todo/internal/lab"
	"example.com/todo/internal/labtest"
	"example.com/todo/internal/operator"
)

// TestSurvival breaks the whole system while clients use it. No client may notice.
func TestSurvival(t *testing.T) {
	l := labtest.Start(t, labtest.Options{
		Consul: 3, Vault: 1, MySQL: 1, Todo: 2,
		// The leases end within the longer outages, and every instance sees renewals.
		Times:   operator.Times{Lease: 15 * time.Second, LeaseMax: time.Hour, Token: 15 * time.Second, TokenMax: time.Hour},
		TodoEnv: map[string]string{"TODO_CHECK_INTERVAL": "1s"},
	})
	for _, c := range []struct {
		claim string
		test  func(*testing.T, *lab.Lab)
	}{
		{"graceful restarts cost no request", testRestarts},
		{"killed instances cost no request and no write", testKills},
		{"any one consul server may be killed", testConsulServers},
		{"all of consul may be gone", testNoConsul},
	} {
		t.Run(c.claim, func(t *testing.T) { c.test(t, l) })
	}
}

var instances = []string{"todo0", "todo1"}

func testRestarts(t *testing.T, l *lab.Lab) {
	tr := startTraffic(t, l)
	for n := range soak(200, 6) {
		machine := instances[n%len(instances)]
		tr.during(t, "restart of "+machine, func() {
			stop(t, l, machine)
			start(t, l, machine)
			waitPassing(t, l, machine)
		})
		if t.Failed() {
			break
		}
		randomMoment()
	}
	if n := tr.unknown.Load(); n > 0 {
		t.Errorf("the outcome of %d writes is unknown, though nothing was cut off", n)
	}
	tr.settle(t)
}

func testKills(t *testing.T, l *lab.Lab) {
	tr := startTraffic(t, l)
	for n := range soak(200, 4) {
		machine := instances[n%len(instances)]
		tr.during(t, "kill of "+machine, func() {
			if err := l.Kill(t.Context(), machine); err != nil {
				t.Fatal(err)
			}
			start(t, l, machine)
			waitPassing(t, l, machine)
		})
		if t.Failed() {
			break
		}
		randomMoment()
	}
	if tr.resent.Load() == 0 {
		t.Error("no request was sent again: the kills hit nothing")
	}
	tr.settle(t)
}

// randomMoment lets faults come at any point of the clients', the checks' and the leases' rhythms.
func randomMoment() { <-time.After(rand.N(300 * time.Millisecond)) }

func testConsulServers(t *testing.T, l *lab.Lab) {
	health := followHealth(t, l)
	tr := startTraffic(t, l, instances...)
	for range soak(10, 1) {
		first := leader(t, l)
		for _, server := range append([]string{first}, others(l, first)...) {
			tr.during(t, "loss of "+server, func() {
				if err := l.Kill(t.Context(), server); err != nil {
					t.Fatal(err)
				}
				eventually(t, 20*time.Second, "there is a leader without "+server, func() bool {
					now := leaderNow(t, l)
					return now != "" && now != server
				})
				health.confirm(t)
				tr.goOn(t, 500)
			})
			if err := l.Start(t.Context(), server); err != nil {
				t.Fatal(err)
			}
			eventually(t, 30*time.Second, "all three servers are well", func() bool {
				return getJSON(t.Context(), "http://"+l.Consul(server)+"/v1/operator/autopilot/health", nil, nil) == nil
			})
			health.confirm(t)
		}
	}
	if seen := health.end(); len(seen) != 1 {
		t.Errorf("health flapped: %s", strings.Join(seen, "\n"))
	}
	if n := tr.unknown.Load(); n > 0 {
		t.Errorf("the outcome of %d writes is unknown", n)
	}
	tr.settle(t)
}

func testNoConsul(t *testing.T, l *lab.Lab) {
	tr := startTraffic(t, l, instances...)
	outage := time.Duration(soak(60, 8)) * time.Second
	tr.during(t, "outage of Consul", func() {
		for _, m := range l.Machines() {
			if err := l.Kill(t.Context(), agentOf(m)); err != nil {
				t.Fatal(err)
			}
		}
		over := time.Now().Add(outage)
		eventually(t, 5*time.Second, "clients live on what they remember", func() bool { return tr.watch.Status().Source == discovery.FromRemembered })
		eventually(t, outage+time.Second, "the outage is over", func() bool { return time.Now().After(over) })
		if s := tr.watch.Status(); s.Source != discovery.FromRemembered || s.Instances != len(instances) {
			t.Errorf("at the end of the outage the clients' watch is at %+v", s)
		}
	})
	tr.during(t, "return of Consul", func() { bringBack(t, l) })
	eventually(t, 90*time.Second, "both instances have leases again", func() bool {
		return !slices.ContainsFunc(instances, func(m string) bool { return getJSON(t.Context(), url(l, m, "/health"), nil, nil) != nil })
	})
	tr.goOn(t, 500)
	if n := tr.unknown.Load(); n > 0 {
		t.Errorf("the outcome of %d writes is unknown", n)
	}
	tr.settle(t)
}

// bringBack starts all agents, one instance's with what it knew, the other's with nothing.
func bringBack(t *testing.T, l *lab.Lab) {
	t.Helper()
	launch := func(unit string) {
		t.Helper()
		if err := l.Start(t.Context(), unit); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range l.Machines() {
		if m.Role == lab.RoleConsul {
			launch(m.Name)
		}
	}
	eventually(t, 30*time.Second, "the servers have a leader", func() bool { return leaderAt(t, l.Consul("consul0")) != "" })
	if err := os.RemoveAll(filepath.Join(l.Dir(), "machines", "todo1", "consul")); err != nil {
		t.Fatal(err)
	}
	for _, m := range l.Machines() {
		if m.Role == lab.RoleConsul {
			continue
		}
		launch(agentOf(m))
		if m.Role == lab.RoleTodo {
			back := time.Now()
			eventually(t, 10*time.Second, m.Name+" is back in the catalogue", func() bool { return catalogue(t, l)["todo-"+m.Name] == "passing" })
			t.Logf("%s is back in the catalogue %v after its agent", m.Name, time.Since(back).Round(time.Millisecond))
		}
	}
}

func agentOf(m lab.Machine) string {
	if m.Role == lab.RoleConsul {
		return m.Name // a server is an agent too
	}
	return m.Name + "/agent"
}

// waitPassing waits until everybody may find an instance.
func waitPassing(t *testing.T, l *lab.Lab, machine string) {
	t.Helper()
	eventually(t, 15*time.Second, machine+" is passing", func() bool { return catalogue(t, l)["todo-"+machine] == "passing" })
}

// healthEntry is as much of Consul's answer as is used.
type healthEntry struct {
	Service struct{ ID string }
	Checks  []struct{ Status string }
}

// worst gives each instance's health: the worst of its checks.
func worst(entries []healthEntry) map[string]string {
	found := map[string]string{}
	for _, e := range entries {
		found[e.Service.ID] = "passing"
		for _, c := range e.Checks {
			if c.Status != "passing" {
				found[e.Service.ID] = c.Status
			}
		}
	}
	return found
}

// catalogue is how the leader of the servers sees the instances, by id; empty while nobody answers.
func catalogue(t *testing.T, l *lab.Lab) map[string]string {
	t.Helper()
	var entries []healthEntry
	_ = getJSON(t.Context(), "http://"+l.Consul("consul0")+"/v1/health/service/todo?consistent", nil, &entries)
	return worst(entries)
}

// getJSON asks once; an answer without 2xx is an error.
func getJSON(ctx context.Context, url string, header http.Header, v any) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read as far as it is wanted
	if header != nil {
		maps.Copy(header, resp.Header)
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	if v == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(v)
}

// leaderAt is the address of the leader as an agent knows it, "" if it knows none.
func leaderAt(t *testing.T, agent string) string {
	t.Helper()
	var address string
	_ = getJSON(t.Context(), "http://"+agent+"/v1/status/leader", nil, &address)
	return address
}

// leaderNow is the machine of the leader as a client's agent knows it.
func leaderNow(t *testing.T, l *lab.Lab) string {
	t.Helper()
	host, _, _ := strings.Cut(leaderAt(t, l.Consul("todo0")), ":")
	for _, m := range l.Machines() {
		if m.Addr == host {
			return m.Name
		}
	}
	return ""
}

func leader(t *testing.T, l *lab.Lab) (machine string) {
	t.Helper()
	eventually(t, 20*time.Second, "there is a leader", func() bool { machine = leaderNow(t, l); return machine != "" })
	return machine
}

// others are the servers besides one.
func others(l *lab.Lab, than string) (names []string) {
	for _, m := range l.Machines() {
		if m.Role == lab.RoleConsul && m.Name != than {
			names = append(names, m.Name)
		}
	}
	return names
}

// health follows the catalogue as any client would, and writes down every change.
type health struct {
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	seen    []string
	answers int
}

func followHealth(t *testing.T, l *lab.Lab) *health {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	h := &health{cancel: cancel, done: make(chan struct{})}
	go h.follow(ctx, "http://"+l.Consul("mysql")+"/v1/health/service/todo?wait=1s&index=")
	t.Cleanup(func() { h.end() })
	h.confirm(t)
	return h
}

func (h *health) follow(ctx context.Context, url string) {
	defer close(h.done)
	index := "0"
	for ctx.Err() == nil {
		var entries []healthEntry
		header := http.Header{}
		if err := getJSON(ctx, url+index, header, &entries); err != nil {
			index = "0"
			<-time.After(20 * time.Millisecond) // there is no leader to ask
			continue
		}
		index = header.Get("X-Consul-Index")
		now := fmt.Sprint(worst(entries)) // in the order of ids
		h.mu.Lock()
		h.answers++
		if len(h.seen) == 0 || h.seen[len(h.seen)-1] != now {
			h.seen = append(h.seen, now)
		}
		h.mu.Unlock()
	}
}

// confirm waits for answers that were asked for after now.
func (h *health) confirm(t *testing.T) {
	t.Helper()
	count := func() int { h.mu.Lock(); defer h.mu.Unlock(); return h.answers }
	before := count()
	eventually(t, 20*time.Second, "the catalogue answers", func() bool { return count() >= before+2 })
}

func (h *health) end() []string {
	h.cancel()
	<-h.done
	return h.seen
}
