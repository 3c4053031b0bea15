package lab

import "fmt"

// judge turns the rows into sentences, and decides whether every service has a healthy instance.
func (b *Board) judge(c catalog) {
	consul := c.err == nil && b.Leader != ""
	if !consul {
		b.problem("consul: no leader; nothing can be found or registered, and Vault has no storage")
	}
	for _, r := range b.Consul {
		b.judgeRow(r.Row)
	}
	vault := len(b.Vault) == 0
	for _, r := range b.Vault {
		switch {
		case r.Error != "" || r.Process == "paused":
			b.judgeRow(r.Row)
		case !r.Initialized:
			b.problem("%s: not initialised; `lab vault init` does that", r.Name)
		case r.Sealed:
			b.problem("%s: sealed; `lab vault unseal %s` opens it", r.Name, r.Name)
		default:
			b.judgeRow(r.Row)
			vault = vault || r.Leader && r.Health == "passing"
		}
	}
	if !vault {
		b.problem("vault: none is active; no credentials can be leased or renewed")
	}
	mysql := len(b.MySQL) == 0
	for _, r := range b.MySQL {
		b.judgeRow(r.Row)
		mysql = mysql || r.healthy()
	}
	todo := len(b.Todo) == 0
	for _, r := range b.Todo {
		b.judgeRow(r.Row)
		todo = todo || r.Live && (r.Health == "passing" || r.Health == "warning")
	}
	if !todo {
		b.problem("todo: no instance serves")
	}
	b.Healthy = consul && vault && mysql && todo
}

func (r Row) healthy() bool {
	return r.Error == "" && r.Health == "passing" && r.Agent == "passing"
}

// judgeRow says the first thing that is wrong with a machine.
func (b *Board) judgeRow(r Row) {
	switch {
	case r.Process == "stopped":
		b.problem("%s: stopped; `lab start %s` starts it", r.Name, r.Name)
	case r.Process == "paused":
		b.problem("%s: paused; `lab resume %s` lets it go on", r.Name, r.Name)
	case r.Error != "":
		b.problem("%s: %s", r.Name, r.Error)
	case r.Agent != "passing" && r.Agent != unknown:
		b.problem("%s: its Consul agent is %s", r.Name, r.Agent)
	case r.Health != "passing" && r.Health != unknown:
		b.problem("%s: %s by Consul", r.Name, r.Health)
	}
}

func (b *Board) problem(format string, args ...any) {
	b.Problems = append(b.Problems, fmt.Sprintf(format, args...))
}
