package main

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
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
		{"dns is enough to serve", testDNSOnly},
		{"all of consul may be gone", testNoConsul},
		{"mysql may move", testMySQLMoves},
	} {
		t.Run(c.claim, func(t *testing.T) { c.test(t, l) })
	}
}

var instances = []string{"todo0", "todo1"}

func addresses(l *lab.Lab) (at []string) {
	for _, machine := range instances {
		at = append(at, l.Addr(machine)+":8080")
	}
	return at
}

// testRestarts has clients that send everything once, too: whoever follows the catalogue never meets an instance that has closed.
func testRestarts(t *testing.T, l *lab.Lab) {
	tr := startTraffic(t, l, clients{once: 3})
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
	tr := startTraffic(t, l, clients{})
	for n := range soak(200, 4) {
		machine := instances[n%len(instances)]
		tr.during(t, "kill of "+machine, func() {
			if err := l.Kill(t.Context(), machine); err != nil {
				t.Fatal(err)
			}
			tr.goOn(t, 20)               // by way of the other one
			if n/len(instances)%2 == 0 { // else it is back before Consul notices
				labtest.Eventually(t, 15*time.Second, "Consul notices", func() bool { return catalogue(t, l)["todo-"+machine] == "critical" })
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
	tr := startTraffic(t, l, clients{direct: addresses(l)})
	for range soak(10, 1) {
		first := leader(t, l)
		for _, server := range append([]string{first}, others(l, first)...) {
			tr.during(t, "loss of "+server, func() {
				if err := l.Kill(t.Context(), server); err != nil {
					t.Fatal(err)
				}
				labtest.Eventually(t, 20*time.Second, "there is a leader without "+server, func() bool {
					now := leaderNow(t, l)
					return now != "" && now != server
				})
				health.confirm(t)
				tr.goOn(t, 500)
			})
			if err := l.Start(t.Context(), server); err != nil {
				t.Fatal(err)
			}
			labtest.Eventually(t, 30*time.Second, server+" has caught up", func() bool {
				index := applied(t, l, server)
				return index > 0 && index >= applied(t, l, leader(t, l))
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
	tr := startTraffic(t, l, clients{direct: addresses(l)})
	outage := time.Duration(soak(60, 8)) * time.Second
	tr.during(t, "outage of Consul", func() {
		for _, m := range l.Machines() {
			if err := l.Kill(t.Context(), agentOf(m)); err != nil {
				t.Fatal(err)
			}
		}
		over := time.Now().Add(outage)
		labtest.Eventually(t, 5*time.Second, "clients live on what they remember", func() bool { return tr.watch.Status().Source == discovery.FromRemembered })
		labtest.Eventually(t, outage+time.Second, "the outage is over", func() bool { return time.Now().After(over) })
		if s := tr.watch.Status(); s.Source != discovery.FromRemembered || s.Instances != len(instances) {
			t.Errorf("at the end of the outage the clients' watch is at %+v", s)
		}
	})
	tr.during(t, "return of Consul", func() { bringBack(t, l) })
	back := time.Now()
	labtest.Eventually(t, 90*time.Second, "both instances have leases again", func() bool {
		return !slices.ContainsFunc(instances, func(m string) bool { return getJSON(t.Context(), url(l, m, "/health"), nil, nil) != nil })
	})
	t.Logf("credentials are current %v after the agents", time.Since(back).Round(time.Millisecond))
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
	labtest.Eventually(t, 30*time.Second, "the servers have a leader", func() bool { return leaderAt(t, l.Consul("consul0")) != "" })
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
			labtest.Eventually(t, 10*time.Second, m.Name+" is back in the catalogue", func() bool {
				health := catalogue(t, l)["todo-"+m.Name]
				return health == "passing" || health == "warning" // its lease has ended: Vault keeps its own state in Consul
			})
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

// testDNSOnly runs one more instance, in this process, that reaches nothing of Consul but its agent's DNS. Nobody can find it, because
// registering takes the API; it serves those who know it.
func testDNSOnly(t *testing.T, l *lab.Lab) {
	addr, closed := l.Net()+".99:8080", l.Net()+".99:8500"
	if c, err := net.Dial("tcp", closed); err == nil {
		_ = c.Close()
		t.Fatalf("somebody listens at %s", closed)
	}
	identity, err := os.ReadFile(filepath.Join(l.Dir(), "machines", "todo0", "todo.env"))
	if err != nil {
		t.Fatal(err)
	}
	env := append(strings.Split(string(identity), "\n"), "DISCOVERY=dns", "TODO_INSTANCE=dns", "TODO_LISTEN="+addr, "CONSUL_HTTP_ADDR="+closed)
	var log lockedBuffer
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, []string{"serve"}, env, &log, &log) }()

	answers := func(path string) func() bool {
		return func() bool { return getJSON(t.Context(), "http://"+addr+path, nil, nil) == nil }
	}
	labtest.Eventually(t, 15*time.Second, "it is ready", answers("/readyz"))
	labtest.Eventually(t, 5*time.Second, "it is healthy", answers("/health"))
	tr := startTraffic(t, l, clients{direct: []string{addr}})
	tr.goOn(t, 500)
	tr.settle(t)
	if health, listed := catalogue(t, l)["todo-dns"]; listed {
		t.Errorf("it is in the catalogue, %s: so it reached the API", health)
	}
	if !strings.Contains(log.String(), `"msg":"registration is uncertain"`) {
		t.Errorf("the log says nothing of the registration:\n%s", log.String())
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(15 * time.Second):
		t.Error("it does not end")
	}
}

// lockedBuffer is a log that can be read while it is written.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
