package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"example.com/todo/internal/lab/wait"
)

// How a process that we started ourselves has ended.
const (
	endedWith = "ended with code %d"
	endedWell = "ended with code 0"
)

// ErrNotRunning means that there is no process to do something to.
var ErrNotRunning = errors.New("is not running")

// Stop asks units to end, as their machine's system would, and waits until they have. Those that do not within their time
// are killed, and Stop says so: killed names them. References are MACHINE, MACHINE/agent or MACHINE/all.
func (l *Lab) Stop(ctx context.Context, ref string) (killed []string, err error) {
	us, err := l.resolve(ref)
	if err != nil {
		return nil, err
	}
	for i := len(us) - 1; i >= 0; i-- { // the service before its agent
		u := us[i]
		p, running, err := u.find()
		if err != nil {
			return killed, err
		}
		if !running {
			if len(us) == 1 {
				return killed, fmt.Errorf("%s %w", u.id(), ErrNotRunning)
			}
			continue
		}
		hard, err := u.stop(ctx, p)
		if err != nil {
			return killed, err
		}
		if hard {
			killed = append(killed, u.id())
		}
	}
	return killed, nil
}

// Start starts units that do not run and waits until they answer, which is less than being ready: a Vault answers that it
// is sealed, a todo that it waits for Vault.
func (l *Lab) Start(ctx context.Context, ref string) error {
	us, err := l.resolve(ref)
	if err != nil {
		return err
	}
	if !l.Exists() {
		return ErrNoLab
	}
	done, err := l.change(ctx, "start "+ref)
	if err != nil {
		return err
	}
	defer done()
	if err := l.binaries.Check(countsOf(us)); err != nil {
		return err
	}
	for _, u := range us {
		p, running, err := u.find()
		if err != nil {
			return err
		}
		if running && p.paused() {
			return u.held()
		}
		if running {
			continue
		}
		if err := l.agentFirst(u); err != nil {
			return err
		}
		if err := checkPorts([]*unit{u}); err != nil {
			return err
		}
		p, err = u.launch(ctx, "start")
		if err != nil {
			return err
		}
		if err := u.await(ctx, p, u.answers); err != nil {
			return err
		}
	}
	return nil
}

// held refuses to wait for a unit that cannot answer, because a person paused it.
func (u *unit) held() error {
	ref := u.machine.Name
	if u.name != u.machine.Role {
		ref = u.id()
	}
	return fmt.Errorf("%s is paused: `lab resume %s` lets it go on", u.id(), ref)
}

// agentFirst refuses to start a Vault that would wait for ever: its storage is reached through its machine's agent.
func (l *Lab) agentFirst(u *unit) error {
	if u.name != RoleVault {
		return nil
	}
	for _, other := range l.units(u.machine) {
		if other.name != UnitAgent {
			continue
		}
		if _, running, err := other.find(); err != nil || running {
			return err
		}
		return fmt.Errorf("%s reaches its storage through its Consul agent, which does not run: `lab start %s/agent` comes first", u.id(), u.machine.Name)
	}
	return nil
}

// countsOf counts what has to be installed for some units.
func countsOf(us []*unit) Counts {
	var c Counts
	for _, u := range us {
		switch u.name {
		case RoleVault:
			c.Vault++
		case RoleMySQL:
			c.MySQL++
		case RoleTodo:
			c.Todo++
		default:
			c.Consul++
		}
	}
	return c
}

// Kill ends units at once, as a power cut would.
func (l *Lab) Kill(_ context.Context, ref string) error {
	return l.each(ref, func(u *unit) error {
		n, err := u.kill()
		if err == nil && n == 0 {
			return fmt.Errorf("%s %w", u.id(), ErrNotRunning)
		}
		return err
	})
}

// Pause holds units where they are: their connections stay open and nothing answers.
// It returns when they are held: a process with many threads takes a moment.
func (l *Lab) Pause(ctx context.Context, ref string) error {
	if err := l.signal(ref, sigStop); err != nil {
		return err
	}
	return l.each(ref, func(u *unit) error {
		return wait.Within(ctx, killWithin, endEvery, func(context.Context) error {
			p, running, err := u.find()
			if err == nil && running && !p.paused() {
				err = fmt.Errorf("%s is not held yet", u.id())
			}
			return err
		})
	})
}

// Resume lets paused units go on.
func (l *Lab) Resume(_ context.Context, ref string) error { return l.signal(ref, sigCont) }

func (l *Lab) signal(ref string, s os.Signal) error {
	return l.each(ref, func(u *unit) error {
		p, running, err := u.find()
		if err != nil {
			return err
		}
		if !running {
			return fmt.Errorf("%s %w", u.id(), ErrNotRunning)
		}
		return p.signal(s)
	})
}

func (l *Lab) each(ref string, do func(*unit) error) error {
	us, err := l.resolve(ref)
	if err != nil {
		return err
	}
	var errs []error
	for _, u := range us {
		errs = append(errs, do(u))
	}
	return errors.Join(errs...)
}

// stop ends a unit gracefully, or, when its time or ours is up, not gracefully.
func (u *unit) stop(ctx context.Context, p process) (killed bool, err error) {
	// A paused process takes the signal when it goes on.
	for _, s := range []os.Signal{sigTerm, sigCont} {
		if err := p.signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return false, u.fail(err)
		}
	}
	err = wait.Within(ctx, u.stopWithin, endEvery, func(context.Context) error {
		if gone, _ := p.ended(); !gone {
			return errors.New("still running")
		}
		return nil
	})
	// What the unit itself started (a check script, say) does not outlive it.
	_, killErr := u.kill()
	return err != nil, u.fail(killErr)
}

// kill ends every process of the unit at once and returns when they are gone.
func (u *unit) kill() (n int, err error) {
	ps, err := processes(u.lab.dir)
	if err != nil {
		return 0, err
	}
	return killAll(ps, func(p process) bool { return p.unit == u.id() })
}

// killWithin bounds the wait for the kernel; a process can hang in it only for a dead disk.
const killWithin = 10 * time.Second

func killAll(ps []process, which func(process) bool) (n int, err error) {
	var errs []error
	for _, p := range ps {
		if !which(p) {
			continue
		}
		n++
		if err := p.signal(sigKill); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, wait.Within(context.Background(), killWithin, endEvery, func(context.Context) error {
			if gone, _ := p.ended(); !gone {
				return fmt.Errorf("process %d does not end", p.pid)
			}
			return nil
		}))
	}
	return n, errors.Join(errs...)
}
