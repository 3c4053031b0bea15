package creds

import (
	"time"
)

// State is what a source is doing, in one word.
type State string

const (
	Starting State = "starting" // no credentials yet
	Current  State = "current"  // leased, and renewed in time
	Overdue  State = "overdue"  // the lease runs out and renewals fail
	Expired  State = "expired"  // past the lease's end; they work until Vault comes back
	Revoked  State = "revoked"  // somebody revoked them; new ones are being asked for
	Stopped  State = "stopped"  // Run has ended
)

// Level sorts states by what they mean for whoever depends on the service.
type Level int

const (
	OK       Level = iota // all is well
	Borrowed              // working, on borrowed time
	Down                  // there are no credentials to work with
)

// Level of the state.
func (s State) Level() Level {
	switch s {
	case Current:
		return OK
	case Overdue, Expired:
		return Borrowed
	}
	return Down
}

// Status is a source seen from outside. It holds nothing secret and may be shown to anybody.
type Status struct {
	State       State      `json:"state"`
	Generation  int        `json:"generation"`           // counts the users leased by this process
	User        string     `json:"user,omitempty"`       // of the database
	Lease       string     `json:"lease,omitempty"`      // the end of the lease's id
	Expires     *time.Time `json:"expires,omitempty"`    // when Vault may revoke, if nothing is renewed
	SecondsLeft float64    `json:"seconds_left"`         // until Expires; negative after it
	Connections int        `json:"connections"`          // open, of the current generation
	LastError   string     `json:"last_error,omitempty"` // since these credentials came into use
	LastErrorAt *time.Time `json:"last_error_at,omitempty"`
}

// Status says how the source is doing. It does no I/O.
func (s *Source) Status() Status {
	st := Status{State: Starting}
	s.mu.Lock()
	g, t := s.current.Load(), s.trouble
	s.mu.Unlock()
	if t.err != nil {
		st.LastError, st.LastErrorAt = t.err.Error(), &t.at
	}
	if g != nil {
		now, expires := time.Now(), g.expiry()
		st.Generation, st.User, st.Lease = g.number, g.user, shortID(g.leaseID)
		st.Expires, st.SecondsLeft = &expires, expires.Sub(now).Seconds()
		st.Connections = len(g.open())
		st.State = g.state(now)
	}
	select {
	case <-s.stopped:
		st.State = Stopped
	default:
	}
	return st
}

func (g *generation) state(now time.Time) State {
	if g.ended.Load() {
		return Revoked
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case now.After(g.lease.end()) || now.After(g.life.end()):
		return Expired
	case overdue(now, g.lease) || overdue(now, g.life):
		return Overdue
	}
	return Current
}
