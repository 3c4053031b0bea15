package creds

import (
	"context"
	"errors"
	"sync"
	"time"
)

const (
	// sweepEvery is how often a drain looks for sessions of the old user that have fallen idle.
	sweepEvery = 50 * time.Millisecond
	// patience is how long a drain waits, past its deadline, for statements in flight. The server has checked their
	// privileges already, so that a revocation does not hurt them.
	patience = 2 * time.Second
)

// drain waits until nobody uses the generation, or its deadline, and revokes it.
func (s *Source) drain(ctx context.Context, g *generation) {
	started := time.Now()
	deadline := started.Add(s.cfg.DrainTimeout)
	if e := g.expiry(); e.Before(deadline) && fate(g.fate.Load()) == retired && e.After(started) {
		deadline = e // Vault will not wait longer
	}
	if g.ended.Load() {
		deadline = started // its user is gone: nothing can be finished
	}
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for emptied := false; !emptied && time.Now().Before(deadline) && ctx.Err() == nil; {
		sweep(g)
		select {
		case <-g.empty:
			emptied = true
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	s.quiesce(ctx, g)
	s.metrics.drains.Observe(time.Since(started).Seconds())
	s.revoke(ctx, g)
}

// quiesce stops statements from being sent as g's user and waits for those in flight.
func (s *Source) quiesce(ctx context.Context, g *generation) {
	until := time.Now().Add(patience)
	g.finish()
	g.chill()
	for !sweep(g) && time.Now().Before(until) && ctx.Err() == nil {
		_ = pause(ctx, sweepEvery/5)
	}
}

// sweep closes the generation's idle sessions and reports whether no statement is in flight on the others.
func sweep(g *generation) bool {
	quiet := true
	for _, c := range g.open() {
		quiet = c.sweep(g) && quiet
	}
	return quiet
}

// revoke ends the generation's token, and so its lease, trying again until the lease would have ended by itself. When ctx
// ends, it is left to leave.
func (s *Source) revoke(ctx context.Context, g *generation) {
	for n := 1; ctx.Err() == nil; n++ {
		err := s.revokeOnce(ctx, g)
		if err == nil {
			return
		}
		left := time.Until(g.expiry())
		if left <= 0 {
			return
		}
		_ = pause(ctx, retryDelay(n, left, s.random()))
	}
}

func (s *Source) revokeOnce(ctx context.Context, g *generation) error {
	callCtx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	err := s.vault.Revoke(callCtx, g.token)
	outcome := "ok"
	if err != nil {
		outcome = "failed"
		s.cfg.Logger.Warn("revocation failed", "generation", g.number, "user", g.user, "error", err)
	} else {
		g.given.Store(true)
		s.cfg.Logger.Info("credentials revoked", "generation", g.number, "user", g.user)
	}
	s.metrics.revocations.WithLabelValues(outcome).Inc()
	return err
}

// leave revokes everything that is still ours, all at once and within the time that is allowed.
func (k *keeper) leave(ctx context.Context) {
	for _, done := range k.waiting {
		done <- ErrStopped
	}
	k.drains.Wait() // they end with ctx
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), k.s.cfg.RevokeTimeout)
	defer cancel()
	var all sync.WaitGroup
	for _, g := range k.made {
		if g.given.Load() {
			continue
		}
		all.Go(func() {
			k.s.quiesce(ctx, g)
			if err := k.s.revokeOnce(ctx, g); err != nil && !errors.Is(err, errLost) {
				k.s.cfg.Logger.Error("credentials left behind: they end by themselves", "user", g.user, "expires", g.expiry())
			}
		})
	}
	if k.spare != "" {
		all.Go(func() { k.dropSpare(ctx) })
	}
	all.Wait()
}
