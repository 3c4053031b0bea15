package todo

import (
	"context"
	"errors"
	"math"
	"net/http"
	"sync"
	"time"
)

// HealthStatus is one of the three states that Consul knows.
type HealthStatus string

const (
	HealthPassing  HealthStatus = "passing"  // GET /health answers 200.
	HealthWarning  HealthStatus = "warning"  // GET /health answers 429. The instance serves, but somebody should look.
	HealthCritical HealthStatus = "critical" // GET /health answers 503, as it does for any other value.
)

// Health is what GET /health shows of an instance.
type Health struct {
	Status      HealthStatus `json:"status"`
	Instance    string       `json:"instance"`
	Version     string       `json:"version"`
	Reason      string       `json:"reason"` // Why the status is not passing, for people.
	Table       TableHealth  `json:"table"`
	Credentials any          `json:"credentials"` // Whatever the program knows of its database credentials, secrets excepted.
}

// TableHealth is what came of a query of the table.
type TableHealth struct {
	OK           bool    `json:"ok"`
	Error        string  `json:"error"`
	Milliseconds float64 `json:"milliseconds"` // How long the query took, or how long it was waited for.
}

func (s HealthStatus) httpStatus() int {
	switch s {
	case HealthPassing:
		return http.StatusOK
	case HealthWarning:
		return http.StatusTooManyRequests
	}
	return http.StatusServiceUnavailable
}

// TableCheckConfig configures a TableCheck.
type TableCheckConfig struct {
	// Query asks the table; (*Store).Check is meant. Required.
	Query func(ctx context.Context) error
	// Timeout bounds one query. Default 2 s, which is well below the 10 s that Consul gives a check.
	Timeout time.Duration
	// MaxAge is how long a result is shown again before the table is asked anew. Default 500 ms, so that health checks cost
	// the database at most two short queries a second, however many there are.
	MaxAge time.Duration
}

// TableCheck asks the table on behalf of everybody who wants to know its health: one query at a time, its result shared and
// kept for a moment. It may be used by many goroutines and owns none.
type TableCheck struct {
	config TableCheckConfig

	mu       sync.Mutex
	result   TableHealth
	askedAt  time.Time     // When the query behind result ended; zero before the first one.
	underway chan struct{} // Closed when the query under way has ended; nil if there is none.
}

// NewTableCheck returns a TableCheck, or an error if there is no query.
func NewTableCheck(config TableCheckConfig) (*TableCheck, error) {
	if config.Query == nil {
		return nil, errors.New("table check: Query is required")
	}
	if config.Timeout <= 0 {
		config.Timeout = 2 * time.Second
	}
	if config.MaxAge <= 0 {
		config.MaxAge = 500 * time.Millisecond
	}
	return &TableCheck{config: config}, nil
}

// Check returns the table's health, at most MaxAge old. It waits for at most Timeout, and less if ctx ends: then it says that
// it could not wait, which the next caller is not told.
func (c *TableCheck) Check(ctx context.Context) TableHealth {
	began := time.Now()
	for {
		c.mu.Lock()
		if !c.askedAt.IsZero() && time.Since(c.askedAt) < c.config.MaxAge {
			defer c.mu.Unlock()
			return c.result
		}
		underway := c.underway
		if underway == nil {
			c.underway = make(chan struct{})
			c.mu.Unlock()
			return c.ask(ctx)
		}
		c.mu.Unlock()
		select {
		case <-underway:
		case <-ctx.Done():
			return TableHealth{Error: context.Cause(ctx).Error(), Milliseconds: milliseconds(time.Since(began))}
		}
	}
}

// ask runs the query in the goroutine of the caller that came first. It does not end with that caller's context, because
// others wait for its result.
func (c *TableCheck) ask(ctx context.Context) TableHealth {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.config.Timeout)
	defer cancel()
	began := time.Now()
	result := TableHealth{Error: "the query of the table did not return"} // Stands if the query panics.
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.result, c.askedAt = result, time.Now()
		close(c.underway)
		c.underway = nil
	}()
	err := c.config.Query(ctx)
	result = TableHealth{OK: err == nil, Milliseconds: milliseconds(time.Since(began))}
	if err != nil {
		result.Error = err.Error()
	}
	return result
}

// milliseconds rounds to microseconds, which is all that a reader can use.
func milliseconds(d time.Duration) float64 {
	return math.Round(float64(d)/float64(time.Microsecond)) / 1000
}

// health answers GET /health in the way Consul's HTTP check reads it.
func (a *api) health(w http.ResponseWriter, r *http.Request) error {
	report := a.config.Health(r.Context())
	writeJSON(w, report.Status.httpStatus(), report)
	return nil
}

// live says that the process answers, and deliberately asks nothing else: a restart repairs no database.
func (a *api) live(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, map[string]string{"status": "alive"})
	return nil
}

// ready says whether the instance wants requests.
func (a *api) ready(w http.ResponseWriter, _ *http.Request) error {
	if err := a.config.Ready(); err != nil {
		return &requestError{
			status:    http.StatusServiceUnavailable,
			code:      codeNotReady,
			message:   err.Error(),
			retryable: true,
		}
	}
	writeJSON(w, http.StatusOK, map[string]string{"status": "ready"})
	return nil
}
