// Package operator holds the steps that touch secrets, which a person takes and no provisioning does: initialise Vault,
// unseal each server, configure it, mint an identity for every todo instance. It does not care how the machines are run.
//
// Every step may be repeated and then changes nothing; a step out of order says which one is missing. Each survives
// being killed at any moment: the next run finishes what was begun. What only the operator may hold (the unseal keys and
// the root token) is written to one file in the operator's own directory and to nothing else; no secret is ever an
// argument of a program.
package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"time"

	"example.com/todo/internal/lab/wait"
	vault "github.com/hashicorp/vault/api"
)

// What a step finds missing. Each says which step comes first.
var (
	ErrNotInitialised = errors.New("vault is not initialised: the step `vault init` comes first")
	ErrSealed         = errors.New("every vault is sealed: the step `vault unseal` comes first")
	ErrNotConfigured  = errors.New("vault is not configured: the step `vault configure` comes first")
	// ErrForeignKeys means that somebody else initialised this Vault and holds its keys.
	ErrForeignKeys = errors.New("vault is initialised, but its unseal keys are not here")
)

// Secret is a text that does not show itself in logs and messages. Its JSON is the text itself, because the operator's
// file and Vault's API need it.
type Secret string

func (Secret) String() string       { return "(secret)" }
func (Secret) GoString() string     { return "(secret)" }
func (Secret) LogValue() slog.Value { return slog.StringValue("(secret)") }

// Times are the lifetimes of what Vault hands out. A zero value means the default.
type Times struct {
	Lease    time.Duration `json:"lease"`     // of leased MySQL credentials; 1 minute
	LeaseMax time.Duration `json:"lease_max"` // however often they are renewed; 24 hours
	Token    time.Duration `json:"token"`     // of a todo's token; 10 minutes
	TokenMax time.Duration `json:"token_max"` // however often it is renewed; 24 hours
}

// WithDefaults fills in what was not set.
func (t Times) WithDefaults() Times {
	set := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	set(&t.Lease, time.Minute)
	set(&t.LeaseMax, 24*time.Hour)
	set(&t.Token, 10*time.Minute)
	set(&t.TokenMax, 24*time.Hour)
	t.LeaseMax = max(t.LeaseMax, t.Lease)
	t.TokenMax = max(t.TokenMax, t.Token)
	return t
}

// Config says where the operator works.
type Config struct {
	// Dir is where the operator keeps what only the operator may hold. It exists, with mode 0700.
	Dir string
	// Vaults are the addresses of the Vault servers, http://host:port.
	Vaults []string
	// MySQLAddress is the host:port at which the Vault servers reach the database.
	MySQLAddress string
	// SQL runs statements as the database's root, on the database's machine.
	SQL func(ctx context.Context, statements ...string) error
	// ResetStorage stops every Vault, deletes what it stored, and starts it again. It is used only when an
	// initialisation was cut off so that nobody ever held the keys.
	ResetStorage func(ctx context.Context) error
	Times        Times
}

// Operator takes the steps. It is safe for concurrent use as far as the steps are: two concurrent Inits are not.
type Operator struct {
	config Config
	http   *http.Client
}

// New checks the configuration and touches nothing.
func New(c Config) (*Operator, error) {
	if !filepath.IsAbs(c.Dir) {
		return nil, fmt.Errorf("the operator's directory is not an absolute path: %q", c.Dir)
	}
	if len(c.Vaults) == 0 {
		return nil, errors.New("the operator has no vault to work on")
	}
	c.Times = c.Times.WithDefaults()
	return &Operator{config: c, http: &http.Client{Transport: transport()}}, nil
}

// transport keeps no connection open: the operator's calls are rare, and a Vault that restarts or pauses in between
// leaves nothing behind here.
func transport() *http.Transport {
	return &http.Transport{DisableKeepAlives: true, TLSHandshakeTimeout: 5 * time.Second}
}

// Health is what a Vault says about itself to anybody.
type Health struct {
	Initialized bool   `json:"initialized"`
	Sealed      bool   `json:"sealed"`
	Standby     bool   `json:"standby"`
	Version     string `json:"version"`
}

// Active reports whether this Vault serves requests itself.
func (h Health) Active() bool { return h.Initialized && !h.Sealed && !h.Standby }

// AskHealth asks one Vault for its health; any answer of a Vault, in whatever state, is one. ctx bounds the call.
func AskHealth(ctx context.Context, address string) (Health, error) {
	client := http.Client{Transport: transport()}
	return askHealth(ctx, &client, address)
}

func askHealth(ctx context.Context, client *http.Client, address string) (Health, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address+"/v1/sys/health", nil)
	if err != nil {
		return Health{}, fmt.Errorf("ask %s for its health: %w", address, err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return Health{}, fmt.Errorf("ask vault for its health: %w", err)
	}
	defer resp.Body.Close()
	var h Health
	if err := json.NewDecoder(resp.Body).Decode(&h); err != nil {
		return Health{}, fmt.Errorf("%s answers %s, and not as a vault does: %w", address, resp.Status, err)
	}
	return h, nil
}

const (
	askEvery    = 50 * time.Millisecond
	callTimeout = 30 * time.Second
	// activeWithin is how long a Vault may take to become active: after a crash the old lock lives for half a minute.
	activeWithin = 90 * time.Second
)

// client speaks to one Vault. Nothing comes from the environment: a VAULT_TOKEN that somebody exported is not ours.
func (o *Operator) client(address string, token Secret) (*vault.Client, error) {
	c, err := vault.NewClient(&vault.Config{
		Address:    address,
		HttpClient: &http.Client{Transport: transport()},
		Timeout:    callTimeout,
		MaxRetries: 0,
	})
	if err != nil {
		return nil, fmt.Errorf("client of %s: %w", address, err)
	}
	c.ClearNamespace()
	c.SetToken(string(token))
	return c, nil
}

// Client is a client of the active Vault with the root token. It waits for a Vault to become active, because an unsealed
// one needs a moment; it does not wait when every Vault is sealed. Errors: ErrNotInitialised, ErrSealed.
func (o *Operator) Client(ctx context.Context) (*vault.Client, error) {
	keys, err := o.Keys()
	if err != nil {
		return nil, err
	}
	address, err := o.active(ctx)
	if err != nil {
		return nil, err
	}
	return o.client(address, keys.RootToken)
}

// active waits for an active Vault and returns its address.
func (o *Operator) active(ctx context.Context) (address string, err error) {
	var final error // no point in waiting for it to change
	err = wait.Within(ctx, activeWithin, askEvery, func(ctx context.Context) error {
		sealed, uninitialised := 0, 0
		var last error
		for _, a := range o.config.Vaults {
			h, err := askHealth(ctx, o.http, a)
			switch {
			case err != nil:
				last = err
			case !h.Initialized:
				uninitialised++
			case h.Sealed:
				sealed++
			case h.Active():
				address = a
				return nil
			}
		}
		switch n := len(o.config.Vaults); {
		case uninitialised > 0 && uninitialised+sealed == n:
			final = ErrNotInitialised
		case sealed == n:
			final = ErrSealed
		case last != nil:
			return fmt.Errorf("no vault is active: %w", last)
		default:
			return errors.New("no vault is active")
		}
		return nil
	})
	return address, errors.Join(err, final)
}
