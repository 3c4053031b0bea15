package discovery

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// minGap is the least time between the starts of two queries, however often the catalogue changes.
	minGap = 200 * time.Millisecond
	// firstRetry and lastRetry bound the wait after neither the API nor DNS answered.
	firstRetry = 100 * time.Millisecond
	lastRetry  = 2 * time.Second
)

// Source says where the instances come from that a Watch gives out.
type Source string

// The sources. Before the first answer there is None.
const (
	None           Source = ""
	FromAPI        Source = "api"
	FromDNS        Source = "dns"
	FromRemembered Source = "remembered" // nothing answers now, or what answers has lost them all: see Config.HoldEmpty
)

// Status is what a Watch knows about itself.
type Status struct {
	Service   string
	Source    Source
	Age       time.Duration // since Consul last confirmed the instances; up to Config.Wait is usual, because a query blocks as long as nothing changes
	Instances int           // that Pick chooses from

	LastError   string // empty if there never was one
	LastErrorAt time.Time
}

// Watch follows one service in the catalogue. It is safe for concurrent use. Only Run does I/O.
type Watch struct {
	service string
	cfg     Config
	askAPI  func(ctx context.Context, index uint64, wait time.Duration) (answer, error)
	askDNS  func(ctx context.Context) ([]Instance, error)

	errNone, errNoAnswer error // made once: Pick allocates nothing

	running atomic.Bool
	current atomic.Pointer[snapshot] // never nil
	turn    atomic.Uint64

	mu         sync.Mutex
	status     Status    // without Age
	confirmed  time.Time // when the snapshot was last confirmed
	emptySince time.Time // when the catalogue began to say, without a pause, that there is nothing; only Run uses it
}

// snapshot is what is known at one moment. It never changes.
type snapshot struct {
	answered bool
	all      []Instance // the catalogue, whatever the health
	usable   []Instance // what is given out
	addrs    map[string]struct{}
	replaced chan struct{} // closed when another snapshot takes its place
}

// NewWatch makes a Watch of a service; nothing happens before its Run.
func NewWatch(cfg Config, service string) (*Watch, error) {
	if err := checkService(service); err != nil {
		return nil, err
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	agent, err := newAgent(cfg)
	if err != nil {
		return nil, err
	}
	dns := &resolver{server: cfg.DNS, domain: cfg.Domain}
	w := &Watch{
		service: service,
		cfg:     cfg,
		askAPI: func(ctx context.Context, index uint64, wait time.Duration) (answer, error) {
			return agent.service(ctx, service, index, wait)
		},
		askDNS:      func(ctx context.Context) ([]Instance, error) { return dns.service(ctx, service) },
		errNone:     fmt.Errorf("service %s: %w", service, ErrNoInstances),
		errNoAnswer: fmt.Errorf("service %s: %w", service, ErrNoAnswer),
		status:      Status{Service: service},
	}
	w.turn.Store(rand.Uint64()) // so that clients that start together do not all begin with the same instance
	w.current.Store(&snapshot{replaced: make(chan struct{})})
	return w, nil
}

// Service is the name of the service.
func (w *Watch) Service() string { return w.service }

// Pick chooses the next instance in turn, without blocking and without allocating. The error is ErrNoAnswer or ErrNoInstances.
func (w *Watch) Pick() (Instance, error) {
	s := w.current.Load()
	if len(s.usable) == 0 {
		if !s.answered {
			return Instance{}, w.errNoAnswer
		}
		return Instance{}, w.errNone
	}
	return s.usable[w.turn.Add(1)%uint64(len(s.usable))], nil
}

// Instances lists what Pick chooses from, ordered by address. It blocks until the first answer, and never again: later answers come
// from memory. It returns ErrNoInstances if the list would be empty, and ErrNoAnswer with ctx's error if ctx ends first.
func (w *Watch) Instances(ctx context.Context) ([]Instance, error) {
	s, err := w.answered(ctx)
	if err != nil {
		return nil, err
	}
	if len(s.usable) == 0 {
		return nil, w.errNone
	}
	return slices.Clone(s.usable), nil
}

// answered waits for the first answer.
func (w *Watch) answered(ctx context.Context) (*snapshot, error) {
	for {
		s := w.current.Load()
		if s.answered {
			return s, nil
		}
		select {
		case <-s.replaced:
		case <-ctx.Done():
			err := fmt.Errorf("%w: %w", w.errNoAnswer, ctx.Err())
			if last := w.Status().LastError; last != "" {
				err = fmt.Errorf("%w (%s)", err, last)
			}
			return nil, err
		}
	}
}

// Keep reports whether a connection to addr may go on being used. It may not once the service is elsewhere and no longer there; where
// nothing better is known, it may. Keep neither blocks nor allocates: it may be asked for each use of a pooled connection.
func (w *Watch) Keep(addr string) bool {
	s := w.current.Load()
	if len(s.usable) == 0 {
		return true
	}
	_, ok := s.addrs[addr]
	return ok
}

// Changed returns a channel that is closed when anything changes in the catalogue that concerns this service, its instances'
// health included. To follow changes, call Changed, look, wait for the channel, and begin again: so none is missed.
func (w *Watch) Changed() <-chan struct{} { return w.current.Load().replaced }

// Status says how things stand. It does not block.
func (w *Watch) Status() Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	status := w.status
	if !w.confirmed.IsZero() {
		status.Age = time.Since(w.confirmed)
	}
	return status
}

// Run follows the catalogue until ctx ends, and returns nil then. It reports trouble through Status and the logger; the only
// error is that of a second Run while one is under way.
func (w *Watch) Run(ctx context.Context) error {
	if !w.running.CompareAndSwap(false, true) {
		return fmt.Errorf("watch of service %s runs already", w.service)
	}
	defer w.running.Store(false)
	retry := backoff{first: firstRetry, most: lastRetry}
	var index uint64
	for ctx.Err() == nil {
		began := time.Now()
		var pause time.Duration
		source, next, err := w.ask(ctx, index)
		switch {
		case ctx.Err() != nil:
			return nil
		case source == None:
			w.failed(err)
			pause = retry.next()
		case source == FromAPI && next != 0 || source == FromAPI && index != 0:
			retry.reset()
			pause = jitter(minGap) - time.Since(began)
		default:
			// Nothing blocks: what is asked at intervals is DNS, or an API whose answers carry no index.
			retry.reset()
			pause = jitter(w.cfg.Poll)
		}
		index = next
		sleep(ctx, pause)
	}
	return nil
}

// ask gets one answer from wherever there is one, and takes it over. The source is None if there is no answer.
func (w *Watch) ask(ctx context.Context, index uint64) (source Source, next uint64, err error) {
	if w.cfg.Mode != DNS {
		a, err := w.askAPI(ctx, index, w.wait())
		if err == nil {
			w.take(FromAPI, a.all, nil)
			return FromAPI, nextIndex(index, a.index), nil
		}
		if w.cfg.Mode == API {
			return None, 0, err
		}
		all, dnsErr := w.askDNS(ctx)
		if dnsErr != nil && len(all) == 0 {
			return None, 0, errors.Join(err, dnsErr)
		}
		w.take(FromDNS, all, errors.Join(err, dnsErr))
		return FromDNS, 0, nil
	}
	all, err := w.askDNS(ctx)
	if err != nil && len(all) == 0 {
		return None, 0, err
	}
	w.take(FromDNS, all, err)
	return FromDNS, 0, nil
}

// nextIndex is the rule of Consul's blocking queries: begin anew when the index goes backwards, as it does when a server is
// restored or replaced. An index of 0 never blocks, so it is none.
func nextIndex(last, got uint64) uint64 {
	if got < last {
		return 0
	}
	return got
}

// wait is how long the next query may block: not beyond the moment at which an empty answer is to be believed.
func (w *Watch) wait() time.Duration {
	wait := w.cfg.Wait
	if !w.emptySince.IsZero() {
		wait = min(wait, w.cfg.HoldEmpty-time.Since(w.emptySince)) // less than nothing if that moment has just passed
	}
	return jitter(max(wait, time.Second))
}

// take makes an answer the current one. A partial error is remembered, and changes nothing else.
func (w *Watch) take(source Source, all []Instance, partial error) {
	old := w.current.Load()
	now := time.Now()
	best := usable(all)
	held := w.hold(now, old, all, best)
	if held == nil {
		w.emptySince = time.Time{}
	} else {
		best, source = held, FromRemembered
		partial = errors.Join(partial, fmt.Errorf("service %s: catalogue has lost all healthy instances at once", w.service))
	}
	changed := !old.answered || !slices.EqualFunc(old.all, all, Instance.equal) || !slices.EqualFunc(old.usable, best, Instance.equal)

	w.mu.Lock()
	was := w.status.Source
	w.status.Source, w.status.Instances = source, len(best)
	if held == nil {
		w.confirmed = now
	}
	if partial != nil {
		w.status.LastError, w.status.LastErrorAt = partial.Error(), now
	}
	w.mu.Unlock()

	if changed {
		w.replace(old, &snapshot{answered: true, all: all, usable: best})
	}
	w.logSource(was, source, partial)
}

// replace publishes a snapshot, and then tells who waits for it.
func (w *Watch) replace(old, s *snapshot) {
	s.replaced = make(chan struct{})
	s.addrs = make(map[string]struct{}, len(s.usable))
	for _, i := range s.usable {
		s.addrs[i.Addr] = struct{}{}
	}
	w.current.Store(s)
	close(old.replaced)
	w.cfg.Logger.Info("instances changed", "service", w.service, "instances", len(s.usable), "in_catalogue", len(s.all))
}

// hold decides whether an answer without a usable instance leaves the last good one in force, and which part of it: not what is in
// maintenance, for somebody wanted that. Nil means that the answer counts.
func (w *Watch) hold(now time.Time, old *snapshot, all, best []Instance) []Instance {
	if len(best) > 0 || len(old.usable) == 0 || w.cfg.HoldEmpty == 0 {
		return nil
	}
	if w.emptySince.IsZero() {
		w.emptySince = now
	}
	if now.Sub(w.emptySince) >= w.cfg.HoldEmpty {
		return nil
	}
	var held []Instance
	for _, i := range old.usable {
		wanted := func(o Instance) bool { return o.Addr == i.Addr && o.Health == Maintenance }
		if !slices.ContainsFunc(all, wanted) {
			held = append(held, i)
		}
	}
	return held
}

// failed notes that nothing answered. What was known goes on being used.
func (w *Watch) failed(err error) {
	w.emptySince = time.Time{} // Only an uninterrupted run of empty answers is believed.
	source := None
	if w.current.Load().answered {
		source = FromRemembered
	}
	w.mu.Lock()
	was, first := w.status.Source, w.status.LastErrorAt.IsZero()
	w.status.Source = source
	w.status.LastError, w.status.LastErrorAt = err.Error(), time.Now()
	w.mu.Unlock()
	if source == None && first {
		w.cfg.Logger.Warn("consul does not answer yet", "service", w.service, "error", err)
	}
	w.logSource(was, source, err)
}

// logSource says once what changed for better or worse.
func (w *Watch) logSource(was, source Source, err error) {
	switch {
	case was == source:
	case source == FromAPI || w.cfg.Mode == DNS && source == FromDNS:
		w.cfg.Logger.Info("catalogue answers", "service", w.service, "source", source)
	default:
		w.cfg.Logger.Warn("catalogue is not what it should be", "service", w.service, "source", source, "error", err)
	}
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
