package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"example.com/todo/discovery"
	"example.com/todo/internal/lab"
	"example.com/todo/todo"

	"example.com/todo/internal/labtest"
)

const (
	balancedClients = 6  // through discovery.Transport
	directClients   = 2  // per instance, past it, where every instance is promised to answer throughout
	pace            = 50 // operations per second and client, at most
	ownTodos        = 20 // that a client keeps
	shownFailures   = 10
)

// traffic is what clients do while something happens to the system, and the memory of every write: what was promised is
// compared with every later read, and at the end with the table.
type traffic struct {
	lab   *lab.Lab
	watch *discovery.Watch
	run   string // sets this traffic's todos apart from others'

	stop    context.CancelFunc
	work    sync.WaitGroup
	workers []*worker

	reads, writes, unknown, resent, failed atomic.Int64
	slowest                                atomic.Int64 // nanoseconds

	mu      sync.Mutex
	entries []*entry
}

// entry is what is known of one todo. Its content is unlike all others', so that one created twice shows.
type entry struct {
	content string
	id      int64    // 0 if its creation was never acknowledged
	may     []string // what its status may be: more than one after an update whose outcome is unknown
	unsure  bool     // there may be no such todo: the outcome of its creation or deletion is unknown
	gone    bool     // its deletion was acknowledged
}

// clients are those of a traffic besides the ones that look the service up and send again what may be sent again.
type clients struct {
	once   int      // look the service up, and send every request once
	direct []string // addresses of instances, each of which gets clients that know nothing else
}

// startTraffic begins with clients that look the service up at the agent of the database's machine. It returns when each has had an
// answer.
func startTraffic(t *testing.T, l *lab.Lab, c clients) *traffic {
	t.Helper()
	w, err := discovery.NewWatch(discovery.Config{Agent: l.Consul("mysql")}, "todo")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	tr := &traffic{lab: l, watch: w, run: fmt.Sprintf("%08x", rand.Uint32()), stop: cancel}
	t.Cleanup(tr.end)
	tr.work.Go(func() { _ = w.Run(ctx) }) // its only error is that of a second Run
	labtest.Eventually(t, 10*time.Second, "the watch sees all instances", func() bool { return w.Status().Instances == len(instances) })
	balanced := tr.balance(t, discovery.TransportConfig{})
	for n := range balancedClients {
		tr.begin(ctx, t, fmt.Sprintf("balanced%d", n), "http://todo", balanced)
	}
	once := tr.balance(t, discovery.TransportConfig{Tries: 1})
	for n := range c.once {
		tr.begin(ctx, t, fmt.Sprintf("once%d", n), "http://todo", once)
	}
	for _, addr := range c.direct {
		for n := range directClients {
			own := &http.Client{Transport: &http.Transport{}, Timeout: 15 * time.Second}
			tr.begin(ctx, t, fmt.Sprintf("%s-%d", addr, n), "http://"+addr, own)
		}
	}
	labtest.Eventually(t, 10*time.Second, "every client is answered", func() bool {
		return !slices.ContainsFunc(tr.workers, func(w *worker) bool { return w.answered.Load() == 0 })
	})
	return tr
}

// balance makes an http.Client over all instances that the traffic's watch finds.
func (tr *traffic) balance(t *testing.T, c discovery.TransportConfig) *http.Client {
	t.Helper()
	transport, err := discovery.NewTransport(tr.watch, c)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Transport: attempts{transport}}
}

func (tr *traffic) begin(ctx context.Context, t *testing.T, name, base string, h *http.Client) {
	t.Helper()
	c, err := todo.NewClient(base, h)
	if err != nil {
		t.Fatal(err)
	}
	w := &worker{traffic: tr, t: t, name: name, client: c}
	tr.workers = append(tr.workers, w)
	tr.work.Go(func() {
		defer h.CloseIdleConnections()
		w.loop(ctx)
	})
}

// end ends it and waits for the requests in progress.
func (tr *traffic) end() {
	tr.stop()
	tr.work.Wait()
}

// during fails the test unless both reads and writes were acknowledged while something was done: else nothing was proven.
func (tr *traffic) during(t *testing.T, what string, do func()) {
	t.Helper()
	reads, writes := tr.reads.Load(), tr.writes.Load()
	do()
	if r, w := tr.reads.Load()-reads, tr.writes.Load()-writes; r == 0 || w == 0 {
		t.Errorf("%s: %d reads and %d writes were acknowledged meanwhile: nothing is proven", what, r, w)
	}
}

// goOn waits until so many more operations were acknowledged.
func (tr *traffic) goOn(t *testing.T, operations int64) {
	t.Helper()
	done := func() int64 { return tr.reads.Load() + tr.writes.Load() }
	goal := done() + operations
	labtest.Eventually(t, 30*time.Second, "the traffic goes on", func() bool { return done() >= goal })
}

// settle ends the traffic and holds its memory against the table.
func (tr *traffic) settle(t *testing.T) {
	t.Helper()
	root, err := tr.lab.MySQL()
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close() //nolint:errcheck // nothing was written
	tr.settleIn(t, root)
}

func (tr *traffic) settleIn(t *testing.T, root *sql.DB) {
	t.Helper()
	tr.end()
	if n := tr.failed.Load(); n > 0 {
		t.Errorf("%d failed", n)
	}
	table := tr.table(t, root)
	lost, twice, wrong := 0, 0, 0
	for _, e := range tr.entries {
		rows := table[e.content]
		delete(table, e.content)
		switch {
		case len(rows) > 1:
			twice++
		case len(rows) == 1 && (e.gone || !slices.Contains(e.may, rows[0])):
			wrong++
		case len(rows) == 0 && !e.gone && !e.unsure:
			lost++
		}
	}
	t.Logf("%d reads and %d writes acknowledged, %d sent again, %d of unknown outcome, %d failed; slowest %v",
		tr.reads.Load(), tr.writes.Load(), tr.resent.Load(), tr.unknown.Load(), tr.failed.Load(),
		time.Duration(tr.slowest.Load()).Round(time.Millisecond))
	if lost+twice+wrong+len(table) > 0 {
		t.Errorf("of %d todos %d are lost, %d there twice, %d not as they were left; %d are nobody's", len(tr.entries), lost, twice, wrong, len(table))
	}
}

// table is what really is: the statuses of this traffic's todos by content.
func (tr *traffic) table(t *testing.T, root *sql.DB) map[string][]string {
	t.Helper()
	rows, err := root.QueryContext(t.Context(), "SELECT content, status FROM todo.todo WHERE content LIKE ?", tr.run+" %")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close() //nolint:errcheck // read to the end
	table := map[string][]string{}
	for rows.Next() {
		var content, status string
		if err := rows.Scan(&content, &status); err != nil {
			t.Fatal(err)
		}
		table[content] = append(table[content], status)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return table
}

// worker is one client. Nobody else touches its todos, so it knows what each read must give.
type worker struct {
	*traffic
	t      *testing.T
	name   string
	client *todo.Client
	own    []*entry
	made   int

	answered atomic.Int64
}

func (w *worker) loop(ctx context.Context) {
	limit := rate.NewLimiter(pace, 1)
	for limit.Wait(ctx) == nil {
		o := &operation{began: time.Now()}
		w.act(context.WithValue(context.WithoutCancel(ctx), operationKey{}, o))
		took := int64(time.Since(o.began))
		for s := w.slowest.Load(); took > s && !w.slowest.CompareAndSwap(s, took); s = w.slowest.Load() {
		}
		if o.resent.Load() {
			w.resent.Add(1)
		}
	}
}

// act does one operation.
func (w *worker) act(ctx context.Context) {
	if len(w.own) == 0 {
		w.create(ctx)
		return
	}
	n := rand.IntN(len(w.own))
	switch chance := rand.IntN(20); {
	case chance == 0:
		w.list(ctx)
	case chance < 10:
		w.get(ctx, w.own[n])
	case chance < 15:
		w.update(ctx, w.own[n])
	case chance < 20-2*len(w.own)/ownTodos:
		w.create(ctx)
	default:
		w.delete(ctx, n)
	}
}

func (w *worker) create(ctx context.Context) {
	w.made++
	e := &entry{content: fmt.Sprintf("%s %s %d", w.run, w.name, w.made), may: []string{todo.StatusNew}}
	w.mu.Lock()
	w.entries = append(w.entries, e)
	w.mu.Unlock()
	made, err := w.client.Create(ctx, todo.Draft{Status: todo.StatusNew, Content: e.content})
	switch w.sort("create", err, &w.writes) {
	case acknowledged:
		e.id = made.ID
		w.own = append(w.own, e)
	case unknown:
		e.unsure = true
	case failed:
		e.gone = true // Nothing was done, it says: there must be none.
	}
}

func (w *worker) get(ctx context.Context, e *entry) {
	found, err := w.client.Get(ctx, e.id)
	if w.sort("get", err, &w.reads) == acknowledged {
		w.compare(e, found)
	}
}

// list reads everybody's todos, and knows what it must find of its own.
func (w *worker) list(ctx context.Context) {
	all, err := w.client.List(ctx)
	if w.sort("list", err, &w.reads) != acknowledged {
		return
	}
	byID := make(map[int64]todo.Todo, len(all))
	for _, found := range all {
		byID[found.ID] = found
	}
	for _, e := range w.own {
		w.compare(e, byID[e.id])
	}
}

func (w *worker) update(ctx context.Context, e *entry) {
	status := fmt.Sprintf("%08x", rand.Uint32())
	_, err := w.client.Update(ctx, e.id, todo.Draft{Status: status, Content: e.content})
	switch w.sort("update", err, &w.writes) {
	case acknowledged:
		e.may = []string{status}
	case unknown:
		e.may = append(e.may, status)
	}
}

func (w *worker) delete(ctx context.Context, n int) {
	e := w.own[n]
	err := w.client.Delete(ctx, e.id)
	switch w.sort("delete", err, &w.writes) {
	case acknowledged:
		e.gone = true
	case unknown:
		e.unsure = true
	default:
		return
	}
	w.own = slices.Delete(w.own, n, n+1)
}

// The three classes of outcomes.
type class int

const (
	acknowledged class = iota
	unknown
	failed
)

// sort counts an outcome, and fails the test if it is neither success nor unknown.
func (w *worker) sort(what string, err error, success *atomic.Int64) class {
	switch {
	case err == nil:
		success.Add(1)
		w.answered.Add(1)
		return acknowledged
	case errors.Is(err, todo.ErrOutcomeUnknown):
		w.unknown.Add(1)
		w.t.Logf("%s: outcome of %s unknown: %v", w.name, what, err)
		return unknown
	}
	w.fail("%s: %s failed: %v", w.name, what, err)
	return failed
}

func (w *worker) fail(format string, args ...any) {
	if n := w.failed.Add(1); n <= shownFailures {
		w.t.Errorf(format, args...)
	}
}

// compare holds what was read against what was promised.
func (w *worker) compare(e *entry, found todo.Todo) {
	if found.Content != e.content || !slices.Contains(e.may, found.Status) {
		w.fail("%s: todo %d is %+v, want %q with a status of %v", w.name, e.id, found, e.content, e.may)
	}
}

// operation is what is known of an operation besides its outcome.
type operation struct {
	began  time.Time
	resent atomic.Bool
}

type operationKey struct{}

// attempts notes which operations were sent more than once.
type attempts struct{ *discovery.Transport }

func (a attempts) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := a.Transport.RoundTrip(r)
	if response != nil && response.Request.Header.Get(discovery.AttemptHeader) != "" {
		if o, ok := r.Context().Value(operationKey{}).(*operation); ok {
			o.resent.Store(true)
		}
	}
	return response, err
}
