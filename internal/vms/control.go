package vms

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"example.com/todo/internal/lab"
	"example.com/todo/internal/lab/wait"
)

const (
	askEvery   = 200 * time.Millisecond
	askTimeout = 2 * time.Second
	// answerWithin bounds the wait for a service that was just started, on an emulated processor too.
	answerWithin = 2 * time.Minute
)

// systemdUnit is what runs a unit of a machine. Debian's mariadb.service answers to the name mysql too.
func systemdUnit(unit string) string {
	if unit == lab.UnitAgent {
		return lab.RoleConsul
	}
	return unit
}

// functions are for every script that looks at a unit. A unit that waits to be started again counts as running: systemd is
// at it.
const functions = `
pid() { systemctl show -p MainPID --value "$1"; }
state() {
  case $(systemctl show -p ActiveState --value "$1") in
    inactive | failed) echo stopped ;;
    *) if [ "$(pid "$1")" != 0 ] && grep -q '^State:.T' "/proc/$(pid "$1")/status"; then echo paused; else echo running; fi ;;
  esac
}
`

// each runs a script for every unit of a reference, with $1 the systemd unit; backwards begins with the service.
func (v *Machines) each(ctx context.Context, ref string, backwards bool, script func(m lab.Machine, unit string) error) error {
	m, units, err := lab.Resolve(v.machines, ref)
	if err != nil {
		return err
	}
	var errs []error
	for i := range units {
		if backwards {
			i = len(units) - 1 - i
		}
		errs = append(errs, script(m, units[i]))
	}
	return errors.Join(errs...)
}

func onUnit(unit, script string) string {
	return functions + "\nset -- " + systemdUnit(unit) + "\n" + script
}

// Stop asks units to end, the service before its agent, and waits until they have. It names those that did not end in their
// time and were killed by systemd.
func (v *Machines) Stop(ctx context.Context, ref string) (killed []string, err error) {
	err = v.each(ctx, ref, true, func(m lab.Machine, unit string) error {
		out, err := v.sh(ctx, m, "", onUnit(unit, `
[ "$(state "$1")" != stopped ] || { echo stopped; exit; }
systemctl stop "$1"
systemctl show -p Result --value "$1"`))
		switch {
		case err != nil:
			return err
		case out == "stopped" && !strings.HasSuffix(ref, "/all"):
			return fmt.Errorf("%s/%s %w", m.Name, unit, lab.ErrNotRunning)
		case out == "timeout":
			killed = append(killed, m.Name+"/"+unit)
		}
		return nil
	})
	return killed, err
}

// Start starts units that do not run and waits until they answer, which is less than being ready.
func (v *Machines) Start(ctx context.Context, ref string) error {
	return v.each(ctx, ref, false, func(m lab.Machine, unit string) error { return v.start(ctx, m, unit) })
}

func (v *Machines) start(ctx context.Context, m lab.Machine, unit string) error {
	if unit == lab.RoleTodo {
		if out, err := v.sh(ctx, m, "", "test -s "+secretIDFile+" || echo none"); err != nil || out == "none" {
			return errors.Join(err, noIdentity(m, out))
		}
	}
	out, err := v.sh(ctx, m, "", onUnit(unit, `
[ "$(state "$1")" != paused ] || { echo paused; exit; }
systemctl reset-failed "$1" 2>/dev/null || true
systemctl start --no-block "$1"`)) // an agent that finds no server would keep us waiting
	switch {
	case err != nil:
		return err
	case out == "paused":
		return fmt.Errorf("%s/%s is paused: `lab --on vagrant resume %s` lets it go on", m.Name, unit, ref(m, unit))
	}
	err = wait.Within(ctx, answerWithin, askEvery, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		return lab.Answers(ctx, m, unit)
	})
	if err != nil {
		return fmt.Errorf("%s/%s was started and does not answer: %w; `lab --on vagrant logs %s` says why", m.Name, unit, err, ref(m, unit))
	}
	return nil
}

func noIdentity(m lab.Machine, out string) error {
	if out != "none" {
		return nil
	}
	return fmt.Errorf("%s has no identity: `lab --on vagrant mint %s` comes first", m.Name, m.Name)
}

// ref is how a person names a unit.
func ref(m lab.Machine, unit string) string {
	if unit == m.Role {
		return m.Name
	}
	return m.Name + "/" + unit
}

// Kill ends units at once. Their machine's systemd starts them again, as it would after a crash.
func (v *Machines) Kill(ctx context.Context, ref string) error { return v.signal(ctx, ref, "KILL") }

// Resume lets paused units go on.
func (v *Machines) Resume(ctx context.Context, ref string) error { return v.signal(ctx, ref, "CONT") }

// Pause holds units where they are, and returns when they are held.
func (v *Machines) Pause(ctx context.Context, ref string) error {
	if err := v.signal(ctx, ref, "STOP"); err != nil {
		return err
	}
	return v.each(ctx, ref, false, func(m lab.Machine, unit string) error {
		return wait.Within(ctx, askTimeout, askEvery, func(ctx context.Context) error {
			out, err := v.sh(ctx, m, "", onUnit(unit, `state "$1"`))
			if err == nil && out == "running" {
				err = fmt.Errorf("%s/%s is not held yet", m.Name, unit)
			}
			return err
		})
	})
}

func (v *Machines) signal(ctx context.Context, ref, signal string) error {
	return v.each(ctx, ref, false, func(m lab.Machine, unit string) error {
		out, err := v.sh(ctx, m, "", onUnit(unit, `[ "$(pid "$1")" != 0 ] || { echo stopped; exit; }
systemctl kill -s `+signal+` "$1"`))
		if err == nil && out == "stopped" {
			err = fmt.Errorf("%s/%s %w", m.Name, unit, lab.ErrNotRunning)
		}
		return err
	})
}

// PowerOff pulls a machine's plug: nothing on it can clean up. `vagrant up` switches it on again.
func (v *Machines) PowerOff(ctx context.Context, name string) error {
	m, err := v.whole(name)
	if err != nil {
		return err
	}
	_, err = v.vagrant(ctx, "halt", "--force", m.Name)
	return err
}

// Cut takes a machine's private network away: what it sends there is lost, and what is sent to it, without a word to
// anybody, as when a switch dies. Only ssh still works, whichever way it goes. It lasts until Heal, or until the machine starts
// again.
func (v *Machines) Cut(ctx context.Context, name string) error {
	// Each rule is inserted below the one before, so that ssh is let through first.
	return v.network(ctx, name, `
rule() { n=$1 chain=$2; shift 2; iptables -w -C "$chain" "$@" 2>/dev/null || iptables -w -I "$chain" "$n" "$@"; }
rule 1 INPUT -i "$dev" -p tcp --dport 22 -j ACCEPT
rule 1 OUTPUT -o "$dev" -p tcp --sport 22 -j ACCEPT
rule 2 INPUT -i "$dev" -j DROP
rule 2 OUTPUT -o "$dev" -j DROP`)
}

// Heal gives back what Cut took.
func (v *Machines) Heal(ctx context.Context, name string) error {
	return v.network(ctx, name, `
rule() { while iptables -w -C "$@" 2>/dev/null; do iptables -w -D "$@"; done; }
rule INPUT -i "$dev" -j DROP
rule OUTPUT -o "$dev" -j DROP
rule INPUT -i "$dev" -p tcp --dport 22 -j ACCEPT
rule OUTPUT -o "$dev" -p tcp --sport 22 -j ACCEPT`)
}

// network runs a script with the device of the private network, which is found by the machine's address, because every provider
// names it differently.
func (v *Machines) network(ctx context.Context, name, script string) error {
	m, err := v.whole(name)
	if err != nil {
		return err
	}
	_, err = v.sh(ctx, m, "", `set -e
dev=$(ip -o -4 addr show to `+m.Addr+`/32 | awk '{print $2; exit}')
[ -n "$dev" ] || { echo "no device has the address `+m.Addr+`" >&2; exit 1; }`+script)
	return err
}

// whole finds a machine for what can only be done to all of it.
func (v *Machines) whole(name string) (lab.Machine, error) {
	m, _, err := lab.Resolve(v.machines, name)
	if err == nil && name != m.Name {
		err = fmt.Errorf("this is done to a machine as a whole: write %s", m.Name)
	}
	return m, err
}

// Logs writes the last lines of a unit's journal, and with follow goes on until ctx ends.
func (v *Machines) Logs(ctx context.Context, ref string, lines int, follow bool, w io.Writer) error {
	m, units, err := lab.Resolve(v.machines, ref)
	if err != nil {
		return err
	}
	command := fmt.Sprintf("exec journalctl --no-pager -q -o cat -n %d -u %s", lines, systemdUnit(units[0]))
	if units[0] == lab.RoleMySQL {
		command += " -u mariadb"
	}
	if follow {
		command += " -f"
	}
	err = v.shTo(ctx, m, w, "", command)
	if follow && ctx.Err() != nil {
		return nil
	}
	return err
}
