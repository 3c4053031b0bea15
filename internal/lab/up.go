package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"example.com/todo/internal/operator"
	"example.com/todo/internal/sockets"
	"golang.org/x/sync/errgroup"
)

// ErrNoLab means that there is nothing in the lab's directory.
var ErrNoLab = errors.New("there is no lab")

// Event is a step of a long command, about one machine or about the operator.
type Event struct {
	Machine string
	Text    string
	Done    bool // nothing more comes about this machine
	Warning bool // somebody has to do something
	Failed  bool // this is what the command fails of
}

// OperatorLine is the Machine of events about the operator's steps.
const OperatorLine = "operator"

// UpOptions change what Up does.
type UpOptions struct {
	// Manual leaves the operator's steps, and the todos that depend on them, to a person.
	Manual bool
	// Report is told of every step, from several goroutines but never from two at once. Nil is fine.
	Report func(Event)
}

// Up starts what is not running, in the order of who depends on whom, and returns when every machine is ready. It takes
// the operator's steps as far as they are not done, and unseals the Vaults that Up started, in this run or in one that was
// killed: a Vault that a person restarted is that person's to unseal. When it fails or ctx ends, what this run started is
// stopped again, and the lab's record says what it said before. Errors: *BusyError, *PortError, *UnitError, and those of the operator.
func (l *Lab) Up(ctx context.Context, o UpOptions) error {
	if err := errors.Join(Supported(), l.binaries.Check(l.state.Counts)); err != nil {
		return err
	}
	if err := l.makeDir(); err != nil {
		return err
	}
	done, err := l.change(ctx, "up")
	if err != nil {
		return err
	}
	defer done()
	op, err := l.operatorIfAny()
	if err != nil {
		return err
	}
	if err := l.linkBinaries(); err != nil {
		return err
	}
	r := &run{lab: l, operator: op, options: o, gates: map[string]chan struct{}{}, processes: map[string]process{}}
	before := l.recorded
	if err := r.begin(ctx); err != nil {
		if l.recorded == nil {
			err = errors.Join(err, l.wipe()) // nothing has begun
		}
		return err
	}
	if err := r.up(ctx); err != nil {
		r.undo(ctx)
		if before != nil { // a lab that never was keeps what was asked: its data are made for that
			err = errors.Join(err, l.record(*before, true))
		}
		return err
	}
	if !r.changed {
		return nil
	}
	return l.record(l.state, false)
}

// record writes down what the lab is.
func (l *Lab) record(s state, unfinished bool) error {
	s.Unfinished = unfinished
	if err := s.write(l.dir); err != nil {
		return err
	}
	l.recorded = &s
	return nil
}

// makeDir makes the lab's directory, for its owner only.
func (l *Lab) makeDir() error {
	for _, dir := range []string{l.dir, l.path("operator"), l.path("machines")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make the lab's directory: %w", err)
		}
	}
	if err := ownedByUs(l.dir); err != nil {
		return err
	}
	if err := os.Chmod(l.dir, 0o700); err != nil {
		return fmt.Errorf("make the lab's directory private: %w", err)
	}
	return nil
}

// operatorIfAny is nil in a lab without a Vault.
func (l *Lab) operatorIfAny() (*operator.Operator, error) {
	if l.state.Counts.Vault == 0 {
		return nil, nil
	}
	return l.Operator()
}

// run is one run of Up.
type run struct {
	lab      *Lab
	operator *operator.Operator
	options  UpOptions
	changed  bool // the settings, or anything that was started: the operator looks again

	mu        sync.Mutex
	processes map[string]process       // what runs, by unit
	started   []string                 // the units started by this run
	gates     map[string]chan struct{} // closed when a machine, the agent of one, or the operator is done
}

func (r *run) report(machine, text string, done bool) {
	r.tell(Event{Machine: machine, Text: text, Done: done})
}

func (r *run) tell(e Event) {
	if r.options.Report == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.options.Report(e)
}

// begin looks at what runs, clears away what a killed run or a smaller lab left, refuses if anything is paused, checks the
// ports of all that will be started, and records what the lab is.
func (r *run) begin(ctx context.Context) error {
	l := r.lab
	ps, err := processes(l.dir)
	if err != nil {
		return err
	}
	if ps, err = r.sweep(ctx, ps); err != nil {
		return err
	}
	var missing []*unit
	var held []error
	for _, m := range l.machines {
		r.gates[m.Name] = make(chan struct{})
		for _, u := range l.units(m) {
			p, running := pick(ps, u.id())
			if !running {
				missing = append(missing, u)
				continue
			}
			r.processes[u.id()] = p
			if p.paused() {
				held = append(held, u.held())
			}
		}
	}
	if err := errors.Join(held...); err != nil {
		return err
	}
	for _, m := range l.machines {
		r.gates[m.Name+"/"+UnitAgent] = make(chan struct{})
	}
	r.gates[OperatorLine] = make(chan struct{})
	if err := checkPorts(missing); err != nil {
		return err
	}
	r.changed = len(missing) > 0 || l.recorded == nil || *l.recorded != l.state
	if r.changed {
		return l.record(l.state, true)
	}
	return nil
}

// sweep ends processes that are of this lab and not of its present machines, and one-off processes that lost the run which
// waited for them.
func (r *run) sweep(ctx context.Context, ps []process) ([]process, error) {
	l := r.lab
	known := map[string]bool{}
	for _, m := range l.machines {
		for _, u := range l.units(m) {
			known[u.id()] = true
		}
	}
	if l.recorded == nil && len(ps) > 0 {
		// The directory was deleted under a running lab: what still runs works on deleted files.
		r.report(OperatorLine, "ending the processes of a lab whose directory was deleted", false)
		_, err := killAll(ps, func(process) bool { return true })
		return nil, err
	}
	if err := r.retire(ctx, ps, known); err != nil {
		return nil, err
	}
	_, err := killAll(ps, func(p process) bool { return !known[p.unit] })
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(ps, func(p process) bool { return !known[p.unit] }), nil
}

// retire stops the machines that the lab no longer has, all at once, and removes what was theirs.
func (r *run) retire(ctx context.Context, ps []process, known map[string]bool) error {
	l := r.lab
	if l.recorded == nil || l.recorded.Counts == l.state.Counts {
		return nil
	}
	before, err := Inventory(l.recorded.Net, l.recorded.Counts)
	if err != nil {
		return err
	}
	var g errgroup.Group
	for _, m := range before {
		us := l.units(m)
		if known[us[0].id()] {
			continue
		}
		g.Go(func() error {
			r.report(m.Name, "is taken away", false)
			for i := len(us) - 1; i >= 0; i-- {
				if p, running := pick(ps, us[i].id()); running {
					if _, err := us[i].stop(ctx, p); err != nil {
						return err
					}
				}
			}
			if err := os.RemoveAll(l.machineDir(m)); err != nil {
				return err
			}
			r.report(m.Name, "taken away", true)
			return nil
		})
	}
	return g.Wait()
}

// checkPorts says who is in the way of units that are not running.
func checkPorts(us []*unit) error {
	ls, err := sockets.Listeners()
	if err != nil {
		return err
	}
	for _, u := range us {
		for _, p := range u.ports {
			if e := portHolder(ls, p); e != nil {
				e.Unit = u.id()
				return e
			}
		}
	}
	return nil
}

// up brings up every machine at once; each waits for what it needs.
func (r *run) up(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, m := range r.lab.machines {
		g.Go(func() error { return r.pass(ctx, m.Name, r.machine(ctx, m)) })
	}
	if r.operator != nil {
		g.Go(func() error { return r.pass(ctx, OperatorLine, r.operate(ctx)) })
	}
	return g.Wait()
}

// pass opens a machine's gate if it is done; if it failed, the end of the run's context opens all.
func (r *run) pass(ctx context.Context, gate string, err error) error {
	if err == nil {
		close(r.gates[gate])
		return nil
	}
	if ctx.Err() == nil { // else it fails because another did
		machine, _, _ := strings.Cut(gate, "/")
		r.tell(Event{Machine: machine, Text: err.Error(), Failed: true})
	}
	return err
}

// after waits until others are done. One that failed has ended ctx.
func (r *run) after(ctx context.Context, gates ...string) error {
	for _, g := range gates {
		select {
		case <-r.gates[g]:
		case <-ctx.Done():
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
	}
	return nil
}

// machine brings up one machine: its agent, then its service.
func (r *run) machine(ctx context.Context, m Machine) error {
	begun := time.Now()
	us := r.lab.units(m)
	agent, service := us[0], us[len(us)-1]
	if m.Role == RoleMySQL {
		// The database needs no agent to start, and its first start takes long.
		return r.mysqlMachine(ctx, m, agent, service)
	}
	if err := r.pass(ctx, m.Name+"/"+UnitAgent, r.unit(ctx, agent, agent.ready, "Consul starts")); err != nil {
		return err
	}
	switch m.Role {
	case RoleVault:
		if err := r.unit(ctx, service, service.answers, "Vault starts"); err != nil {
			return err
		}
		if r.options.Manual {
			r.report(m.Name, "running, left to the operator"+took(begun), true)
		}
		r.report(m.Name, "runs, waits for the operator", false) // who has the last word
		return nil
	case RoleTodo:
		return r.todoMachine(ctx, m, service, begun)
	}
	r.ready(m, begun)
	return nil
}

// ready says that a machine is, and how long that took if there was anything to do.
func (r *run) ready(m Machine, begun time.Time) {
	r.report(m.Name, r.outcome("ready", begun), true)
}

func (r *run) outcome(text string, begun time.Time) string {
	if !r.changed {
		return text + ", as it was"
	}
	return fmt.Sprintf("%s (%.1f s)", text, time.Since(begun).Seconds())
}

func (r *run) mysqlMachine(ctx context.Context, m Machine, agent, service *unit) error {
	begun := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.unit(gctx, agent, agent.ready, "Consul starts") })
	g.Go(func() error { return r.unit(gctx, service, service.answers, "the database starts") })
	if err := g.Wait(); err != nil {
		return err
	}
	if err := r.unit(ctx, service, service.ready, "its health check runs"); err != nil {
		return err
	}
	r.ready(m, begun)
	return nil
}

func (r *run) todoMachine(ctx context.Context, m Machine, service *unit, begun time.Time) error {
	if r.options.Manual {
		r.report(m.Name, "its agent is running, left to the operator"+took(begun), true)
		return nil
	}
	r.report(m.Name, "waits for the operator", false)
	if err := r.after(ctx, OperatorLine); err != nil {
		return err
	}
	if _, running := r.running(service); !running {
		ok, err := r.lab.minted(ctx, r.operator, m)
		if err != nil {
			return service.fail(err)
		}
		if !ok {
			r.report(m.Name, "gets its identity", false)
			if err := r.lab.mint(ctx, r.operator, m); err != nil {
				return err
			}
		}
	}
	if err := r.unit(ctx, service, service.ready, "the service starts"); err != nil {
		return err
	}
	r.ready(m, begun)
	return nil
}

// unit starts a unit if it does not run, and waits for the answer to ask.
func (r *run) unit(ctx context.Context, u *unit, ask func(context.Context) error, text string) error {
	p, running := r.running(u)
	if !running {
		r.report(u.machine.Name, text, false)
		var err error
		if p, err = u.launch(ctx, "up"); err != nil {
			return err
		}
		r.mu.Lock()
		r.processes[u.id()] = p
		r.started = append(r.started, u.id())
		r.mu.Unlock()
	}
	return u.await(ctx, p, ask)
}

func (r *run) running(u *unit) (process, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, ok := r.processes[u.id()]
	return p, ok
}

// undo stops what this run started, in the order of Down. The run's own context may be why it is needed, so it has another.
func (r *run) undo(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	for _, stage := range r.lab.stages(ctx) {
		var all sync.WaitGroup
		for _, u := range stage {
			if !slices.Contains(r.started, u.id()) {
				continue
			}
			all.Go(func() {
				u.settle(ctx)
				p, _ := r.running(u)
				_, _ = u.stop(ctx, p) // the run's own error is what counts
				r.tell(Event{Machine: u.machine.Name, Text: u.name + " stopped again", Warning: true})
			})
		}
		all.Wait()
	}
}

func took(begun time.Time) string {
	return fmt.Sprintf(" (%.1f s)", time.Since(begun).Seconds())
}
