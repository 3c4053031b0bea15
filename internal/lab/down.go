package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// DownOptions change what Down does.
type DownOptions struct {
	// Wipe deletes the lab's data and its directory too.
	Wipe bool
	// Hard kills everything at once, for a lab that nobody needs any more.
	Hard bool
	// Report is told of every step, as in UpOptions.
	Report func(Event)
}

// Down stops every process of the lab, first those that nobody depends on. What does not end in its time is killed. It
// works on whatever there is: a lab whose directory was deleted, or one that was never whole.
func (l *Lab) Down(ctx context.Context, o DownOptions) error {
	if err := Supported(); err != nil {
		return err
	}
	ps, err := processes(l.dir)
	if err != nil {
		return err
	}
	if _, err := os.Stat(l.dir); errors.Is(err, fs.ErrNotExist) {
		_, err := killAll(ps, func(process) bool { return true })
		return errors.Join(err, l.wipeOutside(o.Wipe))
	}
	done, err := l.change(ctx, "down")
	if err != nil {
		return err
	}
	defer done()
	if o.Hard {
		_, err = killAll(ps, func(process) bool { return true })
	} else {
		err = l.stopAll(ctx, o.Report)
	}
	if err != nil {
		return err
	}
	if !o.Wipe {
		return nil
	}
	return errors.Join(l.wipeOutside(true), l.wipe())
}

func (l *Lab) wipeOutside(wipe bool) error {
	if !wipe {
		return nil
	}
	return l.removeDatabaseHome()
}

func (l *Lab) stopAll(ctx context.Context, report func(Event)) error {
	ps, err := processes(l.dir)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	tell := func(e Event) {
		if report != nil {
			mu.Lock()
			defer mu.Unlock()
			report(e)
		}
	}
	for _, stage := range l.stages() {
		var g errgroup.Group
		for _, u := range stage {
			p, running := pick(ps, u.id())
			if !running {
				continue
			}
			g.Go(func() error {
				begun := time.Now()
				tell(Event{Machine: u.machine.Name, Text: u.name + " stops"})
				killed, err := u.stop(ctx, p)
				text := u.name + " stopped" + took(begun)
				if killed {
					text = fmt.Sprintf("%s did not stop and was killed%s", u.name, took(begun))
				}
				tell(Event{Machine: u.machine.Name, Text: text, Warning: killed, Done: u == l.units(u.machine)[0]})
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
	}
	// Whatever is left is nothing that the lab's present machines would have.
	if ps, err = processes(l.dir); err != nil {
		return err
	}
	_, err = killAll(ps, func(process) bool { return true })
	return err
}

// stages are the lab's units in the order in which they stop: each stage at once, the services before the agents they
// speak to, the Consul servers last.
func (l *Lab) stages() [][]*unit {
	stages := make([][]*unit, 5)
	for _, m := range l.machines {
		for _, u := range l.units(m) {
			at := slices.Index([]string{RoleTodo, RoleVault, RoleMySQL, unitAgent, RoleConsul}, u.name)
			stages[at] = append(stages[at], u)
		}
	}
	return stages
}

// wipe deletes what is the lab's in its directory, and the directory if nothing else is in it: somebody may have named
// one that holds more.
func (l *Lab) wipe() error {
	for _, name := range []string{stateFile, "operator", "machines", "lock"} {
		if err := os.RemoveAll(l.path(name)); err != nil {
			return fmt.Errorf("delete the lab's data: %w", err)
		}
	}
	l.recorded = nil
	_ = os.Remove(l.dir) // not if it holds anything else
	return nil
}
