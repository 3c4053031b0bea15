package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/todo/internal/lab"

	"example.com/todo/internal/labtest"
)

// waitPassing waits until everybody may find an instance.
func waitPassing(t *testing.T, l *lab.Lab, machine string) {
	t.Helper()
	labtest.Eventually(t, 15*time.Second, machine+" is passing", func() bool { return catalogue(t, l)["todo-"+machine] == "passing" })
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
	labtest.Eventually(t, 20*time.Second, "there is a leader", func() bool { machine = leaderNow(t, l); return machine != "" })
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
	go h.follow(ctx, "http://"+l.Consul("mysql")+"/v1/health/service/todo?wait=500ms&index=")
	t.Cleanup(func() { h.end() })
	h.confirm(t)
	return h
}

func (h *health) follow(ctx context.Context, url string) {
	defer close(h.done)
	index := "0"
	tick := time.NewTicker(20 * time.Millisecond) // while there is no leader to ask
	defer tick.Stop()
	for ; ctx.Err() == nil; <-tick.C {
		var entries []healthEntry
		header := http.Header{}
		if err := getJSON(ctx, url+index, header, &entries); err != nil {
			index = "0"
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
	labtest.Eventually(t, 20*time.Second, "the catalogue answers", func() bool { return count() >= before+2 })
}

func (h *health) end() []string {
	h.cancel()
	<-h.done
	return h.seen
}

// applied is how far a server has read the log that all share; 0 if it does not say.
func applied(t *testing.T, l *lab.Lab, server string) uint64 {
	t.Helper()
	var self struct {
		Stats struct {
			Raft struct {
				Index string `json:"applied_index"`
			}
		}
	}
	_ = getJSON(t.Context(), "http://"+l.Consul(server)+"/v1/agent/self", nil, &self)
	index, _ := strconv.ParseUint(self.Stats.Raft.Index, 10, 64)
	return index
}
