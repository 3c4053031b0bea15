package discovery

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
)

const (
	dialTimeout = time.Second     // to a local agent
	callTimeout = 5 * time.Second // of a call that does not block
	waitMargin  = 5 * time.Second // how much longer than asked for a blocking query may take

	maxAnswer    = 16 << 20 // bytes of one answer that are read: thousands of instances
	maxErrorText = 512      // bytes of an error answer that are read
	maxInstances = 10_000   // of one service
)

var errTooLarge = errors.New("answer is larger than can be meant")

// agent calls the local agent's API, through Consul's own client. That client has four habits that do not suit a long-lived
// process, and each is met here: it takes defaults from the environment, it reads answers of any size, it follows
// redirects, and it panics on some answers that are JSON but not what was expected, such as a null where a check is. So its
// transport is ours, and it decodes nothing but raw JSON.
type agent struct {
	raw      *api.Raw
	consul   *api.Agent
	endpoint string
}

func newAgent(cfg Config) (*agent, error) {
	transport := &http.Transport{
		DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:        cfg.TLS,
		TLSHandshakeTimeout:    dialTimeout,
		MaxResponseHeaderBytes: 64 << 10,
		// Calls are rare, and one that blocks holds a connection anyway. Without idle connections there is none that the agent
		// closed without our noticing, and none to outlive Run.
		DisableKeepAlives: true,
	}
	scheme, host, _ := strings.Cut(cfg.Agent, "://")
	client, err := api.NewClient(&api.Config{
		Address: host,
		Scheme:  scheme,
		// A token given here keeps the client from opening the token file that the environment may name. It is never sent.
		Token: "unused",
		HttpClient: &http.Client{
			Transport:     &boundedTransport{base: transport, token: cfg.Token},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	})
	if err != nil {
		return nil, fmt.Errorf("consul client: %w", err)
	}
	return &agent{raw: client.Raw(), consul: client.Agent(), endpoint: cfg.Agent}, nil
}

// boundedTransport makes every request one of this package's configuration only, and bounds every answer.
type boundedTransport struct {
	base  http.RoundTripper
	token func() string
}

func (t *boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Del("Authorization")
	r.Header.Del("X-Consul-Token")
	if t.token != nil {
		if token := t.token(); token != "" {
			r.Header.Set("X-Consul-Token", token)
		}
	}
	query := r.URL.Query()
	query.Del("ns")
	query.Del("partition")
	r.URL.RawQuery = query.Encode()

	resp, err := t.base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		resp.Body = &boundedBody{ReadCloser: resp.Body, left: maxAnswer, beyond: errTooLarge}
	} else {
		resp.Body = &boundedBody{ReadCloser: resp.Body, left: maxErrorText, beyond: io.EOF}
	}
	return resp, nil
}

// boundedBody ends with beyond after left bytes.
type boundedBody struct {
	io.ReadCloser
	left   int
	beyond error
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, b.beyond
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// answer is what a query for a service gave.
type answer struct {
	all   []Instance // sorted
	index uint64     // for the next blocking query; 0 if it cannot block
}

// service asks for all instances of a service, whatever their health. With an index it blocks until there is something newer, or
// for wait. Any server may answer, also one that sees no leader: an old answer is better than none, and the watch goes on.
func (a *agent) service(ctx context.Context, name string, index uint64, wait time.Duration) (answer, error) {
	limit := callTimeout
	query := &api.QueryOptions{AllowStale: true}
	if index > 0 {
		query.WaitIndex, query.WaitTime = index, wait
		limit = wait + wait/16 + waitMargin // Consul adds up to a sixteenth.
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	body, meta, err := a.get(ctx, "/v1/health/service/"+name, query)
	if err != nil {
		return answer{}, err
	}
	all, err := parseHealth(body)
	if err != nil {
		return answer{}, a.explain(err)
	}
	if len(all) == 0 && meta.ResultsFilteredByACLs {
		return answer{}, a.explain(fmt.Errorf("the token may not read service %s", name))
	}
	return answer{all: all, index: meta.LastIndex}, nil
}

// get fetches an answer undecoded.
func (a *agent) get(ctx context.Context, path string, query *api.QueryOptions) (body json.RawMessage, meta *api.QueryMeta, err error) {
	if meta, err = a.raw.Query(path, &body, query.WithContext(ctx)); err != nil {
		return nil, nil, a.explain(err)
	}
	return body, meta, nil
}

// agentEntry is as much as is compared of what the agent itself knows of a service instance.
type agentEntry struct {
	Service string
	Address string
	Port    int
	Tags    []string
	Meta    map[string]string
}

func (e agentEntry) addr() string { return net.JoinHostPort(e.Address, strconv.Itoa(e.Port)) }

func (a *agent) entry(ctx context.Context, id string) (entry agentEntry, err error) {
	body, _, err := a.get(ctx, "/v1/agent/service/"+id, &api.QueryOptions{})
	if err == nil {
		err = json.Unmarshal(body, &entry)
	}
	return entry, err
}

// agentCheck is as much of a check as is used. Notes of a maintenance are its reason.
type agentCheck struct {
	Status string
	Notes  string
}

// checks gives the checks of a service instance by their IDs.
func (a *agent) checks(ctx context.Context, id string) (checks map[string]agentCheck, err error) {
	body, _, err := a.get(ctx, "/v1/agent/checks", &api.QueryOptions{Filter: fmt.Sprintf("ServiceID == %q", id)})
	if err == nil {
		err = json.Unmarshal(body, &checks)
	}
	return checks, err
}

// explain names the agent, and makes one line of what it may have sent with an error.
func (a *agent) explain(err error) error {
	if status, ok := errors.AsType[api.StatusError](err); ok {
		return fmt.Errorf("consul agent %s: %w", a.endpoint, &statusError{code: status.Code, text: status.Body})
	}
	return fmt.Errorf("consul agent %s: %w", a.endpoint, err)
}

// statusError is an answer with a status that says no.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("status %d: %q", e.code, strings.TrimSpace(e.text))
}

// isNotFound reports whether the agent says that it does not know the service instance.
func isNotFound(err error) bool {
	status, ok := errors.AsType[*statusError](err)
	return ok && status.code == http.StatusNotFound
}

// healthEntry is as much of an entry of /v1/health/service as is used.
type healthEntry struct {
	Node struct {
		Node    string
		Address string
	}
	Service struct {
		ID          string
		Address     string
		Port        int
		Tags        []string
		Meta        map[string]string
		ModifyIndex uint64
	}
	Checks []struct {
		CheckID string
		Status  string
	}
}

// parseHealth decodes entry by entry, so that an answer costs memory for what it says and not for how often. Entries without an
// address that can be dialled are left out; anything that is not a list of entries is an error.
func parseHealth(body []byte) ([]Instance, error) {
	dec := json.NewDecoder(bytes.NewReader(body))
	if start, err := dec.Token(); err != nil || start != json.Delim('[') {
		return nil, errors.New("answer is not a list")
	}
	all := []Instance{}
	for n := 0; dec.More(); n++ {
		if n == maxInstances {
			return nil, errTooLarge
		}
		var entry healthEntry
		if err := dec.Decode(&entry); err != nil {
			return nil, fmt.Errorf("entry %d of answer: %w", n, err)
		}
		if instance, ok := entry.instance(); ok {
			all = append(all, instance)
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("end of answer: %w", err)
	}
	sortInstances(all)
	return all, nil
}

func (e *healthEntry) instance() (Instance, bool) {
	host := e.Service.Address
	if host == "" {
		host = e.Node.Address // A service without an address of its own is where its node is.
	}
	addr := joinAddr(host, e.Service.Port)
	if addr == "" {
		return Instance{}, false
	}
	return Instance{Addr: addr, ID: e.Service.ID, Node: e.Node.Node, Health: e.health(), Tags: e.Service.Tags, Meta: e.Service.Meta,
		index: e.Service.ModifyIndex}, true
}

// The checks that Consul itself adds to what is in maintenance, by their documented names.
const (
	nodeMaintenance    = "_node_maintenance"
	serviceMaintenance = "_service_maintenance:"
)

// health is the worst of the checks; a status that is none of Consul's is critical, and no check at all is passing.
func (e *healthEntry) health() Health {
	worst := Passing
	for _, check := range e.Checks {
		switch {
		case check.CheckID == nodeMaintenance || strings.HasPrefix(check.CheckID, serviceMaintenance):
			return Maintenance
		case check.Status == string(Passing) || worst == Critical:
		case check.Status == string(Warning):
			worst = Warning
		default:
			worst = Critical
		}
	}
	return worst
}
