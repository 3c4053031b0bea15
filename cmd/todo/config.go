package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	neturl "net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"example.com/todo/creds"
)

// config is everything that the environment decides.
type config struct {
	listen, advertise string
	instance, service string
	logLevel          slog.Level

	consulAddr, consulDNS string
	consulToken           creds.Secret
	discovery             string

	vaultAddr, vaultService, vaultAuth, vaultPath string
	roleID                                        string
	secretID                                      creds.Secret
	secretIDFile                                  string

	dbAddr, dbService, dbName string
	dbConns                   int
	dbPatience                time.Duration // for one answer; not a setting, and 0 for migrations, whose statements take their time

	checkInterval, leaveDelay, drainTimeout, revokeTimeout time.Duration
}

// setting is one row of the one table of settings: what reads it, explains it and documents it. A library for this exists
// and stops at the first problem; we tell all of them at once.
type setting struct {
	name    string
	def     string
	help    string
	missing string // why it must be set; "" where it need not be
	set     func(*config, string) error
}

// settings are our own, with the prefix TODO_, and those whose names Consul and Vault have given them.
func settings(command string) []setting {
	role := "todo"
	if command == "migrate" {
		role = "todo-migrate"
	}
	return []setting{
		{name: "TODO_LISTEN", def: ":8080", help: "address and port to serve HTTP on", set: address(func(c *config) *string { return &c.listen })},
		{name: "TODO_ADVERTISE", help: "host:port at which others reach this instance (default: TODO_LISTEN, with the host of CONSUL_HTTP_ADDR where that names none)", set: address(func(c *config) *string { return &c.advertise })},
		{name: "TODO_INSTANCE", def: hostname(), help: "name of this instance, unlike all others", set: name(func(c *config) *string { return &c.instance })},
		{name: "TODO_SERVICE", def: "todo", help: "name of the service in Consul", set: name(func(c *config) *string { return &c.service })},
		{name: "TODO_LOG_LEVEL", def: "info", help: "debug, info, warn or error", set: func(c *config, v string) error {
			if c.logLevel.UnmarshalText([]byte(v)) != nil {
				return fmt.Errorf("%q: want one of debug, info, warn, error", v)
			}
			return nil
		}},

		{name: "CONSUL_HTTP_ADDR", def: "127.0.0.1:8500", help: "HTTP API of the local Consul agent", set: address(func(c *config) *string { return &c.consulAddr })},
		{name: "CONSUL_HTTP_TOKEN", help: "ACL token for it; needs service \"todo\" write, services and nodes read", set: secret(func(c *config) *creds.Secret { return &c.consulToken })},
		{name: "TODO_CONSUL_DNS", help: "DNS of the local Consul agent (default: port 8600 at the host of CONSUL_HTTP_ADDR)", set: address(func(c *config) *string { return &c.consulDNS })},
		{name: "DISCOVERY", def: "auto", help: "auto (API, then DNS), api or dns", set: oneOf(func(c *config) *string { return &c.discovery }, "auto", "api", "dns")},

		{name: "VAULT_ADDR", help: "URL of Vault (default: the active Vault that Consul knows)", set: httpURL(func(c *config) *string { return &c.vaultAddr })},
		{name: "VAULT_ROLE_ID", help: "first half of the identity: the AppRole's role id", missing: "it comes with provisioning", set: text(func(c *config) *string { return &c.roleID })},
		{name: "VAULT_SECRET_ID", help: "second half: a secret id minted for this instance", set: secret(func(c *config) *creds.Secret { return &c.secretID })},
		{name: "VAULT_SECRET_ID_FILE", help: "the same, in a file that is read at each login", set: text(func(c *config) *string { return &c.secretIDFile })},
		{name: "TODO_VAULT_SERVICE", def: "vault", help: "name of Vault in Consul", set: name(func(c *config) *string { return &c.vaultService })},
		{name: "TODO_VAULT_AUTH", def: "approle", help: "path of the AppRole auth method", set: text(func(c *config) *string { return &c.vaultAuth })},
		{name: "TODO_VAULT_PATH", def: "database/creds/" + role, help: "where Vault leases MySQL credentials", set: text(func(c *config) *string { return &c.vaultPath })},

		{name: "TODO_DB_SERVICE", def: "mysql", help: "name of MySQL in Consul", set: name(func(c *config) *string { return &c.dbService })},
		{name: "TODO_DB_ADDR", help: "host:port of MySQL (default: what Consul knows at each dial)", set: address(func(c *config) *string { return &c.dbAddr })},
		{name: "TODO_DB_NAME", def: "todo", help: "name of the database", set: name(func(c *config) *string { return &c.dbName })},
		{name: "TODO_DB_CONNS", def: "16", help: "most connections to MySQL, 1 to 1000", set: number(func(c *config) *int { return &c.dbConns }, 1, 1000)},

		{name: "TODO_CHECK_INTERVAL", def: "2s", help: "how often Consul checks /health, 1s or more", set: duration(func(c *config) *time.Duration { return &c.checkInterval }, time.Second)},
		{name: "TODO_LEAVE_DELAY", def: "1s", help: "on leaving: time for readers of the catalogue to notice, before requests are refused", set: duration(func(c *config) *time.Duration { return &c.leaveDelay }, 0)},
		{name: "TODO_DRAIN_TIMEOUT", def: "10s", help: "on leaving: time for requests in progress", set: duration(func(c *config) *time.Duration { return &c.drainTimeout }, 0)},
		{name: "TODO_REVOKE_TIMEOUT", def: "5s", help: "on leaving: time to revoke our credentials", set: duration(func(c *config) *time.Duration { return &c.revokeTimeout }, time.Millisecond)},
	}
}

// parse reads the environment and reports every problem in it at once.
func parse(command string, environ []string) (config, error) {
	var c config
	var problems []error
	given := map[string]string{}
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok {
			given[k] = v
		}
	}
	table := settings(command)
	identity := command != "maintenance" // which asks Consul only
	for _, s := range table {
		v := given[s.name] // an empty value is an unset one, as in most shells' ${X:-default}
		if v == "" {
			v = s.def
		}
		switch {
		case v == "" && s.missing != "" && identity:
			problems = append(problems, fmt.Errorf("%s is not set: %s (%s)", s.name, s.help, s.missing))
		case v == "":
		default:
			if err := s.set(&c, v); err != nil {
				problems = append(problems, fmt.Errorf("%s: %w", s.name, err))
			}
		}
	}
	switch {
	case c.secretID == "" && c.secretIDFile == "" && identity:
		problems = append(problems, errors.New("VAULT_SECRET_ID or VAULT_SECRET_ID_FILE is not set: the second half of the identity, minted for this instance"))
	case c.secretID != "" && c.secretIDFile != "":
		problems = append(problems, errors.New("VAULT_SECRET_ID and VAULT_SECRET_ID_FILE are both set: choose one"))
	}
	for k := range given {
		if strings.HasPrefix(k, "TODO_") && !slices.ContainsFunc(table, func(s setting) bool { return s.name == k }) {
			problems = append(problems, fmt.Errorf("%s is no setting%s", k, suggest(k, table)))
		}
	}
	slices.SortStableFunc(problems, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return c, errors.Join(problems...)
}

// suggest names the setting that was probably meant.
func suggest(name string, table []setting) string {
	best, distance := "", 4
	for _, s := range table {
		if d := edits(name, s.name); d < distance {
			best, distance = s.name, d
		}
	}
	if best == "" {
		return "; \"todo help\" lists all of them"
	}
	return ": is " + best + " meant?"
}

// edits counts the single-character changes between two words (Levenshtein's distance).
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0]++
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// printSettings writes the table for people.
func printSettings(w io.Writer, command string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range settings(command) {
		def := s.def
		switch {
		case s.name == "TODO_INSTANCE":
			def = "the host's name"
		case s.missing != "":
			def = "required"
		}
		fmt.Fprintf(tw, "  %s\t%s\t%s\n", s.name, def, s.help)
	}
	return tw.Flush()
}

func text(field func(*config) *string) func(*config, string) error {
	return func(c *config, v string) error {
		*field(c) = v
		return nil
	}
}

func httpURL(field func(*config) *string) func(*config, string) error {
	return func(c *config, v string) error {
		u, err := neturl.Parse(v)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return fmt.Errorf("%q: want a URL such as https://vault.example.com:8200", v)
		}
		*field(c) = v
		return nil
	}
}

func secret(field func(*config) *creds.Secret) func(*config, string) error {
	return func(c *config, v string) error {
		*field(c) = creds.Secret(v)
		return nil
	}
}

// name takes what may stand in a Consul service name, a database name and a log field alike.
func name(field func(*config) *string) func(*config, string) error {
	return func(c *config, v string) error {
		letters := "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
		if len(v) > 63 || strings.Trim(v, letters) != "" {
			return fmt.Errorf("%q: want at most 63 letters, digits, dots, dashes and underscores", v)
		}
		*field(c) = v
		return nil
	}
}

// address takes host:port, also behind an http:// as Consul's own tools do.
func address(field func(*config) *string) func(*config, string) error {
	return func(c *config, v string) error {
		v = strings.TrimPrefix(v, "http://")
		_, port, err := net.SplitHostPort(v)
		if err != nil {
			return fmt.Errorf("%q: want host:port", v)
		}
		if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
			return fmt.Errorf("%q: the port is not a number from 0 to 65535", v)
		}
		*field(c) = v
		return nil
	}
}

func oneOf(field func(*config) *string, allowed ...string) func(*config, string) error {
	return func(c *config, v string) error {
		if !slices.Contains(allowed, v) {
			return fmt.Errorf("%q: want one of %s", v, strings.Join(allowed, ", "))
		}
		*field(c) = v
		return nil
	}
}

func number(field func(*config) *int, low, high int) func(*config, string) error {
	return func(c *config, v string) error {
		n, err := strconv.Atoi(v)
		if err != nil || n < low || n > high {
			return fmt.Errorf("%q: want a number from %d to %d", v, low, high)
		}
		*field(c) = n
		return nil
	}
}

func duration(field func(*config) *time.Duration, low time.Duration) func(*config, string) error {
	return func(c *config, v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d < low || d > time.Hour {
			return fmt.Errorf("%q: want a duration such as 500ms or 10s, from %v to 1h", v, low)
		}
		*field(c) = d
		return nil
	}
}

func hostname() string {
	h, err := os.Hostname()
	if err != nil {
		return "todo"
	}
	return h
}
