package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"
)

// BusyError means that another process is changing the lab.
type BusyError struct {
	PID     int       `json:"pid"`
	Command string    `json:"command"`
	Since   time.Time `json:"since"`
}

func (e *BusyError) Error() string {
	if e.PID == 0 {
		return "another `lab` is changing this lab"
	}
	return fmt.Sprintf("`lab %s` (process %d, since %s) is changing this lab: wait for it, or end it",
		e.Command, e.PID, e.Since.Format(time.TimeOnly))
}

// change takes the lab's turn, within this process and among all of them, and returns the function that gives it back.
// The lock belongs to the open file, so the end of a process, however it ends, gives it back too.
func (l *Lab) change(ctx context.Context, command string) (done func(), err error) {
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	f, err := l.lockFile()
	if err != nil {
		<-l.turn
		return nil, err
	}
	text, _ := json.Marshal(BusyError{PID: os.Getpid(), Command: command, Since: time.Now()})
	_ = f.Truncate(0)
	_, _ = f.WriteAt(text, 0) // only ever read by a person, through a BusyError
	return func() {
		_ = f.Close()
		<-l.turn
	}, nil
}

func (l *Lab) lockFile() (*os.File, error) {
	f, err := TryLock(l.path("lock"))
	if errors.Is(err, ErrLocked) {
		var holder BusyError
		if text, err := os.ReadFile(l.path("lock")); err == nil {
			_ = json.Unmarshal(text, &holder) // without it the answer is only less exact
		}
		return nil, &holder
	}
	return f, err
}

// ErrLocked means that another process, or another part of this one, holds the lock.
var ErrLocked = errors.New("locked by somebody else")

// TryLock locks a file, made if need be, until it is closed or the process ends. Error: ErrLocked.
func TryLock(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		if err := tryLock(f); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		// Somebody may have deleted the file between the two calls: a lock on a deleted file locks nothing.
		if mine, err := f.Stat(); err == nil {
			if there, err := os.Stat(path); err == nil && os.SameFile(mine, there) {
				return f, nil
			}
		}
		if err := f.Close(); err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
	}
}
