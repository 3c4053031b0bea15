package creds

import (
	"context"
	"errors"
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
	k.s.cfg.Logger.Debug("renewed", "kind", kind, "generation", g.number, "ttl", got.ttl.String())
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
	k.s.cfg.Logger.Warn("renewal failed", "kind", kind, "generation", g.number, "left", left.Round(time.Millisecond).String(), "error", err)
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
