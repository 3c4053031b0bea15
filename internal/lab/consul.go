package lab

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"example.com/todo/internal/operator"
	"example.com/todo/provision"
)

// consulServer is the agent of a consul machine, which holds the catalog and everybody's storage.
func (l *Lab) consulServer(m Machine) *unit {
	u := l.consulUnit(m, RoleConsul)
	u.ports = append(u.ports, tcp(m, 8300)...)
	return u
}

// consulAgent is the agent of any other machine.
func (l *Lab) consulAgent(m Machine) *unit { return l.consulUnit(m, UnitAgent) }

func (l *Lab) consulUnit(m Machine, name string) *unit {
	u := &unit{lab: l, machine: m, name: name, stopWithin: 15 * time.Second}
	u.ports = append(tcp(m, 8301, 8500, 8600), udp(m, 8301, 8600)...)
	u.prepare = func(context.Context) error { return l.writeConsulConfig(u) }
	u.command = func() (command, error) {
		args := []string{"agent", "-config-file", u.file("consul.hcl")}
		if m.Role == RoleMySQL {
			args = append(args, "-config-file", u.file("mysql-service.hcl"))
		}
		return command{path: l.binaries.Consul, args: args}, nil
	}
	u.answers = func(ctx context.Context) error { return Answers(ctx, m, name) }
	u.ready = func(ctx context.Context) error { return consulReady(ctx, m) }
	return u
}

func (l *Lab) writeConsulConfig(u *unit) error {
	m := u.machine
	c := provision.Consul{
		Node: m.Name, Address: m.Addr, DataDir: u.file("consul"),
		Server: m.Role == RoleConsul, Servers: l.state.Counts.Consul, Scripts: m.Role == RoleMySQL,
	}
	for _, s := range l.role(RoleConsul) {
		c.Join = append(c.Join, s.Addr)
	}
	if err := render(u.file("consul.hcl"), "consul.hcl", c); err != nil || m.Role != RoleMySQL {
		return err
	}
	return l.writeMySQLService(u)
}

// consistent makes Consul answer from what is true. A new leader reads its log from the beginning, and answers any other
// question from whatever page it is on.
const consistent = "?consistent"

// stale lets any server answer, as the todos do.
const stale = "?stale"

// consulReady asks an agent whether the cluster has a leader and knows this machine: what registers here is then found
// everywhere.
func consulReady(ctx context.Context, m Machine) error {
	agent := "http://" + m.Addr + ":8500"
	var leader string
	if err := getJSON(ctx, agent+"/v1/status/leader", &leader); err != nil {
		return err
	}
	if leader == "" {
		return errors.New("the Consul servers have not elected a leader")
	}
	var checks []struct{ CheckID, Status string }
	if err := getJSON(ctx, agent+"/v1/health/node/"+m.Name+consistent, &checks); err != nil {
		return err
	}
	for _, c := range checks {
		if c.CheckID == "serfHealth" && c.Status == "passing" {
			return nil
		}
	}
	return errors.New("the Consul servers do not know this machine yet")
}

// serviceHealth asks an agent for the worst state of a service on a node, "" if the node has no such service.
func serviceHealth(ctx context.Context, agent, consistency, service, node string) (string, error) {
	var entries []struct {
		Node   struct{ Node string }
		Checks []struct{ Status string }
	}
	if err := getJSON(ctx, "http://"+agent+"/v1/health/service/"+service+consistency, &entries); err != nil {
		return "", err
	}
	for _, e := range entries {
		if e.Node.Node != node {
			continue
		}
		worst := "passing"
		for _, c := range e.Checks {
			if c.Status == "critical" || c.Status == "warning" && worst == "passing" {
				worst = c.Status
			}
		}
		return worst, nil
	}
	return "", nil
}

// passing asks whether a machine's service is healthy: by its own agent, which ran the checks, and then by the catalog,
// where everybody else looks. The catalog alone may still hold what it knew before the machine was last stopped.
func passing(m Machine) func(context.Context) error {
	return func(ctx context.Context) error {
		agent := m.Addr + ":8500"
		if err := getJSON(ctx, "http://"+agent+"/v1/agent/health/service/name/"+m.Role, nil); err != nil {
			return fmt.Errorf("its health checks do not pass: %w", err)
		}
		return seenFrom(ctx, agent, consistent, m)
	}
}

// seenFrom asks an agent whether it finds a machine's service healthy.
func seenFrom(ctx context.Context, agent, consistency string, m Machine) error {
	h, err := serviceHealth(ctx, agent, consistency, m.Role, m.Name)
	if err == nil && h != "passing" {
		err = fmt.Errorf("Consul finds %s %s", m.Name, orElse(h, "not registered"))
	}
	return err
}

// deleteVaultStorage empties the part of Consul's key-value store in which Vault keeps its data.
func (l *Lab) deleteVaultStorage(ctx context.Context) error {
	return EmptyVaultStorage(ctx, l.role(RoleConsul)[0])
}

// EmptyVaultStorage deletes what the Vaults keep in Consul, through one of its agents. No Vault may run meanwhile.
func EmptyVaultStorage(ctx context.Context, agent Machine) error {
	url := "http://" + agent.Addr + ":8500/v1/kv/vault/?recurse"
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, url, nil)
	if err != nil {
		return err
	}
	resp, err := client().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}

// render writes a configuration file from its template.
func render(path, file string, data any) error {
	text, err := provision.Render(file, data)
	if err != nil {
		return err
	}
	return operator.WriteFile(path, text)
}
