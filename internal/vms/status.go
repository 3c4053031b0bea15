package vms

import (
	"context"
	"strings"
	"sync"
	"time"

	"example.com/todo/internal/lab"
)

const (
	// lookWithin bounds the look at the machines' units. It leaves Vagrant the time to say whether a machine has power that cannot be
	// reached.
	lookWithin = 12 * time.Second
	// reachWithin bounds one machine's part of it, for which a person waits: less patience than an operator's step has.
	reachWithin = 5 * time.Second
)

// Status asks every machine and Consul, and the systemd of each machine whose service does not answer: an ssh session to all of them
// is more than emulated processors can bear.
func (v *Machines) Status(ctx context.Context) (lab.Board, error) {
	b := lab.Observe(ctx, v.machines, v.states)
	for i, p := range b.Problems {
		p = strings.ReplaceAll(p, "`lab up`", "`vagrant up`")
		b.Problems[i] = strings.ReplaceAll(p, "`lab ", "`lab --on vagrant ")
	}
	return b, nil
}

// states says of machines whether their service runs: running, paused, stopped, off for a machine that has no power, and
// nothing where nobody can tell.
func (v *Machines) states(ctx context.Context, machines []lab.Machine) map[string]string {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	var (
		all    sync.WaitGroup
		mu     sync.Mutex
		states = map[string]string{}
		silent []lab.Machine
	)
	for _, m := range machines {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, reachWithin)
			defer cancel()
			state, err := v.sh(ctx, m, "", onUnit(m.Role, `state "$1"`))
			mu.Lock()
			defer mu.Unlock()
			states[m.Name] = state
			if err != nil {
				silent = append(silent, m)
			}
		})
	}
	all.Wait()
	for name := range v.off(ctx, silent) {
		states[name] = lab.StateOff
	}
	return states
}

// off asks Vagrant, which takes seconds, which of some machines have no power.
func (v *Machines) off(ctx context.Context, machines []lab.Machine) map[string]bool {
	off := map[string]bool{}
	if len(machines) == 0 {
		return off
	}
	args := []string{"status", "--machine-readable"}
	for _, m := range machines {
		args = append(args, m.Name)
	}
	out, err := v.vagrant(ctx, args...)
	if err != nil {
		return off
	}
	for line := range strings.Lines(out) {
		// time,machine,state,running
		f := strings.Split(strings.TrimSpace(line), ",")
		if len(f) == 4 && f[2] == "state" && f[3] != "running" {
			off[f[1]] = true
		}
	}
	return off
}

// isOff asks Vagrant whether one machine has no power.
func (v *Machines) isOff(ctx context.Context, m lab.Machine) bool {
	return v.off(ctx, []lab.Machine{m})[m.Name]
}
