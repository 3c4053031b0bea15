package discovery

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Defaults of VaultConfig, and the finder's own limits.
const (
	DefaultRecheck      = time.Second
	DefaultVaultTimeout = time.Second

	askOthersAfter = 150 * time.Millisecond // of silence of the likeliest candidate
	askAgainAfter  = 250 * time.Millisecond // in Await
	forgetFor      = 5 * time.Second        // how long Forget counts against an instance
	maxCandidates  = 32
	maxHealth      = 64 << 10 // bytes
	activeTag      = "active"
)

// VaultConfig says how to ask a Vault whether it is active. The zero VaultConfig is that of Vaults that speak plain HTTP.
type VaultConfig struct {
	TLS     *tls.Config   // if set, Vaults are asked over https, and addresses begin with it
	Recheck time.Duration // how long the active Vault is believed before it is asked again. Default DefaultRecheck.
	Timeout time.Duration // of one Vault's answer. Default DefaultVaultTimeout.
	Logger  *slog.Logger  // default: discards
}

// VaultFinder finds the active Vault among the instances of a Watch. The catalogue only says where to ask first: its tags lag, and
// at a failover two instances may have the active one, or none. What counts is a Vault's own answer to /v1/sys/health.
type VaultFinder struct {
	watch  *Watch
	cfg    VaultConfig
	scheme string
	client *http.Client

	asking chan struct{} // holds one token for whoever asks Vaults, so that callers do not all ask at once

	mu        sync.Mutex
	active    string          // host:port, or ""
	confirmed time.Time       // when Vaults were last asked
	failure   error           // what came of it, if not an address
	changed   <-chan struct{} // closed if the catalogue has changed since
	forgotten map[string]time.Time
}

// NewVaultFinder makes a finder over a Watch of the Vaults, whose Run it needs; nothing happens before it is asked.
func NewVaultFinder(w *Watch, cfg VaultConfig) (*VaultFinder, error) {
	if w == nil {
		return nil, errors.New("vault finder needs a watch")
	}
	cfg.Recheck = cmp.Or(cfg.Recheck, DefaultRecheck)
	cfg.Timeout = cmp.Or(cfg.Timeout, DefaultVaultTimeout)
	if cfg.Recheck < 0 || cfg.Timeout < 0 {
		return nil, errors.New("vault finder: times must be positive")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	f := &VaultFinder{watch: w, cfg: cfg, scheme: "http", asking: make(chan struct{}, 1), forgotten: make(map[string]time.Time)}
	if cfg.TLS != nil {
		f.scheme = "https"
	}
	f.client = &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:        cfg.TLS,
			DisableKeepAlives:      true, // a finder has no end at which idle connections could be closed
			MaxResponseHeaderBytes: maxHealth,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return f, nil
}

// Addr gives the active Vault's address, such as "http://10.0.0.11:8200". It is meant to be called before each call to Vault: it
// answers from memory if the Vault has confirmed itself within Recheck and the catalogue has not changed since, and else
// asks, which takes a millisecond if all is well and little more than Timeout if nothing is. It waits for the Watch's first answer.
//
// Errors: ErrNoActive, with a reason for each candidate; ErrNoAnswer; ctx's. All may be retried.
func (f *VaultFinder) Addr(ctx context.Context) (string, error) {
	if addr := f.remembered(); addr != "" {
		return f.url(addr), nil
	}
	s, err := f.watch.answered(ctx)
	if err != nil {
		return "", err
	}
	arrived := time.Now()
	select {
	case f.asking <- struct{}{}:
		defer func() { <-f.asking }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	// Whoever asked while we waited asked for us too.
	if addr := f.remembered(); addr != "" {
		return f.url(addr), nil
	}
	if err := f.failedSince(arrived); err != nil {
		return "", err
	}
	addr, err := f.search(ctx, f.candidates(s))
	if ctx.Err() != nil && err != nil {
		return "", ctx.Err()
	}
	f.remember(addr, s.replaced, err)
	if err != nil {
		return "", err
	}
	return f.url(addr), nil
}

// Await is Addr for a caller that has nothing better to do: it asks again, four times a second and whenever the catalogue changes,
// until a Vault is active or ctx ends. Then the error is both ctx's and that of the last Addr.
func (f *VaultFinder) Await(ctx context.Context) (string, error) {
	for {
		changed := f.watch.Changed()
		addr, err := f.Addr(ctx)
		if err == nil {
			return addr, nil
		}
		again := time.NewTimer(jitter(askAgainAfter * 4 / 3))
		select {
		case <-changed:
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			if errors.Is(err, ctx.Err()) {
				return "", err
			}
			return "", fmt.Errorf("%w: %w", err, ctx.Err())
		}
		again.Stop()
	}
}

// Forget tells that a call to the Vault at addr, as Addr gave it, failed in a way that an active Vault's should not. For a few seconds
// others are preferred, if they say that they are active.
func (f *VaultFinder) Forget(addr string) {
	addr = strings.TrimPrefix(addr, f.scheme+"://")
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forgotten[addr] = time.Now()
	if f.active == addr {
		f.active = ""
	}
}

func (f *VaultFinder) url(addr string) string { return f.scheme + "://" + addr }

// remembered is the active Vault's address while it may be believed without asking.
func (f *VaultFinder) remembered() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.active == "" || time.Since(f.confirmed) >= f.cfg.Recheck {
		return ""
	}
	select {
	case <-f.changed:
		return ""
	default:
		return f.active
	}
}

func (f *VaultFinder) failedSince(t time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.confirmed.After(t) {
		return f.failure
	}
	return nil
}

func (f *VaultFinder) remember(addr string, changed <-chan struct{}, failure error) {
	f.mu.Lock()
	was := f.active
	f.active, f.confirmed, f.changed, f.failure = addr, time.Now(), changed, failure
	f.mu.Unlock()
	if addr != "" && addr != was {
		f.cfg.Logger.Info("active vault found", "address", addr)
	}
}

// candidate is an instance that may be the active Vault, and how likely.
type candidate struct {
	Instance
	rank      int
	forgotten bool
}

// candidates are all the Vaults there are, however healthy Consul thinks they are, likeliest first.
func (f *VaultFinder) candidates(s *snapshot) []candidate {
	f.mu.Lock()
	defer f.mu.Unlock()
	for addr, at := range f.forgotten {
		if time.Since(at) > forgetFor {
			delete(f.forgotten, addr)
		}
	}
	best := make(map[string]candidate)
	for _, i := range slices.Concat(s.all, s.usable) {
		_, forgotten := f.forgotten[i.Addr]
		c := candidate{Instance: i, forgotten: forgotten, rank: rank(i, i.Addr == f.active)}
		if old, known := best[i.Addr]; !known || c.rank > old.rank {
			best[i.Addr] = c
		}
	}
	list := make([]candidate, 0, len(best))
	for _, c := range best {
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b candidate) int {
		if a.forgotten != b.forgotten {
			return map[bool]int{true: 1, false: -1}[a.forgotten]
		}
		// Of two that are tagged, the one whose entry changed last was tagged last.
		return cmp.Or(b.rank-a.rank, cmp.Compare(b.index, a.index), strings.Compare(a.Addr, b.Addr))
	})
	return list[:min(len(list), maxCandidates)]
}

func rank(i Instance, wasActive bool) int {
	n := 0
	if slices.Contains(i.Tags, activeTag) {
		n += 4
	}
	if wasActive {
		n += 2
	}
	if i.Health == Passing || i.Health == Unknown {
		n++
	}
	return n
}

// verdict is one Vault's answer.
type verdict struct {
	candidate
	reason string // why it is not active; "" if it is
}

// search asks the likeliest candidate, and all the others at once when that one says no or says nothing for a moment. The first that
// calls itself active is it, but one that was forgotten only if no other does. All calls have ended when it returns.
func (f *VaultFinder) search(ctx context.Context, list []candidate) (string, error) {
	if len(list) == 0 {
		return "", fmt.Errorf("%w: service %s has no instance", ErrNoActive, f.watch.service)
	}
	ctx, cancel := context.WithTimeout(ctx, f.cfg.Timeout+askOthersAfter)
	var calls sync.WaitGroup
	defer calls.Wait()
	defer cancel()
	verdicts := make(chan verdict, len(list))
	ask := func(some []candidate) {
		for _, c := range some {
			calls.Go(func() { verdicts <- verdict{c, f.ask(ctx, c.Addr)} })
		}
	}
	ask(list[:1])
	others := list[1:]
	patience := time.NewTimer(askOthersAfter)
	defer patience.Stop()

	var reasons []string
	second := "" // forgotten, but calls itself active
	for answers := 0; answers < len(list); {
		select {
		case v := <-verdicts:
			answers++
			switch {
			case v.reason == "" && !v.forgotten:
				return v.Addr, nil
			case v.reason == "":
				second = v.Addr
			default:
				reasons = append(reasons, v.Addr+" "+v.reason)
			}
		case <-patience.C:
		}
		ask(others)
		others = nil
	}
	if second != "" {
		return second, nil
	}
	slices.Sort(reasons)
	return "", fmt.Errorf("%w: %s", ErrNoActive, strings.Join(reasons, "; "))
}

// ask has a Vault say what it is; "" means active. The body must agree with the status: at an address that Vault has left, anything
// may answer 200.
func (f *VaultFinder) ask(ctx context.Context, addr string) (reason string) {
	ctx, cancel := context.WithTimeout(ctx, f.cfg.Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url(addr)+"/v1/sys/health", nil)
	if err != nil {
		return err.Error()
	}
	response, err := f.client.Do(request)
	if err != nil {
		if ctx.Err() != nil {
			return "does not answer"
		}
		return "unreachable: " + unwrapURL(err).Error()
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return vaultState(response.StatusCode)
	}
	var health struct {
		Initialized bool  `json:"initialized"`
		Sealed      *bool `json:"sealed"`
		Standby     *bool `json:"standby"`
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, maxHealth)).Decode(&health); err != nil {
		return "does not answer as a vault does"
	}
	if !health.Initialized || health.Sealed == nil || *health.Sealed || health.Standby == nil || *health.Standby {
		return "does not answer as an active vault does"
	}
	return ""
}

// vaultState reads the status of /v1/sys/health, as Vault documents it.
func vaultState(status int) string {
	switch status {
	case http.StatusTooManyRequests:
		return "is standby"
	case 472:
		return "is a disaster recovery secondary"
	case 473:
		return "is a performance standby"
	case 474:
		return "is standby and sees no active vault"
	case http.StatusNotImplemented:
		return "is not initialised"
	case http.StatusServiceUnavailable:
		return "is sealed"
	}
	return fmt.Sprintf("answers status %d", status)
}
