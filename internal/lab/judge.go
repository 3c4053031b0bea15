package lab

import "fmt"

// judge turns the rows into sentences, and decides whether every service has a healthy instance.
func (b *Board) judge(c catalog) {
	if b.stopped() {
		b.problem("nothing runs; `lab up` starts it all")
		return
	}
	consul := c.err == nil && b.Leader != ""
	if !consul {
		b.problem("consul: no leader; nothing can be found or registered, and Vault has no storage")
	}
	for _, r := range b.Consul {
		b.judgeRow(r.Row)
	}
	vault, led, standby := len(b.Vault) == 0, false, ""
	for _, r := range b.Vault {
		switch {
		case r.Error != "" || r.Process == "paused":
			b.judgeRow(r.Row)
		case !r.Initialized && (!consul || r.Agent != "passing"):
			b.problem("%s: cannot reach its storage, which is Consul", r.Name)
		case !r.Initialized:
			b.problem("%s: not initialised; `lab vault init` does that", r.Name)
		case r.Sealed:
			b.problem("%s: sealed; `lab vault unseal %s` opens it", r.Name, r.Name)
		default:
			b.judgeRow(r.Row)
			vault = vault || r.Leader && r.Health == "passing"
			led = led || r.Leader
			if !r.Leader {
				standby = r.Name
			}
		}
	}
	switch none := "vault: none is active; no credentials can be leased or renewed"; {
	case vault:
	case consul && !led && standby != "":
		b.problem("%s until %s takes over: up to 45 s after a crash, when the dead one's lock has run out", none, standby)
	default:
		b.problem("%s", none)
	}
	mysql := len(b.MySQL) == 0
	for _, r := range b.MySQL {
		b.judgeRow(r.Row)
		mysql = mysql || r.healthy()
	}
	todo, answers := len(b.Todo) == 0, false
	for _, r := range b.Todo {
		if r.Error != "" && r.Reason != "" {
			r.Error = r.Reason // it answers, and says why it does not serve
		}
		b.judgeRow(r.Row)
		answers = answers || r.Live
		todo = todo || r.Live && (r.Health == "passing" || r.Health == "warning")
	}
	switch {
	case todo:
	case answers:
		b.problem("todo: serves who knows where it is, but cannot be found in Consul")
	default:
		b.problem("todo: no instance serves")
	}
	b.Healthy = consul && vault && mysql && todo
}

// stopped reports whether no machine's service runs at all.
func (b *Board) stopped() bool {
	rows := b.rows()
	for _, r := range rows {
		if r.Process != "stopped" && r.Process != StateOff {
			return false
		}
	}
	return len(rows) > 0
}

func (r Row) healthy() bool {
	return r.Error == "" && r.Health == "passing" && r.Agent == "passing"
}

// judgeRow says the first thing that is wrong with a machine.
func (b *Board) judgeRow(r Row) {
	switch {
	case r.Process == StateOff:
		b.problem("%s: powered off; `vagrant up %s` switches it on", r.Name, r.Name)
	case r.Process == "stopped":
		b.problem("%s: stopped; `lab start %s` starts it", r.Name, r.Name)
	case r.Process == "paused":
		b.problem("%s: paused; `lab resume %s` lets it go on", r.Name, r.Name)
	case r.Error != "":
		b.problem("%s: %s", r.Name, r.Error)
	case r.Agent != "passing" && r.Agent != unknown:
		b.problem("%s: its Consul agent is %s; `lab start %s/agent` starts it if it has stopped", r.Name, r.Agent, r.Name)
	case r.Health != "passing" && r.Health != unknown:
		b.problem("%s: %s by Consul", r.Name, r.Health)
	}
}

func (b *Board) problem(format string, args ...any) {
	b.Problems = append(b.Problems, fmt.Sprintf(format, args...))
}
