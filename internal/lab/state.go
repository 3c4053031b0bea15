package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"example.com/todo/internal/operator"
)

const (
	// DefaultDir and DefaultNet are where a lab lives unless it is told otherwise.
	DefaultDir = ".lab"
	DefaultNet = "127.20.20"

	stateFile = "lab.json"
	// format is the version of everything in the directory. A lab of another format is refused, never half used.
	format = 1
)

// state is the lab's own record of what it is. What runs is not in it: the processes themselves say that.
type state struct {
	Format int            `json:"format"`
	Net    string         `json:"net"`
	Counts Counts         `json:"machines"`
	Times  operator.Times `json:"nanoseconds"`
	// Unfinished is true from the beginning of an up that has something to do to its end. Until then nobody knows how far
	// Vault was told of all this, so the next up tells it again.
	Unfinished bool `json:"unfinished,omitempty"`
}

// FormatError means that the directory holds a lab that another version of this program made.
type FormatError struct {
	Dir   string
	Found int
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("%s holds a lab of format %d, and this program knows format %d: take it down with the program that made it "+
		"(`lab down --wipe` there), or name another directory with --dir", e.Dir, e.Found, format)
}

// readState returns nil if there is no lab in the directory.
func readState(dir string) (*state, error) {
	path := filepath.Join(dir, stateFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the lab's record: %w", err)
	}
	var s state
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("%s is not the record of a lab (%w): if it is of no use any more, delete %s", path, err, dir)
	}
	if s.Format != format {
		return nil, &FormatError{Dir: dir, Found: s.Format}
	}
	return &s, nil
}

// ConfigError means that no lab, or not this one, can be as it is asked to be.
type ConfigError struct{ reason string }

func (e *ConfigError) Error() string { return e.reason }

// Refuse makes a ConfigError.
func Refuse(format string, args ...any) error { return &ConfigError{fmt.Sprintf(format, args...)} }

func (s state) write(dir string) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("write the lab's record: %w", err)
	}
	if err := operator.WriteFile(filepath.Join(dir, stateFile), append(text, '\n')); err != nil {
		return fmt.Errorf("write the lab's record: %w", err)
	}
	return nil
}

// merge says what the lab shall be: what is asked for, else what is recorded, else the defaults. Todo instances may come
// and go, and lifetimes may change. Addresses and the number of servers are built into the data of Consul and Vault.
func merge(recorded *state, asked state) (state, error) {
	base := state{Format: format, Net: DefaultNet, Counts: Demo(), Times: operator.Times{}.WithDefaults()}
	if recorded != nil {
		base = *recorded
		base.Unfinished = false
	}
	merged := base
	if asked.Net != "" {
		merged.Net = asked.Net
	}
	if asked.Counts != (Counts{}) {
		merged.Counts = asked.Counts
	}
	merged.Times = overlay(base.Times, asked.Times)
	if err := checkNet(merged.Net); err != nil {
		return state{}, err
	}
	if merged.Times != base.Times {
		if err := checkTimes(merged.Times); err != nil {
			return state{}, err
		}
	}
	if recorded == nil {
		return merged, nil
	}
	if merged.Net != base.Net {
		return state{}, Refuse("this lab lives in %s and cannot move to %s: `lab down --wipe` first, or begin another with --dir", base.Net, merged.Net)
	}
	fixed := merged.Counts
	fixed.Todo = base.Counts.Todo
	if fixed != base.Counts {
		return state{}, Refuse("this lab was made with so many machines (consul %d, vault %d, mysql %d), and only the number of todo instances can change: `lab down --wipe` first, or begin another with --dir",
			base.Counts.Consul, base.Counts.Vault, base.Counts.MySQL)
	}
	return merged, nil
}

func overlay(base, asked operator.Times) operator.Times {
	if asked.Lease != 0 {
		base.Lease = asked.Lease
	}
	if asked.LeaseMax != 0 {
		base.LeaseMax = asked.LeaseMax
	}
	if asked.Token != 0 {
		base.Token = asked.Token
	}
	if asked.TokenMax != 0 {
		base.TokenMax = asked.TokenMax
	}
	return base
}

// checkTimes refuses what Vault, which counts in seconds, would understand otherwise or adapt without a word.
func checkTimes(t operator.Times) error {
	for name, d := range map[string]time.Duration{"lease": t.Lease, "lease-max": t.LeaseMax, "token": t.Token, "token-max": t.TokenMax} {
		if d < time.Second || d%time.Second != 0 {
			return Refuse("--%s %v: want whole seconds, at least one", name, d)
		}
	}
	switch {
	case t.LeaseMax < t.Lease:
		return Refuse("a lease of %v is longer than its maximum of %v: change --lease or --lease-max", t.Lease, t.LeaseMax)
	case t.TokenMax < t.Token:
		return Refuse("a token's life of %v is longer than its maximum of %v: change --token or --token-max", t.Token, t.TokenMax)
	}
	return nil
}
