package discovery

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// firstAvoid and lastAvoid bound how long an instance is avoided after it failed; it doubles with each failure in a row.
	firstAvoid = 500 * time.Millisecond
	lastAvoid  = 8 * time.Second
	// closingAvoid is how long an instance is avoided that closes its connections: it is about to leave the catalogue.
	closingAvoid = 2 * time.Second
	// avoidMemory is how long failures in a row are counted after the last.
	avoidMemory = time.Minute
)

// avoidance remembers which instances just failed. The zero value is ready. While all is well it costs one atomic load.
type avoidance struct {
	count atomic.Int64 // of marks

	mu    sync.Mutex
	marks map[string]mark
}

type mark struct {
	until time.Time
	pause time.Duration // the last one for a failure
}

// avoids reports whether addr should be left in peace for now.
func (a *avoidance) avoids(addr string) bool {
	if a.count.Load() == 0 {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	m, ok := a.marks[addr]
	return ok && time.Now().Before(m.until)
}

// failed counts a failure of addr, which asked to be left in peace for at least that long.
func (a *avoidance) failed(addr string, atLeast time.Duration) {
	a.set(addr, func(m mark, now time.Time) mark {
		// Requests that fail together are one failure.
		if now.After(m.until) {
			m.pause = min(max(2*m.pause, firstAvoid), lastAvoid)
		}
		m.until = later(m.until, now.Add(max(m.pause, min(atLeast, lastAvoid))))
		return m
	})
}

// closing notes that addr closes its connections.
func (a *avoidance) closing(addr string) {
	a.set(addr, func(m mark, now time.Time) mark {
		m.until = later(m.until, now.Add(closingAvoid))
		return m
	})
}

// worked takes back what was held against addr.
func (a *avoidance) worked(addr string) {
	if a.count.Load() == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.marks, addr)
	a.count.Store(int64(len(a.marks)))
}

func (a *avoidance) set(addr string, change func(m mark, now time.Time) mark) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.marks == nil {
		a.marks = make(map[string]mark)
	}
	for other, m := range a.marks { // Instances come and go; their marks must go too.
		if now.Sub(m.until) > avoidMemory {
			delete(a.marks, other)
		}
	}
	a.marks[addr] = change(a.marks[addr], now)
	a.count.Store(int64(len(a.marks)))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
