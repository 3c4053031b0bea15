package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"
)

// Defaults of Service, and the registration's own times.
const (
	DefaultInterval        = 5 * time.Second
	DefaultCheckTimeout    = 2 * time.Second
	DefaultDeregisterAfter = 10 * time.Minute

	verifyEvery       = 3 * time.Second // at most this long, the agent may have forgotten unnoticed
	deregisterTimeout = 2 * time.Second
)

// Service is what is registered. Name, ID, Address and Port are required.
type Service struct {
	Name    string
	ID      string // of this instance, unique on its agent
	Address string // IP address or name under which others reach it
	Port    int
	Tags    []string
	Meta    map[string]string // such as version and start time

	HealthURL       string        // that the agent asks: 2xx passing, 429 warning, else critical. Default http://<address>:<port>/health.
	Interval        time.Duration // of the check, at least 1 s (Consul's rule). Default DefaultInterval.
	Timeout         time.Duration // of the check. Default DefaultCheckTimeout.
	DeregisterAfter time.Duration // critical for so long, Consul removes it; at least 1 m (Consul's rule). Default DefaultDeregisterAfter.
}

// RegistrationStatus is what a Registration knows about itself.
type RegistrationStatus struct {
	Registered  bool
	Health      Health // as the agent's check says, or Maintenance
	Reason      string // of the maintenance
	LastError   string // empty if there never was one
	LastErrorAt time.Time
}

// Registration keeps one service instance registered with the local agent. It is safe for concurrent use.
type Registration struct {
	cfg     Config
	service Service
	addr    string
	agent   *agent
	probe   *http.Client

	running atomic.Bool
	turn    chan struct{} // holds one token for whoever speaks to the agent, so that nothing overtakes a deregistration
	left    chan struct{} // closed by Deregister

	mu     sync.Mutex
	gone   bool // left is closed
	done   bool // this process has registered at least once
	status RegistrationStatus
}

// serviceID is what may stand in a path and in a filter as it is.
var serviceID = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,128}$`)

// NewRegistration makes a registration; nothing happens before its Run.
func NewRegistration(cfg Config, s Service) (*Registration, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	addr := joinAddr(s.Address, s.Port)
	s.HealthURL = cmp.Or(s.HealthURL, "http://"+addr+"/health")
	s.Interval = cmp.Or(s.Interval, DefaultInterval)
	s.Timeout = cmp.Or(s.Timeout, DefaultCheckTimeout)
	s.DeregisterAfter = cmp.Or(s.DeregisterAfter, DefaultDeregisterAfter)
	health, urlErr := url.Parse(s.HealthURL)
	switch {
	case checkService(s.Name) != nil:
		return nil, checkService(s.Name)
	case !serviceID.MatchString(s.ID):
		return nil, fmt.Errorf("%q is not the id of a service instance: letters, digits, -, . and _, at most 128", s.ID)
	case addr == "":
		return nil, fmt.Errorf("%q port %d is not where a service can be reached", s.Address, s.Port)
	case urlErr != nil || health.Host == "" || health.Scheme != "http" && health.Scheme != "https":
		return nil, fmt.Errorf("health check %q is not an http or https url", s.HealthURL)
	case s.Interval < time.Second, s.Timeout <= 0, s.DeregisterAfter < time.Minute:
		return nil, fmt.Errorf("health check every %s, timeout %s, deregistered after %s: want at least 1s, more than 0, at least 1m",
			s.Interval, s.Timeout, s.DeregisterAfter)
	}
	agent, err := newAgent(cfg)
	if err != nil {
		return nil, err
	}
	return &Registration{
		cfg: cfg, service: s, addr: addr, agent: agent,
		// A slow check must not use up the time there is to register.
		probe: &http.Client{Timeout: min(s.Timeout, DefaultCheckTimeout), Transport: &http.Transport{
			DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10}},
		turn: make(chan struct{}, 1),
		left: make(chan struct{}),
	}, nil
}

// Run registers the service, and again whenever the agent does not know it any more, until ctx ends or Deregister is called; then it
// returns nil. While there is no agent it goes on trying: the service may serve meanwhile. It does not deregister. The only error
// is that of a second Run while one is under way.
func (r *Registration) Run(ctx context.Context) error {
	if !r.running.CompareAndSwap(false, true) {
		return fmt.Errorf("registration of %s runs already", r.service.ID)
	}
	defer r.running.Store(false)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	retry := backoff{first: firstRetry, most: verifyEvery}
	for {
		err := r.verify(ctx)
		if ctx.Err() != nil {
			return nil
		}
		pause := jitter(verifyEvery)
		if err != nil {
			pause = retry.next()
		} else {
			retry.reset()
		}
		r.note(err)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
		case <-r.left:
			cancel()
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// Deregister takes the service out of the catalogue and ends Run. It takes at most 2 s, and less if ctx ends before. An agent that does not
// know the service, or knows another process's under the same ID, is not an error: there is nothing of ours to remove. If it fails,
// Consul removes the service DeregisterAfter its check has become critical.
func (r *Registration) Deregister(ctx context.Context) error {
	r.mu.Lock()
	if !r.gone {
		r.gone = true
		close(r.left)
	}
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, deregisterTimeout)
	defer cancel()
	release, err := r.take(ctx)
	if err != nil {
		return fmt.Errorf("deregister %s: %w", r.service.ID, err)
	}
	defer release()
	entry, err := r.agent.entry(ctx, r.service.ID)
	if err == nil && r.same(entry) {
		err = r.agent.consul.ServiceDeregisterOpts(r.service.ID, new(api.QueryOptions).WithContext(ctx))
		if err != nil {
			err = r.agent.explain(err)
		}
	}
	if err != nil && !isNotFound(err) {
		return fmt.Errorf("deregister %s: %w", r.service.ID, err)
	}
	r.update(func(s *RegistrationStatus) { s.Registered, s.Health, s.Reason = false, Unknown, "" })
	return nil
}

// Maintenance takes the service out of use while it stays registered, or puts it back. It needs no Run, so that another process may call
// it for the same Service. It lasts until it is ended, or the service deregistered; a running Registration that has seen it restores
// it with an agent that forgot.
func (r *Registration) Maintenance(ctx context.Context, on bool, reason string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	release, err := r.take(ctx)
	if err != nil {
		return fmt.Errorf("maintenance of %s: %w", r.service.ID, err)
	}
	defer release()
	return r.maintain(ctx, on, reason)
}

// Status says how things stood when the agent was last asked. It does not block.
func (r *Registration) Status() RegistrationStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

// verify has the agent know the service. It changes nothing if the agent does.
func (r *Registration) verify(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	release, err := r.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	r.mu.Lock()
	gone, done := r.gone, r.done
	r.mu.Unlock()
	if gone {
		return nil
	}
	entry, err := r.agent.entry(ctx, r.service.ID)
	switch {
	case isNotFound(err):
		return r.register(ctx)
	case err != nil:
		return err
	case done && entry.addr() != r.addr:
		// Who registered last is right: to take the entry back would have the two take turns for ever.
		return fmt.Errorf("another process has registered %s, at %s", r.service.ID, entry.addr())
	case !done || !r.same(entry):
		return r.register(ctx)
	}
	checks, err := r.agent.checks(ctx, r.service.ID)
	if err != nil {
		return err
	}
	check, known := checks[r.checkID()]
	if !known { // A service without checks counts as passing, whatever state it is in.
		return r.register(ctx)
	}
	r.seen(check, checks)
	return nil
}

// seen notes what the agent says about a service that it knows.
func (r *Registration) seen(check agentCheck, checks map[string]agentCheck) {
	maintenance, on := checks[serviceMaintenance+r.service.ID]
	r.update(func(s *RegistrationStatus) {
		s.Registered, s.Health, s.Reason = true, Health(check.Status), ""
		if on {
			s.Health, s.Reason = Maintenance, maintenance.Notes
		}
	})
}

// register registers the service. An agent that knows its check keeps the check's state, and that of a maintenance; one that does
// not is told what its check would find now, so that a service that works is not out of use until the first check.
func (r *Registration) register(ctx context.Context) error {
	was := r.Status()
	health := r.health(ctx)
	if was.Health == Maintenance {
		health = Critical // so that nobody uses it in the moment before the maintenance is restored
	}
	s := r.service
	err := r.agent.consul.ServiceRegisterOpts(&api.AgentServiceRegistration{
		ID: s.ID, Name: s.Name, Address: s.Address, Port: s.Port, Tags: s.Tags, Meta: s.Meta,
		Check: &api.AgentServiceCheck{
			CheckID:                        r.checkID(),
			Name:                           s.Name + " answers",
			HTTP:                           s.HealthURL,
			Interval:                       s.Interval.String(),
			Timeout:                        s.Timeout.String(),
			Status:                         string(health),
			DeregisterCriticalServiceAfter: s.DeregisterAfter.String(),
		},
	}, api.ServiceRegisterOpts{}.WithContext(ctx))
	if err != nil {
		return r.agent.explain(err)
	}
	r.mu.Lock()
	r.done = true
	r.mu.Unlock()
	r.cfg.Logger.Info("registered", "service", s.Name, "id", s.ID, "address", r.addr, "health", health)
	if was.Health == Maintenance {
		return r.maintain(ctx, true, was.Reason)
	}
	r.update(func(s *RegistrationStatus) { s.Registered, s.Health = true, health })
	return nil
}

func (r *Registration) maintain(ctx context.Context, on bool, reason string) error {
	query := new(api.QueryOptions).WithContext(ctx)
	var err error
	if on {
		err = r.agent.consul.EnableServiceMaintenanceOpts(r.service.ID, reason, query)
	} else {
		err = r.agent.consul.DisableServiceMaintenanceOpts(r.service.ID, query)
	}
	if err != nil {
		return fmt.Errorf("maintenance of %s: %w", r.service.ID, r.agent.explain(err))
	}
	r.update(func(s *RegistrationStatus) {
		s.Registered = true
		if on {
			s.Health, s.Reason = Maintenance, reason
		} else if s.Health == Maintenance {
			s.Health, s.Reason = Unknown, ""
		}
	})
	return nil
}

// health does what the agent's check will do.
func (r *Registration) health(ctx context.Context) Health {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.service.HealthURL, nil)
	if err != nil {
		return Critical
	}
	response, err := r.probe.Do(request)
	if err != nil {
		return Critical
	}
	response.Body.Close()
	switch {
	case response.StatusCode >= 200 && response.StatusCode < 300:
		return Passing
	case response.StatusCode == http.StatusTooManyRequests:
		return Warning
	}
	return Critical
}

// take waits for the turn to speak to the agent.
func (r *Registration) take(ctx context.Context) (release func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case r.turn <- struct{}{}:
		return func() { <-r.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (r *Registration) checkID() string { return "service:" + r.service.ID }

func (r *Registration) same(e agentEntry) bool {
	s := r.service
	return e.Service == s.Name && e.Address == s.Address && e.Port == s.Port && slices.Equal(e.Tags, s.Tags) && equalMeta(e.Meta, s.Meta)
}

func (r *Registration) update(change func(*RegistrationStatus)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.status)
}

// note keeps an error for Status, and logs when trouble begins and ends.
func (r *Registration) note(err error) {
	r.mu.Lock()
	was := r.status
	if err != nil {
		r.status.Registered = false
		r.status.LastError, r.status.LastErrorAt = err.Error(), time.Now()
	}
	r.mu.Unlock()
	if err != nil && (was.Registered || was.LastErrorAt.IsZero()) && !errors.Is(err, context.Canceled) {
		r.cfg.Logger.Warn("registration is uncertain", "id", r.service.ID, "error", err)
	}
}
