package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"example.com/todo/internal/lab/wait"
	"example.com/todo/internal/operator"
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
	if there, err := l.Remains(); err != nil || !there {
		return errors.Join(err, l.wipeOutside(o.Wipe)) // what else may be in the directory is not known to be a lab's
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

// Remains reports whether there is anything to take down: a lab's record, or processes, if only those of a lab whose
// directory was deleted.
func (l *Lab) Remains() (bool, error) {
	ps, err := processes(l.dir)
	_, unrecorded := os.Stat(l.path(stateFile))
	return len(ps) > 0 || unrecorded == nil, err
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
	// Nothing can end, or let go of something that is about to end, while it is held.
	for _, p := range ps {
		if p.paused() {
			if err := p.signal(sigCont); err != nil && !errors.Is(err, os.ErrProcessDone) {
				return err
			}
		}
	}
	var mu sync.Mutex
	tell := func(e Event) {
		if report != nil {
			mu.Lock()
			defer mu.Unlock()
			report(e)
		}
	}
	for _, stage := range l.stages(ctx) {
		var g errgroup.Group
		for _, u := range stage {
			p, running := pick(ps, u.id())
			if !running {
				continue
			}
			g.Go(func() error {
				begun := time.Now()
				tell(Event{Machine: u.machine.Name, Text: u.name + " stops"})
				u.settle(ctx)
				killed, err := u.stop(ctx, p)
				text := u.name + " stopped" + took(begun)
				if killed {
					text = fmt.Sprintf("%s did not stop and was killed%s", u.name, took(begun))
				}
				tell(Event{Machine: u.machine.Name, Text: text, Warning: killed, Done: u.id() == l.units(u.machine)[0].id()})
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
// speak to, the Consul servers last. The active Vault goes before the standbys.
func (l *Lab) stages(ctx context.Context) [][]*unit {
	const todos, actives, standbys, database, agents, servers = 0, 1, 2, 3, 4, 5
	stages := make([][]*unit, servers+1)
	for _, m := range l.machines {
		for _, u := range l.units(m) {
			at := map[string]int{RoleTodo: todos, RoleVault: standbys, RoleMySQL: database, UnitAgent: agents, RoleConsul: servers}[u.name]
			if u.name == RoleVault && isActive(ctx, m) {
				at = actives
			}
			stages[at] = append(stages[at], u)
		}
	}
	return stages
}

// settleWithin is how long a standby gets to take over from the active Vault that was just stopped. It needs less than a
// second, unless the active one had crashed.
const settleWithin = 3 * time.Second

// settle lets a standby take over before it is stopped too. Stopped in the middle of that, it would leave with the lock in
// its hands, and Consul withholds the lock of the dead for 15 s from the next start; stopped while it waits for the lock
// of an active Vault, it would take 5 s.
func (u *unit) settle(ctx context.Context) {
	if u.name != RoleVault {
		return
	}
	h, err := askVault(ctx, u.machine)
	if err != nil || !h.Initialized || h.Sealed {
		return
	}
	_ = wait.Within(ctx, settleWithin, askEvery, func(ctx context.Context) error { // if not, stopping only takes longer
		if !isActive(ctx, u.machine) {
			return errors.New("standing by")
		}
		return nil
	})
}

func isActive(ctx context.Context, m Machine) bool {
	h, err := askVault(ctx, m)
	return err == nil && h.Active()
}

func askVault(ctx context.Context, m Machine) (operator.Health, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return operator.AskHealth(ctx, VaultURL(m))
}

// wipe deletes what is the lab's in its directory, and the directory if nothing else is in it: somebody may have named
// one that holds more.
func (l *Lab) wipe() error {
	for _, name := range []string{stateFile, "operator", "machines", "programs", "lock"} {
		if err := os.RemoveAll(l.path(name)); err != nil {
			return fmt.Errorf("delete the lab's data: %w", err)
		}
	}
	l.recorded = nil
	_ = os.Remove(l.dir) // not if it holds anything else
	return nil
}
