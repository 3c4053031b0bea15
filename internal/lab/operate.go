package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"example.com/todo/internal/lab/wait"
	"example.com/todo/internal/operator"
)

// operate takes the operator's steps, as far as they are not done.
func (r *run) operate(ctx context.Context) error {
	vaults := r.lab.role(RoleVault)
	for _, m := range vaults {
		if err := r.after(ctx, m.Name); err != nil {
			return err
		}
	}
	if r.options.Manual {
		r.report(OperatorLine, "is you", true)
		return nil
	}
	begun := time.Now()
	if err := r.initAndUnseal(ctx, vaults); err != nil {
		return fmt.Errorf("operator: %w", err)
	}
	r.report(OperatorLine, "waits for an active Vault (after a crash the lock of the dead one lasts up to 45 s)", false)
	if _, err := r.operator.Client(ctx); err != nil {
		return fmt.Errorf("operator: %w", err)
	}
	for _, m := range r.lab.role(RoleMySQL) {
		r.report(OperatorLine, "waits for the database", false)
		if err := r.after(ctx, m.Name); err != nil {
			return err
		}
		if err := r.configure(ctx); err != nil {
			return fmt.Errorf("operator: %w", err)
		}
	}
	if err := r.vaultsReady(ctx, vaults); err != nil {
		return err
	}
	r.report(OperatorLine, r.outcome("done", begun), true)
	return nil
}

func (r *run) initAndUnseal(ctx context.Context, vaults []Machine) error {
	r.report(OperatorLine, "looks after Vault", false)
	initialised, err := r.operator.Init(ctx)
	if err != nil {
		return err
	}
	if initialised {
		r.report(OperatorLine, "initialised Vault", false)
	}
	for _, m := range vaults {
		// Init may have restarted it, so its process is looked for again.
		p, running, err := r.lab.service(m).find()
		if err != nil {
			return err
		}
		if !running {
			return r.lab.service(m).fail(ErrNotRunning)
		}
		r.setProcess(m.Name+"/"+RoleVault, p)
		if p.by != "up" {
			continue
		}
		unsealed, err := r.operator.Unseal(ctx, VaultURL(m))
		if err != nil {
			return err
		}
		if unsealed {
			r.report(OperatorLine, "unsealed "+m.Name, false)
		}
	}
	return nil
}

func (r *run) setProcess(id string, p process) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.processes[id] = p
}

// configure writes Vault's configuration if it is not there or may be another now, and brings the schema up to date
// before the first instance uses it.
func (r *run) configure(ctx context.Context) error {
	if !r.changed {
		configured, err := r.operator.Configured(ctx)
		if err != nil || configured {
			return err
		}
	}
	r.report(OperatorLine, "configures Vault", false)
	if err := r.operator.Configure(ctx); err != nil {
		return err
	}
	todos := r.lab.role(RoleTodo)
	if len(todos) == 0 {
		return nil
	}
	if err := r.after(ctx, todos[0].Name+"/"+UnitAgent); err != nil { // by way of which the migration finds its way
		return err
	}
	for _, m := range r.lab.role(RoleMySQL) {
		err := wait.Within(ctx, answerWithin, askEvery, func(ctx context.Context) error { return seenFrom(ctx, todos[0].Addr+":8500", stale, m) })
		if err != nil {
			return err
		}
	}
	r.report(OperatorLine, "migrates the database", false)
	return r.lab.migrate(ctx, r.operator)
}

// vaultsReady waits for every Vault that is unsealed, and says which are not.
func (r *run) vaultsReady(ctx context.Context, vaults []Machine) error {
	for _, m := range vaults {
		u := r.lab.service(m)
		h, err := operator.AskHealth(ctx, VaultURL(m))
		if err != nil {
			return u.fail(err)
		}
		if h.Sealed {
			r.tell(Event{Machine: m.Name, Done: true, Warning: true, Text: "sealed since a person restarted it: `lab vault unseal " + m.Name + "`"})
			continue
		}
		p, _ := r.running(u)
		if err := u.await(ctx, p, u.ready); err != nil {
			return err
		}
		role := "ready, standby"
		if h, err = operator.AskHealth(ctx, VaultURL(m)); err == nil && h.Active() {
			role = "ready, active"
		}
		r.report(m.Name, role, true)
	}
	return nil
}

// VaultInit initialises Vault and keeps its keys. It reports whether there was anything to do.
func (l *Lab) VaultInit(ctx context.Context) (changed bool, err error) {
	err = l.operate(ctx, "vault init", func(o *operator.Operator) error {
		changed, err = o.Init(ctx)
		return err
	})
	return changed, err
}

// Unseal unseals one Vault, or all of them if machine is "". It reports which of them were sealed.
func (l *Lab) Unseal(ctx context.Context, machine string) (unsealed []string, err error) {
	vaults := l.role(RoleVault)
	if machine != "" {
		m, err := l.Machine(machine)
		if err != nil {
			return nil, err
		}
		if m.Role != RoleVault {
			return nil, fmt.Errorf("%s is not a vault; there are %s", machine, names(vaults))
		}
		vaults = []Machine{m}
	}
	err = l.operate(ctx, "vault unseal", func(o *operator.Operator) error {
		unsealed, err = Unseal(ctx, o, vaults)
		return err
	})
	return unsealed, err
}

// Unseal unseals the Vaults of these machines, each if it can, and says which of them were sealed.
func Unseal(ctx context.Context, o *operator.Operator, vaults []Machine) (unsealed []string, err error) {
	var errs []error
	for _, m := range vaults {
		changed, err := o.Unseal(ctx, VaultURL(m))
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", m.Name, err))
		}
		if changed {
			unsealed = append(unsealed, m.Name)
		}
	}
	return unsealed, errors.Join(errs...)
}

// Configure gives Vault what the service needs.
func (l *Lab) Configure(ctx context.Context) error {
	return l.operate(ctx, "vault configure", func(o *operator.Operator) error { return o.Configure(ctx) })
}

// Migrate brings the database's schema up to date.
func (l *Lab) Migrate(ctx context.Context) error {
	return l.operate(ctx, "migrate", func(o *operator.Operator) error { return l.migrate(ctx, o) })
}

// Mint gives one todo machine an identity, in place of the one it had.
func (l *Lab) Mint(ctx context.Context, machine string) error {
	m, err := l.Machine(machine)
	if err != nil {
		return err
	}
	if m.Role != RoleTodo {
		return fmt.Errorf("%s is no todo machine; there are %s", machine, orElse(names(l.role(RoleTodo)), "none"))
	}
	return l.operate(ctx, "mint "+machine, func(o *operator.Operator) error { return l.mint(ctx, o, m) })
}

// operate takes one step by hand.
func (l *Lab) operate(ctx context.Context, command string, step func(*operator.Operator) error) error {
	if !l.Exists() {
		return ErrNoLab
	}
	done, err := l.change(ctx, command)
	if err != nil {
		return err
	}
	defer done()
	o, err := l.Operator()
	if err != nil {
		return err
	}
	return step(o)
}

// Steps are the operator's steps as a person types them after `lab up --manual`.
func (l *Lab) Steps() []string {
	steps := []string{"lab vault init"}
	for _, m := range l.role(RoleVault) {
		steps = append(steps, "lab vault unseal "+m.Name)
	}
	steps = append(steps, "lab vault configure", "lab migrate")
	for _, m := range l.role(RoleTodo) {
		steps = append(steps, "lab mint "+m.Name, "lab start "+m.Name)
	}
	if l.dir != "" && !strings.HasSuffix(l.dir, "/"+DefaultDir) {
		for i, s := range steps {
			steps[i] = strings.Replace(s, "lab ", "lab --dir "+l.dir+" ", 1)
		}
	}
	return steps
}
