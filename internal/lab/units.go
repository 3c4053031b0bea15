package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"example.com/todo/internal/lab/wait"
)

// UnitAgent is the Consul agent that every machine has. The other unit of a machine is called as its role; on a consul
// machine the server is both.
const UnitAgent = "agent"

// unit is one process of a machine, and all that the lab knows about its kind.
type unit struct {
	lab     *Lab
	machine Machine
	name    string
	ports   []port
	// prepare brings the files into being that the process needs. It may be repeated.
	prepare func(ctx context.Context) error
	command func() (command, error)
	// answers asks the process itself, once, whether it is there; ready also whether it can do its work.
	answers func(ctx context.Context) error
	ready   func(ctx context.Context) error
	// stopWithin is how long it may take to end when asked to.
	stopWithin time.Duration
}

// id is the unit's full name, machine/unit.
func (u *unit) id() string              { return u.machine.Name + "/" + u.name }
func (u *unit) dir() string             { return u.lab.machineDir(u.machine) }
func (u *unit) log() string             { return filepath.Join(u.dir(), u.name+".log") }
func (u *unit) file(name string) string { return filepath.Join(u.dir(), name) }

// units are the processes of one machine in the order in which they start.
func (l *Lab) units(m Machine) []*unit {
	switch m.Role {
	case RoleConsul:
		return []*unit{l.consulServer(m)}
	case RoleVault:
		return []*unit{l.consulAgent(m), l.vaultServer(m)}
	case RoleMySQL:
		return []*unit{l.consulAgent(m), l.mysqlServer(m)}
	default:
		return []*unit{l.consulAgent(m), l.todoInstance(m)}
	}
}

// service is the unit that a machine is there for.
func (l *Lab) service(m Machine) *unit {
	us := l.units(m)
	return us[len(us)-1]
}

// Resolve reads MACHINE, MACHINE/agent or MACHINE/all, and returns the machine and the names of its units that are meant, in
// the order in which they start.
func Resolve(machines []Machine, ref string) (Machine, []string, error) {
	name, part, _ := strings.Cut(ref, "/")
	m, err := find(machines, name)
	if err != nil {
		return Machine{}, nil, err
	}
	units := []string{UnitAgent, m.Role}
	if m.Role == RoleConsul {
		units = units[1:]
	}
	switch part {
	case "", m.Role:
		return m, units[len(units)-1:], nil
	case UnitAgent:
		return m, units[:1], nil
	case "all":
		return m, units, nil
	}
	return Machine{}, nil, fmt.Errorf("%s has no %q: write %s for its service, %s/agent for its Consul agent, %s/all for both", name, part, name, name, name)
}

func (l *Lab) resolve(ref string) ([]*unit, error) {
	m, names, err := Resolve(l.machines, ref)
	if err != nil {
		return nil, err
	}
	us := slices.DeleteFunc(l.units(m), func(u *unit) bool { return !slices.Contains(names, u.name) })
	return us, nil
}

// find returns the unit's own process, if it runs.
func (u *unit) find() (p process, running bool, err error) {
	ps, err := processes(u.lab.dir)
	if err != nil {
		return process{}, false, err
	}
	p, running = pick(ps, u.id())
	return p, running, nil
}

func pick(ps []process, id string) (process, bool) {
	for _, p := range ps {
		if p.unit == id && p.main {
			return p, true
		}
	}
	return process{}, false
}

// UnitError says which unit is in trouble, and where its log is.
type UnitError struct {
	Unit string
	Log  string
	Err  error
	end  []string // of the log when it happened: what comes after is how it was stopped
}

func (e *UnitError) Error() string { return e.Unit + ": " + e.Err.Error() }
func (e *UnitError) Unwrap() error { return e.Err }

// keptLines is how much of the log an error remembers.
const keptLines = 50

// Tail returns the last lines that the unit's log had when the error came up.
func (e *UnitError) Tail(lines int) []string { return e.end[max(0, len(e.end)-lines):] }

func (u *unit) fail(err error) error {
	var already *UnitError
	if err == nil || errors.As(err, &already) {
		return err
	}
	return &UnitError{Unit: u.id(), Log: u.log(), Err: err, end: Tail(u.log(), keptLines)}
}

const (
	askEvery   = 50 * time.Millisecond
	askTimeout = 2 * time.Second
	endEvery   = 10 * time.Millisecond
	// answerWithin bounds the wait for a process that was just started.
	answerWithin = 60 * time.Second
)

// launch prepares and starts the unit and returns its process, without waiting for an answer.
func (u *unit) launch(ctx context.Context, by string) (process, error) {
	if err := os.MkdirAll(u.dir(), 0o700); err != nil {
		return process{}, u.fail(err)
	}
	if err := u.prepare(ctx); err != nil {
		return process{}, u.fail(err)
	}
	c, err := u.command()
	if err != nil {
		return process{}, u.fail(err)
	}
	p, err := u.start(by, c)
	return p, u.fail(err)
}

// start gives a command the surroundings of its machine. Nothing of our own environment goes along.
func (u *unit) start(by string, c command) (process, error) {
	c.dir, c.log = u.dir(), u.log()
	c.env = append([]string{"PATH=" + searchPath, "HOME=" + u.dir(), "LANG=C.UTF-8"}, c.env...)
	return start(u.lab.dir, u.id(), by, c)
}

// run starts a command that ends by itself and waits for its end. It does not outlive ctx.
func (u *unit) run(ctx context.Context, c command) error {
	if err := os.MkdirAll(u.dir(), 0o700); err != nil {
		return u.fail(err)
	}
	p, err := u.start("run", c)
	if err != nil {
		return u.fail(err)
	}
	status := ""
	err = wait.Until(ctx, endEvery, func(context.Context) error {
		gone, s := p.ended()
		if !gone {
			return errors.New("still running")
		}
		status = s
		return nil
	})
	if err != nil {
		_, killErr := u.kill()
		return u.fail(errors.Join(err, killErr))
	}
	if status != endedWell {
		return u.fail(errors.New("the process " + orElse(status, "ended")))
	}
	return nil
}

// await asks until the answer is good, the process ends or the time is up.
func (u *unit) await(ctx context.Context, p process, ask func(context.Context) error) error {
	var end error
	err := wait.Within(ctx, answerWithin, askEvery, func(ctx context.Context) error {
		if gone, status := p.ended(); gone {
			end = errors.New(strings.TrimSpace("the process " + orElse(status, "ended")))
			return nil
		}
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		return ask(ctx)
	})
	return u.fail(errors.Join(err, end))
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// client asks the processes of the lab. It keeps no connection, so it leaves nothing behind.
func client() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
}

// getJSON reads an answer into v. A status other than 2xx is an error, but its body is read too if it is JSON.
func getJSON(ctx context.Context, url string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return err
	}
	if v != nil {
		err = json.Unmarshal(body, v)
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return err
}
