package vms

import (
	"context"
	"strings"
	"sync"
	"time"

	"example.com/todo/internal/lab"
)

// lookWithin bounds the look at a machine's units.
const lookWithin = 8 * time.Second

// Status asks every machine and Consul, and every machine's systemd.
func (v *Machines) Status(ctx context.Context) (lab.Board, error) {
	states := v.states(ctx)
	b := lab.Observe(ctx, v.machines, func(machine, _ string) string { return states[machine] })
	for i, p := range b.Problems {
		p = strings.ReplaceAll(p, "`lab up`", "`vagrant up`")
		b.Problems[i] = strings.ReplaceAll(p, "`lab ", "`lab --on vagrant ")
	}
	return b, nil
}

// states says of each machine whether its service runs: running, paused, stopped, off for a machine that has no power, and
// nothing where nobody can tell.
func (v *Machines) states(ctx context.Context) map[string]string {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	var (
		all    sync.WaitGroup
		mu     sync.Mutex
		states = map[string]string{}
	)
	for _, m := range v.machines {
		all.Go(func() {
			state, err := v.sh(ctx, m, "", onUnit(m.Role, `state "$1"`))
			if err != nil {
				state = v.power(ctx, m)
			}
			mu.Lock()
			defer mu.Unlock()
			states[m.Name] = state
		})
	}
	all.Wait()
	return states
}

// power is what Vagrant says about a machine that ssh does not reach.
func (v *Machines) power(ctx context.Context, m lab.Machine) string {
	out, err := v.vagrant(ctx, "status", "--machine-readable", m.Name)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(out) {
		// time,machine,state,running
		f := strings.Split(strings.TrimSpace(line), ",")
		if len(f) == 4 && f[1] == m.Name && f[2] == "state" && f[3] != "running" {
			return lab.StateOff
		}
	}
	return ""
}
