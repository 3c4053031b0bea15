package creds

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// fate is how a generation of credentials ended.
type fate int32

const (
	alive         fate = iota
	retired            // replaced by us; drains
	revoked            // the server refuses the user: somebody revoked it
	grantsMissing      // the user exists and may do nothing: the role is broken, or its revocation stopped half way
)

func (f fate) String() string {
	return [...]string{"in use", "replaced", "user is gone", "user has no privileges"}[f]
}

// grant is something Vault gives for a time: a token or a lease.
type grant struct {
	issued    time.Time     // when it was asked for, so that our clock errs towards early
	ttl       time.Duration // as last granted
	nominal   time.Duration // the longest ever granted: a shorter one means that the maximum is near
	renewable bool
	renewAt   time.Time
}

func (g grant) end() time.Time { return g.issued.Add(g.ttl) }

// generation is one user of the database: the lease that made it, the token that made the lease, and the connections
// opened with it.
type generation struct {
	number   int
	user     string
	password Secret
	leaseID  string
	token    Secret

	// lease and life (the token's) are read by Status and written by Run, under mu.
	lease, life grant

	// ended says that no further statement may be sent as this user.
	ended  atomic.Bool
	proven atomic.Bool // a statement has succeeded
	given  atomic.Bool // back to Vault: revoked by us
	fate   atomic.Int32

	mu      sync.Mutex
	dialing int
	conns   map[*conn]struct{}
	warm    []warmSession // dialled ahead of a rotation, and in nobody's hands
	empty   chan struct{} // closed when the generation is replaced and its last connection has closed
}

// warmSession is a session that waits for a connection to take it.
type warmSession struct {
	session
	addr string
}

// keepWarm takes a session for later, or closes it if the generation has been replaced meanwhile.
func (g *generation) keepWarm(w warmSession) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if fate(g.fate.Load()) != alive {
		_ = w.Close() // given up: there is nobody to tell
		return
	}
	g.warm = append(g.warm, w)
}

// takeWarm gives a session that was dialled ahead, if there is one.
func (g *generation) takeWarm() (w warmSession, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := len(g.warm); n > 0 {
		w, g.warm = g.warm[n-1], g.warm[:n-1]
		return w, true
	}
	return w, false
}

// chill closes what nobody has taken.
func (g *generation) chill() {
	for w, ok := g.takeWarm(); ok; w, ok = g.takeWarm() {
		_ = w.Close() // as above
	}
}

// acquire counts a connection before it is dialled, so that the user cannot be revoked under the dial.
// It reports false if the generation has ended.
func (g *generation) acquire() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended.Load() {
		return false
	}
	g.dialing++
	return true
}

// dialled turns a dial into a connection, or into nothing if c is nil.
func (g *generation) dialled(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dialing--
	if c != nil {
		g.conns[c] = struct{}{}
	}
	g.noteEmpty()
}

func (g *generation) release(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.conns, c)
	g.noteEmpty()
}

// noteEmpty closes empty once; the caller holds mu.
func (g *generation) noteEmpty() {
	if fate(g.fate.Load()) == alive || g.dialing > 0 || len(g.conns) > 0 {
		return
	}
	select {
	case <-g.empty:
	default:
		close(g.empty)
	}
}

// retire says that new work goes elsewhere.
func (g *generation) retire() {
	g.fate.CompareAndSwap(int32(alive), int32(retired))
	g.chill()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.noteEmpty()
}

// condemn ends the generation at once; it reports false if somebody did so before.
func (g *generation) condemn(f fate) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended.Swap(true) {
		return false
	}
	g.fate.Store(int32(f))
	return true
}

// finish ends the generation: no statement begins as this user any more.
func (g *generation) finish() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended.Store(true)
}

// open lists the connections that are open.
func (g *generation) open() []*conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := make([]*conn, 0, len(g.conns))
	for c := range g.conns {
		all = append(all, c)
	}
	return all
}

// expiry is when Vault revokes the user if nothing is renewed: at the lease's end or the token's, whichever is first.
func (g *generation) expiry() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	if t := g.life.end(); t.Before(g.lease.end()) {
		return t
	}
	return g.lease.end()
}

// shortID keeps enough of a lease id to recognise it in Vault, and too little to revoke it with.
func shortID(id string) string {
	const keep = 6
	if len(id) <= keep {
		return id
	}
	return fmt.Sprintf("…%s", id[len(id)-keep:])
}
