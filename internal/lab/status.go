package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"example.com/todo/internal/operator"
)

// Board is the state of the whole system at one moment, asked of the machines themselves and of Consul. It needs nothing
// but the machines' addresses.
type Board struct {
	At     time.Time   `json:"at"`
	Leader string      `json:"leader"` // the machine that leads the Consul servers, "" if none does
	Consul []ConsulRow `json:"consul"`
	Vault  []VaultRow  `json:"vault"`
	MySQL  []MySQLRow  `json:"mysql"`
	Todo   []TodoRow   `json:"todo"`
	// Problems are whole sentences, the worst first. Without any, everything is as it should be.
	Problems []string `json:"problems"`
	// Healthy is whether every service has at least one healthy instance.
	Healthy bool `json:"healthy"`
}

// Row is what the board shows of every machine.
type Row struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	Agent   string `json:"agent"`   // of its Consul agent: passing, critical, absent or unknown
	Health  string `json:"health"`  // of its service by Consul: passing, warning, critical, absent or unknown
	Process string `json:"process"` // running, paused, stopped, off (its machine is); "" where that cannot be seen
	Version string `json:"version,omitempty"`
	Error   string `json:"error,omitempty"` // why it does not answer
}

// ConsulRow is one Consul server.
type ConsulRow struct {
	Row
	Leader bool `json:"leader"`
}

// VaultRow is one Vault.
type VaultRow struct {
	Row
	Initialized bool `json:"initialized"`
	Sealed      bool `json:"sealed"`
	Leader      bool `json:"leader"`
}

// MySQLRow is one database server.
type MySQLRow struct {
	Row
	Milliseconds float64 `json:"milliseconds"` // until it greeted
}

// TodoRow is one instance of the service.
type TodoRow struct {
	Row
	Live         bool    `json:"live"`         // a todo was created and deleted a moment ago
	Milliseconds float64 `json:"milliseconds"` // that took
	State        string  `json:"credentials"`
	User         string  `json:"user"`
	SecondsLeft  float64 `json:"seconds_left"` // of its lease; negative when it lives on borrowed time
	Reason       string  `json:"reason,omitempty"`
}

// StateOff is the Process of a service whose machine has no power.
const StateOff = "off"

// probeWithin bounds every question the board asks. They are asked at once, so the board is there in little more than
// that, whatever hangs.
const probeWithin = 2 * time.Second

// What Consul says of a service, besides its own three words.
const (
	absent  = "absent"
	unknown = "unknown"
)

// Status asks every machine and Consul, and looks at the lab's processes.
func (l *Lab) Status(ctx context.Context) (Board, error) {
	ps, err := processes(l.dir)
	if err != nil {
		return Board{}, err
	}
	return Observe(ctx, l.machines, func(_ context.Context, silent []Machine) map[string]string {
		states := map[string]string{}
		for _, m := range silent {
			switch p, running := pick(ps, m.Name+"/"+m.Role); {
			case !running:
				states[m.Name] = "stopped"
			case p.paused():
				states[m.Name] = "paused"
			default:
				states[m.Name] = "running"
			}
		}
		return states
	}), nil
}

// Observe asks machines how they are. A service that answers runs; how it is with the process of one that does not, a function looks
// up, which may be nil where nobody can see processes.
func Observe(ctx context.Context, machines []Machine, look func(ctx context.Context, silent []Machine) map[string]string) Board {
	b := Board{At: time.Now()}
	consul := catalog{}
	var all sync.WaitGroup
	all.Go(func() { consul = askCatalog(ctx, machines) })
	for _, m := range machines {
		row := Row{Name: m.Name, Address: m.Addr}
		switch m.Role {
		case RoleConsul:
			b.Consul = append(b.Consul, ConsulRow{Row: row})
		case RoleVault:
			b.Vault = append(b.Vault, VaultRow{Row: row})
		case RoleMySQL:
			b.MySQL = append(b.MySQL, MySQLRow{Row: row})
		case RoleTodo:
			b.Todo = append(b.Todo, TodoRow{Row: row})
		}
	}
	b.probe(ctx, &all)
	all.Wait()
	rows := b.rows()
	silent := slices.DeleteFunc(slices.Clone(machines), func(m Machine) bool { return rows[m.Name].Error == "" })
	states := map[string]string{}
	if len(silent) > 0 && look != nil {
		states = look(ctx, silent)
	}
	for _, r := range rows {
		r.Process = states[r.Name]
		if r.Error == "" {
			r.Process = "running"
		}
	}
	b.fill(consul)
	b.judge(consul)
	return b
}

// rows are what all kinds of machines have in common, by name.
func (b *Board) rows() map[string]*Row {
	rows := map[string]*Row{}
	for i := range b.Consul {
		rows[b.Consul[i].Name] = &b.Consul[i].Row
	}
	for i := range b.Vault {
		rows[b.Vault[i].Name] = &b.Vault[i].Row
	}
	for i := range b.MySQL {
		rows[b.MySQL[i].Name] = &b.MySQL[i].Row
	}
	for i := range b.Todo {
		rows[b.Todo[i].Name] = &b.Todo[i].Row
	}
	return rows
}

// probe asks every row's machine, all at once.
func (b *Board) probe(ctx context.Context, all *sync.WaitGroup) {
	ask := func(row *Row, question func(context.Context) error) {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, probeWithin)
			defer cancel()
			if err := question(ctx); err != nil {
				row.Error = short(err)
			}
		})
	}
	for i := range b.Consul {
		r := &b.Consul[i]
		ask(&r.Row, r.ask)
	}
	for i := range b.Vault {
		r := &b.Vault[i]
		ask(&r.Row, r.ask)
	}
	for i := range b.MySQL {
		r := &b.MySQL[i]
		ask(&r.Row, r.ask)
	}
	for i := range b.Todo {
		r := &b.Todo[i]
		all.Go(func() { r.askHealth(ctx) })
		ask(&r.Row, r.tryOut)
	}
}

func (r *ConsulRow) ask(ctx context.Context) error {
	var self struct{ Config struct{ Version string } }
	err := getJSON(ctx, "http://"+r.Address+":8500/v1/agent/self", &self)
	r.Version = self.Config.Version
	return err
}

func (r *VaultRow) ask(ctx context.Context) error {
	h, err := operator.AskHealth(ctx, "http://"+r.Address+":8200")
	r.Version, r.Initialized, r.Sealed, r.Leader = h.Version, h.Initialized, h.Sealed, h.Active()
	return err
}

func (r *MySQLRow) ask(ctx context.Context) (err error) {
	begun := time.Now()
	r.Version, err = greeting(ctx, r.Address+":3306")
	r.Milliseconds = milliseconds(begun)
	return err
}

// fill writes what Consul knows into the rows.
func (b *Board) fill(c catalog) {
	b.Leader = ""
	for i := range b.Consul {
		r := &b.Consul[i]
		r.Leader = c.leader == r.Address
		if r.Leader {
			b.Leader = r.Name
		}
		r.Agent = c.agent(r.Name)
		r.Health = r.Agent
	}
	for i := range b.Vault {
		c.fill(&b.Vault[i].Row, RoleVault)
	}
	for i := range b.MySQL {
		c.fill(&b.MySQL[i].Row, RoleMySQL)
	}
	for i := range b.Todo {
		c.fill(&b.Todo[i].Row, RoleTodo)
	}
}

// catalog is what Consul says about every machine.
type catalog struct {
	err    error
	leader string // address
	checks []check
}

type check struct{ Node, CheckID, Status, ServiceName string }

// askCatalog asks the agents of all Consul servers and believes the first that has an answer: an agent passes the
// question on to the leader, so every answer is the cluster's.
func askCatalog(ctx context.Context, machines []Machine) catalog {
	ctx, cancel := context.WithTimeout(ctx, probeWithin)
	defer cancel()
	answers := make(chan catalog)
	asked := 0
	for _, m := range machines {
		if m.Role != RoleConsul {
			continue
		}
		asked++
		go func() {
			c := catalog{}
			agent := "http://" + m.Addr + ":8500/v1"
			c.err = errors.Join(getJSON(ctx, agent+"/status/leader", &c.leader), getJSON(ctx, agent+"/health/state/any", &c.checks))
			c.leader, _, _ = strings.Cut(c.leader, ":")
			answers <- c
		}()
	}
	best := catalog{err: errors.New("there is no Consul server")}
	for range asked {
		if c := <-answers; c.err == nil || best.err != nil {
			if best = c; c.err == nil {
				cancel() // the others need not go on
			}
		}
	}
	return best
}

// agent is the state of a machine's Consul agent, as its peers see it.
func (c catalog) agent(node string) string {
	if c.err != nil {
		return unknown
	}
	for _, k := range c.checks {
		if k.Node == node && k.CheckID == "serfHealth" {
			return k.Status
		}
	}
	return absent
}

// fill gives a row the worst that Consul knows about the service on its machine; the agent's own state counts, since
// Consul leaves a service out when its agent is lost.
func (c catalog) fill(r *Row, service string) {
	r.Agent = c.agent(r.Name)
	r.Health = absent
	if c.err != nil {
		r.Health = unknown
	}
	for _, k := range c.checks {
		if k.Node == r.Name && k.ServiceName == service {
			r.Health = worse(r.Health, k.Status)
		}
	}
	if r.Health != absent && r.Agent == "critical" {
		r.Health = r.Agent
	}
}

// worse ranks what Consul says; anything it says is more than its silence.
func worse(a, b string) string {
	rank := map[string]int{absent: 0, unknown: 0, "passing": 1, "warning": 2, "critical": 3}
	if rank[b] > rank[a] {
		return b
	}
	return a
}

// short takes from an error what fits into a column: the innermost reason.
func short(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("no answer in %v", probeWithin)
	}
	text := err.Error()
	if i := strings.LastIndex(text, ": "); i >= 0 && strings.HasPrefix(text[i+2:], "connection refused") {
		return "connection refused"
	}
	return text
}

func milliseconds(since time.Time) float64 {
	return float64(time.Since(since).Microseconds()) / 1000
}
