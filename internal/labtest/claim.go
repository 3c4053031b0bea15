package labtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"example.com/todo/internal/lab"
	"example.com/todo/internal/lab/wait"
)

// claim is a network that belongs to one lab of one test process: as long as the process holds the lock, which is as
// long as it lives.
type claim struct {
	network string // 127.A.B
	dir     string
	lock    *os.File
}

func (c *claim) labDir() string { return filepath.Join(c.dir, "lab") }
func (c *claim) keptDir() string {
	return filepath.Join(filepath.Dir(c.dir), "kept", fmt.Sprintf("%s-%d", c.network, os.Getpid()))
}

// release gives the network back.
func (c *claim) release() error { return c.lock.Close() }

// baseDir is where the labs of one user's tests live. It is short, because sockets' paths are.
func baseDir() (string, error) {
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("todo-labtest-%d", os.Getuid()))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(dir)
}

// The networks from which tests choose.
const (
	firstA, lastA = 100, 199
	firstB, lastB = 1, 254
)

// claimNetwork takes the first network that no living process of ours holds and nobody listens in, and removes on its way
// what dead ones left.
func claimNetwork() (*claim, error) {
	base, err := baseDir()
	if err != nil {
		return nil, err
	}
	if err := reap(base); err != nil {
		return nil, err
	}
	for a := firstA; a <= lastA; a++ {
		for b := firstB; b <= lastB; b++ {
			network := fmt.Sprintf("127.%d.%d", a, b)
			c, err := tryClaim(base, network)
			if err != nil {
				return nil, err
			}
			if c == nil {
				continue
			}
			used, err := lab.InUse(network)
			if err == nil && !used {
				return c, nil
			}
			if err := errors.Join(err, c.release()); err != nil {
				return nil, err
			}
		}
	}
	return nil, errors.New("no network is free between 127.100.1 and 127.199.254")
}

// tryClaim returns nil if somebody else holds the network.
func tryClaim(base, network string) (*claim, error) {
	c := &claim{network: network, dir: filepath.Join(base, network)}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, err
	}
	f, err := lab.TryLock(filepath.Join(c.dir, "claim"))
	if errors.Is(err, lab.ErrLocked) {
		return nil, nil
	}
	c.lock = f
	return c, err
}

// reap takes away the labs of test processes that died.
func reap(base string) error {
	dirs, err := filepath.Glob(filepath.Join(base, "127.*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, "lab")); err != nil {
			continue
		}
		c, err := tryClaim(base, filepath.Base(dir))
		if err != nil {
			return err
		}
		if c == nil {
			continue
		}
		if err := errors.Join(takeAway(c.labDir()), c.release()); err != nil {
			return fmt.Errorf("take away the lab that an earlier test left in %s: %w", dir, err)
		}
	}
	return nil
}

func takeAway(dir string) error {
	l, err := lab.Open(lab.Config{Dir: dir})
	if err != nil {
		// Another version of the lab made it, or half of it. Without its directory what runs of it is still found.
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		if l, err = lab.Open(lab.Config{Dir: dir}); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), downWithin)
	defer cancel()
	return errors.Join(l.Down(ctx, lab.DownOptions{Wipe: true, Hard: true}), os.RemoveAll(dir))
}

// lockWait waits for a lock.
func lockWait(path string) (unlock func(), err error) {
	var f *os.File
	err = wait.Within(context.Background(), upWithin, 50*time.Millisecond, func(context.Context) error {
		f, err = lab.TryLock(path)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { _ = f.Close() }, nil
}

// copyByContent puts a copy of a program under a name that says what it holds, and removes copies that are a day old.
func copyByContent(program, dir string) (string, error) {
	text, err := os.ReadFile(program)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	path := filepath.Join(dir, "todo-"+hex.EncodeToString(sum[:6]))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	old, _ := filepath.Glob(filepath.Join(dir, "todo-*"))
	for _, o := range old {
		if i, err := os.Stat(o); err == nil && time.Since(i.ModTime()) > 24*time.Hour {
			_ = os.Remove(o)
		}
	}
	if err := os.WriteFile(path+".new", text, 0o755); err != nil {
		return "", err
	}
	return path, os.Rename(path+".new", path)
}
