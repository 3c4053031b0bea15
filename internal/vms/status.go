package vms

import (
	"context"
	"strings"
	"sync"
	"time"

	"example.com/todo/internal/lab"
)

// lookWithin bounds the look at the machines' units. It is more than ssh takes to give up on a machine, and Vagrant to say whether
// it has power.
const lookWithin = 12 * time.Second

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
		silent []lab.Machine
	)
	for _, m := range v.machines {
		all.Go(func() {
			state, err := v.shKept(ctx, m, onUnit(m.Role, `state "$1"`))
			mu.Lock()
			defer mu.Unlock()
			states[m.Name] = state
			if err != nil {
				silent = append(silent, m)
			}
		})
	}
	all.Wait()
	off := v.off(ctx, silent)
	for _, m := range silent {
		if off[m.Name] {
			states[m.Name] = lab.StateOff
		} else if err := v.forget(m); err != nil { // its address may have changed
			v.report("%v", err)
		}
	}
	return states
}

// shKept is sh for a look that can be done without: it goes by what is known of the machine's address, and does not ask anew.
func (v *Machines) shKept(ctx context.Context, m lab.Machine, script string) (string, error) {
	config, _, err := v.sshConfig(ctx, m, false)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	err = ssh(ctx, config, m, &out, "", script)
	return strings.TrimSpace(out.String()), err
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
