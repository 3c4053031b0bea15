package discovery_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"example.com/todo/discovery"
	"example.com/todo/internal/labtest"
)

// These tests are on a real Consul with a real agent, and on real Vaults.
func TestReal(t *testing.T) {
	s := &site{Lab: labtest.Start(t, labtest.Options{Consul: 1, Vault: 2, MySQL: 1})}
	for _, c := range []struct {
		claim string
		test  func(*testing.T, *site)
	}{
		{"a service is found while it is healthy and no longer", testFound},
		{"registering again does not touch a service's health", testNoFlap},
		{"five and fifty instances resolve whole over DNS alone, though a datagram is cut", testDNS},
		{"maintenance takes a service out and back", testMaintenance},
		{"watches of many services cost one idle connection each", testManyWatches},
		{"an agent that was killed and lost its state is survived", testAgentLost},
		{"an agent that hangs is survived", testAgentPaused},
		{"the active vault is found through a failover", testVault},
	} {
		t.Run(c.claim, func(t *testing.T) { c.test(t, s) })
	}
}

func testFound(t *testing.T, s *site) {
	w := s.watch(t, s.config(), "web")
	a, b := s.web(t, "web", "web-a"), s.web(t, "web", "web-b")
	a.up(t)
	within(t, 2*time.Second, "the first instance is found", shows(w, a.addr))
	if i, err := w.Pick(); err != nil || i.ID != "web-a" || i.Health != discovery.Passing || i.Meta["version"] != "7" || i.Node != agentMachine {
		t.Errorf("got %+v, %v", i, err)
	}
	b.up(t)
	within(t, 2*time.Second, "the second instance is found", shows(w, a.addr, b.addr))
	a.health.Store(503)
	within(t, 3*time.Second, "the sick one is out", shows(w, b.addr))
	if w.Keep(a.addr) || !w.Keep(b.addr) {
		t.Error("connections are kept to the wrong one")
	}
	a.health.Store(429)
	b.health.Store(503)
	within(t, 3*time.Second, "the one that warns is all there is", shows(w, a.addr))
	a.health.Store(200)
	b.health.Store(200)
	within(t, 3*time.Second, "both are back", shows(w, a.addr, b.addr))
	if err := a.Deregister(t.Context()); err != nil {
		t.Fatal(err)
	}
	within(t, time.Second, "the one that left is out", shows(w, b.addr))
}

func (s *site) checkStatus(t *testing.T, id string) string {
	resp, err := http.Get("http://" + s.Consul(agentMachine) + "/v1/agent/checks")
	if err != nil {
		t.Error(err)
		return ""
	}
	defer resp.Body.Close()
	var checks map[string]struct{ Status string }
	if err := json.NewDecoder(resp.Body).Decode(&checks); err != nil {
		t.Error(err)
	}
	return checks["service:"+id].Status
}

func testNoFlap(t *testing.T, s *site) {
	a := s.web(t, "web", "web-a")
	a.definition.Interval = time.Hour // Whatever changes its health here is a registration.
	a.registerOnce(t, nil)
	t.Cleanup(func() { s.deregister(t, "web-a") })
	w := s.watch(t, s.config(), "web")
	within(t, 2*time.Second, "it is found", shows(w, a.addr))
	end := throughout(t, "it is found and passes", func() bool { return shows(w, a.addr)() && s.checkStatus(t, "web-a") == "passing" })
	a.health.Store(503) // so that a registration that sets the status sets another one
	for n := range 10 {
		a.registerOnce(t, map[string]string{"version": fmt.Sprint(n)})
	}
	end()
	// The same must hold for a maintenance: a new process does not end what its operator began.
	if err := a.Maintenance(t.Context(), true, "deploy"); err != nil {
		t.Fatal(err)
	}
	a.registerOnce(t, nil)
	if got := s.checkStatus(t, "web-a"); got != "passing" {
		t.Errorf("the check is %s", got)
	}
	if resp, err := http.Get("http://" + s.Consul(agentMachine) + "/v1/agent/health/service/id/web-a?format=text"); err != nil || resp.StatusCode != 503 {
		t.Errorf("after registering again the maintenance is over: %v, %v", resp, err)
	} else {
		resp.Body.Close()
	}
}

func testDNS(t *testing.T, s *site) {
	const many = 50
	for n := range many {
		s.web(t, "crowd", fmt.Sprintf("crowd-%d", n)).up(t)
		if n != 4 && n != many-1 {
			continue
		}
		for _, cfg := range []discovery.Config{
			{Agent: s.Consul(agentMachine), Mode: discovery.DNS},
			// The API's port is closed here, and DNS is where it is.
			{Agent: s.Addr(agentMachine) + ":1", DNS: s.Addr(agentMachine) + ":8600"},
		} {
			w := s.watch(t, cfg, "crowd")
			within(t, 15*time.Second, fmt.Sprintf("%d instances are found", n+1), func() bool { return len(found(w)) == n+1 })
			if got := w.Status(); got.Source != discovery.FromDNS {
				t.Errorf("found as %+v", got)
			}
		}
		if cut := overUDP(t, s.Addr(agentMachine)+":8600", "crowd.service.consul."); cut == 0 || cut > n {
			t.Errorf("a datagram holds %d of %d instances: nothing is cut, and nothing is proven", cut, n+1)
		}
	}
}

// overUDP counts the instances in one plain datagram's answer.
func overUDP(t *testing.T, server, name string) int {
	t.Helper()
	question := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 7},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeSRV, Class: dnsmessage.ClassINET}},
	}
	query, err := question.Pack()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("udp", server)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buffer := make([]byte, 64<<10)
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(query); err != nil {
		t.Fatal(err)
	}
	size, err := conn.Read(buffer)
	if err != nil {
		t.Fatal(err)
	}
	var answer dnsmessage.Message
	if err := answer.Unpack(buffer[:size]); err != nil {
		t.Fatal(err)
	}
	return len(answer.Answers)
}

func testMaintenance(t *testing.T, s *site) {
	a, b := s.web(t, "web", "web-a"), s.web(t, "web", "web-b")
	a.up(t)
	b.up(t)
	w := s.watch(t, s.config(), "web")
	within(t, 3*time.Second, "both are found", shows(w, a.addr, b.addr))
	if err := a.Maintenance(t.Context(), true, "deploy"); err != nil {
		t.Fatal(err)
	}
	within(t, time.Second, "the one in maintenance is out", shows(w, b.addr))
	within(t, 5*time.Second, "it says so", func() bool { st := a.Status(); return st.Health == discovery.Maintenance && st.Reason == "deploy" })
	if err := a.Maintenance(t.Context(), false, ""); err != nil {
		t.Fatal(err)
	}
	within(t, time.Second, "it is back", shows(w, a.addr, b.addr))
}

func testManyWatches(t *testing.T, s *site) {
	services, seconds := 50, 3
	if os.Getenv("SOAK") != "" {
		services, seconds = 200, 60
	}
	var watches []*discovery.Watch
	for n := range services {
		name := fmt.Sprintf("lone-%d", n)
		w := s.web(t, name, name)
		w.definition.Interval = time.Hour // answering health checks would be most of the work
		w.registerOnce(t, nil)
		t.Cleanup(func() { s.deregister(t, name) })
		watches = append(watches, s.watch(t, s.config(), name))
	}
	within(t, 30*time.Second, "all are found", func() bool {
		return !slices.ContainsFunc(watches, func(w *discovery.Watch) bool { return len(found(w)) != 1 })
	})
	within(t, 10*time.Second, "each watch has one connection", func() bool { return s.connections(t) == services })
	cpu := cpuTime()
	end := time.NewTimer(time.Duration(seconds) * time.Second)
	<-end.C
	cpu = cpuTime() - cpu
	t.Logf("%d watches used %s of CPU in %d s, and have %d connections", services, cpu, seconds, s.connections(t))
	if limit := time.Duration(seconds) * time.Second / 50; cpu > limit {
		t.Errorf("that is more than 2 %% (%s)", limit)
	}
}

// connections counts what is connected to the agent.
func (s *site) connections(t *testing.T) (n int) {
	table, err := os.ReadFile("/proc/self/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	ip := net.ParseIP(s.Addr(agentMachine)).To4()
	agent := fmt.Sprintf("%02X%02X%02X%02X:%04X", ip[3], ip[2], ip[1], ip[0], 8500)
	for line := range strings.Lines(string(table)) {
		const established = "01"
		if f := strings.Fields(line); len(f) > 3 && f[2] == agent && f[3] == established {
			n++
		}
	}
	return n
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (s *site) deregister(t *testing.T, id string) {
	r, err := http.NewRequest(http.MethodPut, "http://"+s.Consul(agentMachine)+"/v1/agent/service/deregister/"+id, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Error(err)
		return
	}
	resp.Body.Close()
}

func testAgentLost(t *testing.T, s *site) {
	a := s.web(t, "web", "web-a")
	a.up(t)
	w := s.watch(t, s.config(), "web")
	elsewhere := s.watch(t, discovery.Config{Agent: s.Consul("consul0")}, "web")
	within(t, 3*time.Second, "it is found", shows(w, a.addr))
	within(t, 3*time.Second, "it is found through another agent", shows(elsewhere, a.addr))
	end := throughout(t, "it is found through the agent that is killed", shows(w, a.addr))
	if err := s.Kill(t.Context(), agentMachine+"/agent"); err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, "the watch lives on what it remembers", func() bool { return w.Status().Source == discovery.FromRemembered })
	log, err := s.LogPath(agentMachine + "/agent")
	if err != nil {
		t.Fatal(err)
	}
	// The node's ID stays, as that of a machine should (node_id): Consul refuses an agent that comes back under the same name and
	// another ID before it has noticed that the old one is gone.
	lose(t, filepath.Join(filepath.Dir(log), "consul"), "node-id")
	if err := s.Start(t.Context(), agentMachine+"/agent"); err != nil {
		t.Fatal(err)
	}
	defer func() { t.Logf("%+v", a.Status()) }()
	within(t, 10*time.Second, "the empty agent knows the service", func() bool { return s.checkStatus(t, "web-a") == "passing" })
	within(t, 10*time.Second, "the watch follows the catalogue again", func() bool { return w.Status().Source == discovery.FromAPI })
	within(t, 10*time.Second, "it is found through another agent", shows(elsewhere, a.addr))
	end()
}

// lose deletes all that is in a directory but one file.
func lose(t *testing.T, dir, keep string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) < 2 {
		t.Fatalf("where is the agent's state? %v, %v", entries, err)
	}
	for _, e := range entries {
		if e.Name() == keep {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
}

func testAgentPaused(t *testing.T, s *site) {
	a := s.web(t, "web", "web-a")
	a.up(t)
	cfg := s.config()
	cfg.Wait = time.Second
	w := s.watch(t, cfg, "web")
	within(t, 3*time.Second, "it is found", shows(w, a.addr))
	end := throughout(t, "it is found through the agent that hangs", shows(w, a.addr))
	if err := s.Pause(t.Context(), agentMachine+"/agent"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Resume(context.Background(), agentMachine+"/agent"); err != nil {
			t.Error(err)
		}
	}()
	within(t, 20*time.Second, "the watch notices", func() bool { return w.Status().Source == discovery.FromRemembered })
	t.Run("calls end all the same", func(t *testing.T) {
		s.watch(t, cfg, "web") // whose Run has to end within a second when this test does
		b := s.web(t, "web", "web-b")
		background(t, b.Run)
		began := time.Now()
		if err := b.Deregister(t.Context()); err == nil || time.Since(began) > 2500*time.Millisecond {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
	})
	if err := s.Resume(t.Context(), agentMachine+"/agent"); err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, "the watch follows the catalogue again", func() bool { return w.Status().Source == discovery.FromAPI })
	end()
}

func testVault(t *testing.T, s *site) {
	w := s.watch(t, s.config(), "vault")
	f, err := discovery.NewVaultFinder(w, discovery.VaultConfig{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	first, err := f.Addr(ctx)
	if err != nil {
		t.Fatal(err)
	}
	machine := map[string]string{"http://" + s.Addr("vault0") + ":8200": "vault0", "http://" + s.Addr("vault1") + ":8200": "vault1"}
	if machine[first] == "" {
		t.Fatalf("%s is not a vault of ours: %v", first, machine)
	}
	if _, err := s.Stop(ctx, machine[first]); err != nil {
		t.Fatal(err)
	}
	var second string
	within(t, 5*time.Second, "the standby is found active", func() bool {
		second, err = f.Await(ctx)
		return err == nil && second != first
	})
	if err := s.Start(ctx, machine[first]); err != nil {
		t.Fatal(err)
	}
	if again, err := f.Addr(ctx); err != nil || again != second {
		t.Errorf("with a sealed vault next to the active one: %s, %v", again, err)
	}
	if _, err := s.Stop(ctx, machine[second]); err != nil {
		t.Fatal(err)
	}
	within(t, 3*time.Second, "there is no active vault", func() bool { _, err = f.Addr(ctx); return err != nil })
	if !errors.Is(err, discovery.ErrNoActive) || !strings.Contains(err.Error(), "is sealed") || !strings.Contains(err.Error(), "unreachable") {
		t.Errorf("got %v", err)
	}
	t.Log(err)
	if _, err := s.Unseal(ctx, machine[first]); err != nil {
		t.Fatal(err)
	}
	within(t, 10*time.Second, "the unsealed one is found", func() bool { addr, err := f.Await(ctx); return err == nil && addr == first })
}
