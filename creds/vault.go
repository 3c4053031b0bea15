package creds

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/hashicorp/vault/api"
)

// authority is what a source asks of Vault. Every call is bounded by its context.
type authority interface {
	// Ready returns nil if an active, unsealed Vault answers.
	Ready(context.Context) error
	Login(context.Context) (token Secret, g grant, err error)
	Lease(ctx context.Context, token Secret) (*lease, error)
	RenewToken(context.Context, Secret) (grant, error)
	RenewLease(ctx context.Context, token Secret, leaseID string, increment time.Duration) (grant, error)
	// Held returns nil if Vault still knows the lease, and errLost if it does not.
	Held(ctx context.Context, token Secret, leaseID string) error
	// Revoke ends the token, and with it the leases made with it.
	Revoke(context.Context, Secret) error
}

// lease is a user of the database.
type lease struct {
	id       string
	user     string
	password Secret
	grant    grant
}

var (
	// errUnavailable marks failures of Vault as a whole: not reached, sealed, standby without an active. Asking again costs it
	// nothing, so they do not count as attempts to mint.
	errUnavailable = errors.New("vault is unavailable")
	// errLost marks a lease or token that Vault does not know any more.
	errLost = errors.New("no longer valid in vault")
)

// vaultClient speaks to whichever Vault is active now.
type vaultClient struct{ cfg Config }

// client is made for one exchange: the address may change between two, and the API's client keeps both
// address and token as mutable state.
func (v *vaultClient) client(ctx context.Context, token Secret) (*api.Client, error) {
	addr, err := v.cfg.Vault(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: find vault: %w", errUnavailable, err)
	}
	c, err := api.NewClient(&api.Config{Address: addr, HttpClient: v.cfg.HTTPClient})
	if err != nil {
		return nil, err
	}
	c.SetMaxRetries(0) // retries are ours, paced by what is left
	c.SetClientTimeout(0)
	c.SetToken(string(token))
	return c, nil
}

func (v *vaultClient) Ready(ctx context.Context) error {
	c, err := v.client(ctx, "")
	if err != nil {
		return err
	}
	// Without these parameters a standby's answer is an error too; with them the body says which it is.
	h, err := c.Sys().HealthWithContext(ctx)
	switch {
	case err != nil:
		return sort(fmt.Errorf("ask vault's health: %w", err))
	case !h.Initialized:
		return fmt.Errorf("%w: not initialised", errUnavailable)
	case h.Sealed:
		return fmt.Errorf("%w: sealed", errUnavailable)
	case h.Standby && !h.PerformanceStandby:
		return fmt.Errorf("%w: standby", errUnavailable)
	}
	return nil
}

func (v *vaultClient) Login(ctx context.Context) (Secret, grant, error) {
	secretID, err := v.cfg.SecretID()
	if err != nil {
		return "", grant{}, fmt.Errorf("read secret id: %w", err)
	}
	sec, issued, err := v.write(ctx, "", "auth/"+v.cfg.AuthPath+"/login", map[string]any{
		"role_id":   v.cfg.RoleID,
		"secret_id": string(secretID),
	})
	if err != nil {
		return "", grant{}, fmt.Errorf("log in to vault: %w", err)
	}
	if sec == nil || sec.Auth == nil || sec.Auth.ClientToken == "" {
		return "", grant{}, errors.New("log in to vault: the answer has no token")
	}
	g := granted(issued, sec.Auth.LeaseDuration, sec.Auth.Renewable)
	return Secret(sec.Auth.ClientToken), g, nil
}

func (v *vaultClient) Lease(ctx context.Context, token Secret) (*lease, error) {
	c, err := v.client(ctx, token)
	if err != nil {
		return nil, err
	}
	issued := time.Now()
	sec, err := c.Logical().ReadWithContext(ctx, v.cfg.Path)
	if err != nil {
		return nil, sort(fmt.Errorf("lease mysql credentials: %w", err))
	}
	if sec == nil {
		return nil, fmt.Errorf("lease mysql credentials: nothing at %s", v.cfg.Path)
	}
	user, _ := sec.Data["username"].(string)
	password, _ := sec.Data["password"].(string)
	if user == "" || password == "" || sec.LeaseID == "" {
		return nil, fmt.Errorf("lease mysql credentials: %s holds no leased user", v.cfg.Path)
	}
	return &lease{
		id: sec.LeaseID, user: user, password: Secret(password),
		grant: granted(issued, sec.LeaseDuration, sec.Renewable),
	}, nil
}

func (v *vaultClient) RenewToken(ctx context.Context, token Secret) (grant, error) {
	sec, issued, err := v.write(ctx, token, "auth/token/renew-self", nil)
	if err != nil {
		return grant{}, fmt.Errorf("renew token: %w", lostIfDenied(err))
	}
	if sec == nil || sec.Auth == nil {
		return grant{}, errors.New("renew token: the answer has no token")
	}
	return granted(issued, sec.Auth.LeaseDuration, sec.Auth.Renewable), nil
}

func (v *vaultClient) RenewLease(ctx context.Context, token Secret, leaseID string, increment time.Duration) (grant, error) {
	sec, issued, err := v.write(ctx, token, "sys/leases/renew", map[string]any{
		"lease_id": leaseID, "increment": int(increment.Seconds()),
	})
	if err != nil {
		return grant{}, fmt.Errorf("renew lease: %w", err)
	}
	if sec == nil {
		return grant{}, errors.New("renew lease: empty answer")
	}
	return granted(issued, sec.LeaseDuration, sec.Renewable), nil
}

func (v *vaultClient) Held(ctx context.Context, token Secret, leaseID string) error {
	_, _, err := v.write(ctx, token, "sys/leases/lookup", map[string]any{"lease_id": leaseID})
	if err != nil {
		return fmt.Errorf("look up lease: %w", lostIfDenied(err))
	}
	return nil
}

func (v *vaultClient) Revoke(ctx context.Context, token Secret) error {
	_, _, err := v.write(ctx, token, "auth/token/revoke-self", nil)
	if err = lostIfDenied(err); errors.Is(err, errLost) {
		return nil
	}
	return err
}

func (v *vaultClient) write(ctx context.Context, token Secret, path string, body map[string]any) (*api.Secret, time.Time, error) {
	c, err := v.client(ctx, token)
	if err != nil {
		return nil, time.Time{}, err
	}
	issued := time.Now()
	sec, err := c.Logical().WriteWithContext(ctx, path, body)
	return sec, issued, sort(err)
}

func granted(issued time.Time, seconds int, renewable bool) grant {
	ttl := time.Duration(seconds) * time.Second
	return grant{issued: issued, ttl: ttl, nominal: ttl, renewable: renewable}
}

// sort marks the errors that mean that Vault as a whole is unavailable.
func sort(err error) error {
	var answer *api.ResponseError
	var network *url.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &answer):
		switch answer.StatusCode {
		case http.StatusTooManyRequests, 472, 473, 474, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return fmt.Errorf("%w: %w", errUnavailable, err)
		}
	case errors.As(err, &network) && !network.Timeout(): // a call that timed out may have been carried out
		return fmt.Errorf("%w: %w", errUnavailable, err)
	}
	return err
}

// lostIfDenied marks the errors by which Vault says that it does not know a token or lease.
func lostIfDenied(err error) error {
	var answer *api.ResponseError
	if errors.As(err, &answer) && (answer.StatusCode == http.StatusForbidden || answer.StatusCode == http.StatusBadRequest) {
		return fmt.Errorf("%w: %w", errLost, err)
	}
	return err
}
