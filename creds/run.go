package creds

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits on single exchanges with Vault. A lease may wait its turn behind hundreds of others, because Vault's MySQL plugin
// creates one user at a time; a renewal may not, because it is tried again.
const (
	readyTimeout = 3 * time.Second
	loginTimeout = 30 * time.Second
	mintTimeout  = 30 * time.Second
	renewTimeout = 5 * time.Second
)

const (
	// warmUpTimeout bounds how long a switch waits for sessions dialled ahead.
	warmUpTimeout = 2 * time.Second
	// warmFor is how long sessions dialled ahead are kept for connections to take.
	warmFor = 5 * time.Second
)

// keeper is what Run knows: only its goroutine touches it.
type keeper struct {
	s      *Source
	cur    *generation
	made   []*generation // not revoked yet, as far as we know
	count  int
	drains sync.WaitGroup

	// wanted is why a replacement is due, "" if none is; nextMint is when to try.
	wanted   string
	nextMint time.Time
	failures int  // of minting, in a row
	refused  bool // the last attempt reached Vault and was refused there
	waiting  []chan error
	limiter  *rate.Limiter

	// spare is a token without a lease: logged in, but minting failed.
	spare     Secret
	spareLife grant

	renewFailures int
}

// Run logs in, leases, renews, replaces, drains and revokes until ctx ends; then it revokes what is left within
// Config.RevokeTimeout and returns nil. Close the pool first, so that nothing is cut off. While Vault is away Run goes on trying;
// it never returns an error for that. A second Run is an error.
func (s *Source) Run(ctx context.Context) error {
	if !s.running.CompareAndSwap(false, true) {
		return errors.New("creds: Run was called twice")
	}
	k := &keeper{
		s: s, wanted: "start", nextMint: time.Now(),
		limiter: rate.NewLimiter(rate.Every(s.cfg.MintRefill), 1),
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case done := <-s.rotate:
			k.waiting = append(k.waiting, done)
			k.want("requested")
		case <-s.kick:
			k.lookAround()
		case <-timer.C:
			k.lookAround()
		}
		k.act(ctx)
		timer.Reset(time.Until(k.next()))
	}
	close(s.stopped)
	k.leave(ctx)
	return nil
}

// want asks for a replacement at once, unless one is being asked for already.
func (k *keeper) want(reason string) {
	if k.wanted == "" {
		k.wanted, k.nextMint, k.failures, k.refused = reason, time.Now(), 0, false
	}
}

// lookAround notices what time or others have done to the current generation.
func (k *keeper) lookAround() {
	switch {
	case k.cur == nil:
	case k.cur.ended.Load():
		k.want("revoked")
	case !time.Now().Before(k.cur.expiry()):
		k.want("expired")
	}
}

// next is when act has something to do again.
func (k *keeper) next() time.Time {
	at := time.Now().Add(time.Hour)
	earliest := func(t time.Time) {
		if t.Before(at) {
			at = t
		}
	}
	if k.wanted != "" {
		earliest(k.nextMint)
	}
	if k.cur != nil && !k.cur.ended.Load() && time.Now().Before(k.cur.expiry()) {
		earliest(k.cur.expiry())
		earliest(k.cur.lease.renewAt)
		earliest(k.cur.life.renewAt)
	}
	return at
}

// act does what is due.
func (k *keeper) act(ctx context.Context) {
	if k.wanted != "" && !time.Now().Before(k.nextMint) {
		k.replace(ctx)
	}
	g := k.cur
	if g == nil || g.ended.Load() || !time.Now().Before(g.expiry()) {
		return
	}
	if !time.Now().Before(g.life.renewAt) {
		k.renew(ctx, "token", &g.life, func(ctx context.Context) (grant, error) {
			return k.s.vault.RenewToken(ctx, g.token)
		})
	}
	if !time.Now().Before(g.lease.renewAt) {
		k.renew(ctx, "lease", &g.lease, func(ctx context.Context) (grant, error) {
			return k.s.vault.RenewLease(ctx, g.token, g.leaseID, g.lease.nominal)
		})
	}
}

// renew renews a lease or token, or asks for a replacement where renewing cannot help.
func (k *keeper) renew(ctx context.Context, kind string, held *grant, call func(context.Context) (grant, error)) {
	g := k.cur
	if !held.renewable {
		k.want(kind + " cannot be renewed")
		k.set(g, held, later(*held, time.Until(g.expiry())))
		return
	}
	callCtx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	got, err := call(callCtx)
	if err != nil {
		k.renewalFailed(ctx, kind, held, err)
		return
	}
	k.renewFailures = 0
	k.s.metrics.renewals.WithLabelValues(kind, "ok").Inc()
	got.nominal = max(held.nominal, got.ttl)
	got.renewAt = got.issued.Add(renewDelay(got.ttl, k.s.random()))
	k.set(g, held, got)
	k.s.cfg.Logger.Debug("renewed", "kind", kind, "generation", g.number, "ttl", got.ttl)
	if capped(got.ttl, got.nominal) {
		k.want(kind + " reaches its maximum")
	}
}

// renewalFailed tries again soon, or asks for a replacement if Vault does not know the thing any more.
func (k *keeper) renewalFailed(ctx context.Context, kind string, held *grant, err error) {
	g := k.cur
	k.renewFailures++
	k.s.metrics.renewals.WithLabelValues(kind, "failed").Inc()
	k.s.note(err)
	left := time.Until(g.expiry())
	k.set(g, held, later(*held, retryDelay(k.renewFailures, left, k.s.random())))
	k.s.cfg.Logger.Warn("renewal failed", "kind", kind, "generation", g.number, "left", left.Round(time.Millisecond), "error", err)
	if errors.Is(err, errUnavailable) {
		return
	}
	callCtx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	if errors.Is(err, errLost) || errors.Is(k.s.vault.Held(callCtx, g.token, g.leaseID), errLost) {
		k.want(kind + " is lost")
	}
}

func later(g grant, d time.Duration) grant {
	g.renewAt = time.Now().Add(d)
	return g
}

func (k *keeper) set(g *generation, held *grant, to grant) {
	g.mu.Lock()
	defer g.mu.Unlock()
	*held = to
}

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
		"ttl", g.lease.ttl, "reason", reason)
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
	k.s.cfg.Logger.Warn("no new credentials", "reason", k.wanted, "attempt", k.failures, "retry_in", delay.Round(time.Millisecond), "error", err)
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
