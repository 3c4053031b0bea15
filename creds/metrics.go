package creds

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	registerer  prometheus.Registerer
	mints       prometheus.Counter
	retries     prometheus.Counter
	renewals    *prometheus.CounterVec
	rotations   *prometheus.CounterVec
	revocations *prometheus.CounterVec
	drains      prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{
		registerer: r,
		mints: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "creds_mints_total", Help: "Credentials asked of Vault, whatever became of it.",
		}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "creds_statement_retries_total", Help: "Statements run again because their credentials had been revoked.",
		}),
		renewals:    counters("creds_renewals_total", "Renewals by kind (token, lease) and outcome.", "kind", "outcome"),
		rotations:   counters("creds_rotations_total", "Switches to new credentials, by reason.", "reason"),
		revocations: counters("creds_revocations_total", "Our own revocations of replaced credentials, by outcome.", "outcome"),
		drains: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "creds_drain_seconds", Help: "Time from a switch until the old credentials were unused.",
			Buckets: []float64{.001, .01, .05, .1, .5, 1, 5, 10, 30, 60},
		}),
	}
	if r == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.mints, m.retries, m.renewals, m.rotations, m.revocations, m.drains} {
		errs = append(errs, r.Register(c))
	}
	return m, errors.Join(errs...)
}

// watch adds the gauges, which are read from the source when they are collected.
func (m *metrics) watch(s *Source) error {
	if m.registerer == nil {
		return nil
	}
	gauge := func(name, help string, value func(Status) float64) error {
		return m.registerer.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
			func() float64 { return value(s.Status()) }))
	}
	return errors.Join(
		gauge("creds_lease_seconds_left", "Time until Vault may revoke the current user; negative after it.",
			func(st Status) float64 { return st.SecondsLeft }),
		gauge("creds_generation", "Number of the current credentials in this process.",
			func(st Status) float64 { return float64(st.Generation) }),
		gauge("creds_connections", "Open connections of the current credentials.",
			func(st Status) float64 { return float64(st.Connections) }),
		gauge("creds_level", "0 well, 1 on borrowed time, 2 without credentials.",
			func(st Status) float64 { return float64(st.State.Level()) }),
	)
}
