package creds

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// replace mints a generation and switches to it, or plans the next try.
func (k *keeper) replace(ctx context.Context) {
	g, err := k.mint(ctx)
	if err != nil {
		if ctx.Err() == nil {
			k.mintFailed(err)
		}
		return
	}
	k.warmUp(ctx, g)
	reason := k.wanted
	k.wanted, k.failures, k.refused, k.renewFailures = "", 0, false, 0
	old := k.s.install(g)
	k.cur = g
	k.made = slices.DeleteFunc(append(k.made, g), func(g *generation) bool { return g.given.Load() })
	k.s.metrics.rotations.WithLabelValues(reason).Inc()
	k.s.cfg.Logger.Info("credentials in use", "generation", g.number, "user", g.user, "lease", shortID(g.leaseID),
		"ttl", g.lease.ttl.String(), "reason", reason)
	for _, done := range k.waiting {
		done <- nil
	}
	k.waiting = nil
	if old != nil {
		old.retire()
		k.drains.Go(func() {
			k.s.drain(ctx, old)
			_ = pause(ctx, warmFor)
			g.chill()
		})
	}
}

// warmUp dials as many sessions for the next generation as the current one has open, so that a rotation costs the requests that
// meet it nothing. It is a favour: trouble is left to those who dial for themselves.
func (k *keeper) warmUp(ctx context.Context, next *generation) {
	if k.cur == nil || k.cur.ended.Load() {
		return // everybody is waiting
	}
	ctx, cancel := context.WithTimeout(ctx, warmUpTimeout)
	defer cancel()
	for range k.cur.open() {
		addr, in, err := k.s.open(ctx, next)
		if err != nil {
			return
		}
		next.keepWarm(warmSession{in, addr})
	}
}

func (k *keeper) mintFailed(err error) {
	k.failures++
	left := time.Duration(0)
	if k.cur != nil && !k.cur.ended.Load() {
		left = time.Until(k.cur.expiry())
	} else if !errors.Is(err, errUnavailable) && !errors.Is(err, errCapped) {
		left = calmRetry // Vault is there and says no: asking it every second would not change its mind
	}
	delay := retryDelay(k.failures, left, k.s.random())
	var wait *cappedError
	if errors.As(err, &wait) {
		delay = wait.delay
	} else {
		k.s.note(err)
	}
	k.nextMint = time.Now().Add(delay)
	k.s.cfg.Logger.Warn("no new credentials", "reason", k.wanted, "attempt", k.failures, "retry_in", delay.Round(time.Millisecond).String(), "error", err)
}

var errCapped = errors.New("minting is capped while new credentials do not work")

type cappedError struct{ delay time.Duration }

func (e *cappedError) Error() string {
	return fmt.Sprintf("%v: next attempt in %v", errCapped, e.delay.Round(time.Second))
}
func (e *cappedError) Unwrap() error { return errCapped }

// mint logs in and leases: one attempt.
func (k *keeper) mint(ctx context.Context) (*generation, error) {
	if k.failures > 0 {
		if err := k.worthTrying(ctx); err != nil {
			return nil, err
		}
	}
	if err := k.login(ctx); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if !k.free() {
		r := k.limiter.Reserve()
		if d := r.Delay(); d > 0 {
			r.Cancel()
			return nil, &cappedError{d}
		}
	}
	callCtx, cancel := linger(ctx, mintTimeout, k.s.cfg.RevokeTimeout/2)
	defer cancel()
	k.s.metrics.mints.Inc()
	l, err := k.s.vault.Lease(callCtx, k.spare)
	if err != nil {
		if errors.Is(lostIfDenied(err), errLost) {
			k.dropSpare(ctx)
		}
		k.refused = !errors.Is(err, errUnavailable)
		return nil, err
	}
	k.count++
	g := &generation{
		number: k.count, user: l.user, password: l.password, leaseID: l.id, token: k.spare,
		lease: l.grant, life: k.spareLife,
		conns: map[*conn]struct{}{}, empty: make(chan struct{}),
	}
	k.spare = ""
	g.lease.renewAt = g.lease.issued.Add(renewDelay(g.lease.ttl, k.s.random()))
	g.life.renewAt = g.life.issued.Add(renewDelay(g.life.ttl, k.s.random()))
	return g, nil
}

// worthTrying looks, after a failure, whether another attempt could succeed, by questions that leave nothing behind.
func (k *keeper) worthTrying(ctx context.Context) error {
	callCtx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if err := k.s.vault.Ready(callCtx); err != nil {
		if errors.Is(err, errUnavailable) {
			return err
		}
		return fmt.Errorf("%w: %w", errUnavailable, err)
	}
	if !k.refused {
		return nil
	}
	if err := k.s.probe(callCtx); err != nil {
		return fmt.Errorf("%w: vault cannot make users while mysql is away: %w", errUnavailable, err)
	}
	return nil
}

// free reports whether this attempt costs nothing. Attempts are capped after Vault refused one, and after the server refused a
// user that had never worked or that may do nothing.
func (k *keeper) free() bool {
	switch {
	case k.refused:
		return false
	case k.cur == nil || !k.cur.ended.Load():
		return true
	}
	return k.cur.proven.Load() && fate(k.cur.fate.Load()) != grantsMissing
}

// login makes sure that there is a token that no lease hangs on yet.
func (k *keeper) login(ctx context.Context) error {
	if k.spare != "" && time.Now().Before(k.spareLife.issued.Add(k.spareLife.ttl/2)) {
		return nil
	}
	k.dropSpare(ctx)
	callCtx, cancel := linger(ctx, loginTimeout, k.s.cfg.RevokeTimeout/2)
	defer cancel()
	token, life, err := k.s.vault.Login(callCtx)
	if err != nil {
		return err
	}
	k.spare, k.spareLife = token, life
	return nil
}

func (k *keeper) dropSpare(ctx context.Context) {
	if k.spare == "" {
		return
	}
	callCtx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	_ = k.s.vault.Revoke(callCtx, k.spare) // it has no lease and ends by itself
	k.spare = ""
}

// linger bounds a call that makes something in Vault. The end of ctx gives it a little longer, so that what it made is
// known and can be revoked rather than left behind.
func linger(ctx context.Context, limit, grace time.Duration) (context.Context, context.CancelFunc) {
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	stop := context.AfterFunc(ctx, func() {
		_ = pause(call, grace)
		cancel()
	})
	return call, func() { stop(); cancel() }
}
