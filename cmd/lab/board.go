package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"example.com/todo/internal/lab"
	"github.com/spf13/cobra"
)

// watchEvery is the pause between two boards. Every board writes a todo through each instance and deletes it again.
const watchEvery = time.Second

func (a *app) status() *cobra.Command {
	var watch, asJSON bool
	c := &cobra.Command{
		Use:   "status",
		Short: "The board: how every machine is, asked of the machines themselves",
		Long: `Asks every machine, and Consul about every machine, and shows the answers: whether each Vault is sealed and which one leads;
for each todo whether a todo could be created and deleted just now, which MySQL user it has leased and for how long; who
leads the Consul servers; how long the database took to greet. What does not answer in two seconds is shown so.

The exit code is 0 only if every service has at least one healthy instance.`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			if watch && asJSON {
				return usageError{errors.New("--watch is for people and --json for programs: choose one")}
			}
			l, err := a.system()
			if err != nil {
				return err
			}
			if watch {
				return a.watch(c.Context(), l)
			}
			b, err := l.Status(c.Context())
			if err != nil {
				return err
			}
			if err := a.print(b, asJSON); err != nil {
				return err
			}
			if !b.Healthy {
				return errUnhealthy
			}
			return nil
		},
	}
	c.Flags().BoolVarP(&watch, "watch", "w", false, "show it again and again")
	c.Flags().BoolVar(&asJSON, "json", false, "for programs")
	return c
}

func (a *app) print(b lab.Board, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(a.stdout)
		e.SetIndent("", "  ")
		return e.Encode(b)
	}
	width, _, _ := a.terminal(a.stdout)
	writeBoard(a.stdout, b, a.palette(), width)
	return nil
}

// watch shows board after board until ctx ends, each over the last on a terminal.
func (a *app) watch(ctx context.Context, l system) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		b, err := l.Status(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		var text bytes.Buffer
		width, _, terminal := a.terminal(a.stdout)
		writeBoard(&text, b, a.palette(), width)
		screen := text.String()
		if terminal {
			// Home, each line with its rest erased, then all below: nothing flickers.
			screen = "\x1b[H" + strings.ReplaceAll(screen, "\n", "\x1b[K\n") + "\x1b[J"
		}
		if _, err := io.WriteString(a.stdout, screen); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// cell is a word of the board and how good it is.
type cell struct {
	text  string
	paint func(palette, string) string
}

func plain(s string) cell { return cell{s, func(_ palette, s string) string { return s }} }
func good(s string) cell  { return cell{s, palette.good} }
func bad(s string) cell   { return cell{s, palette.bad} }
func soso(s string) cell  { return cell{s, palette.soso} }
func faint(s string) cell { return cell{s, palette.faint} }

// writeBoard draws the board: one table, whose columns line up through all its parts. A width other than 0 is that of the
// terminal, and lines are cut there: a board whose lines wrap cannot be read.
func writeBoard(w io.Writer, b lab.Board, p palette, width int) {
	var t table
	t.head("CONSUL", "address", "state", "by Consul", "leader", "version")
	for _, r := range b.Consul {
		t.row(plain(r.Name), plain(r.Address), state(r.Row, good("running")), byConsul(r.Row), leader(r.Leader), faint(r.Version))
	}
	t.head("VAULT", "address", "state", "by Consul", "leader", "version")
	for _, r := range b.Vault {
		t.row(plain(r.Name), plain(r.Address), state(r.Row, seal(r)), byConsul(r.Row), leader(r.Leader), faint(r.Version))
	}
	t.head("MYSQL", "address", "state", "by Consul", "greets in", "version")
	for _, r := range b.MySQL {
		greets := plain(fmt.Sprintf("%.1f ms", r.Milliseconds))
		if r.Error != "" {
			greets = bad("–")
		}
		t.row(plain(r.Name), plain(r.Address), state(r.Row, good("running")), byConsul(r.Row), greets, faint(r.Version))
	}
	if len(b.Todo) > 0 {
		t.head("TODO", "address", "state", "by Consul", "writes in", "MySQL user", "lease left", "version")
	}
	for _, r := range b.Todo {
		writes := plain(fmt.Sprintf("%.1f ms", r.Milliseconds))
		if !r.Live {
			writes = bad("fails")
		}
		t.row(plain(r.Name), plain(r.Address), state(r.Row, good("running")), byConsul(r.Row), writes, plain(orDash(r.User)), left(r), faint(r.Version))
	}
	t.write(w, p, width)
	writeVerdict(w, b, p)
}

func writeVerdict(w io.Writer, b lab.Board, p palette) {
	fmt.Fprintln(w)
	at := p.faint(b.At.Format(time.TimeOnly))
	switch {
	case len(b.Problems) == 0:
		fmt.Fprintf(w, "%s %s  %s\n", p.good("●"), p.good("all is well"), at)
	case b.Healthy:
		fmt.Fprintf(w, "%s %s  %s\n", p.soso("●"), p.soso("every service serves, and something needs attention"), at)
	default:
		fmt.Fprintf(w, "%s %s  %s\n", p.bad("●"), p.bad("a service has no healthy instance"), at)
	}
	for _, problem := range b.Problems {
		fmt.Fprintf(w, "  %s\n", problem)
	}
}

// state says what is the matter with a machine's service, or, if nothing is, what it was given to say.
func state(r lab.Row, healthy cell) cell {
	switch {
	case r.Process == "stopped" || r.Process == "paused":
		return bad(r.Process)
	case r.Error != "":
		return bad("no answer")
	}
	return healthy
}

func seal(r lab.VaultRow) cell {
	switch {
	case !r.Initialized:
		return soso("uninitialised")
	case r.Sealed:
		return bad("sealed")
	}
	return good("unsealed")
}

func byConsul(r lab.Row) cell {
	switch r.Health {
	case "passing":
		return good(r.Health)
	case "warning":
		return soso(r.Health)
	}
	return bad(r.Health)
}

func leader(is bool) cell {
	if is {
		return good("leader")
	}
	return faint("–")
}

// left shows how long a lease has still to go, and what is the matter with it.
func left(r lab.TodoRow) cell {
	text := fmt.Sprintf("%.0f s", r.SecondsLeft)
	switch {
	case r.State == "":
		return bad("–")
	case r.State != "current":
		return soso(fmt.Sprintf("%s, %s", text, r.State))
	}
	return plain(text)
}

func orDash(s string) string {
	if s == "" {
		return "–"
	}
	return s
}

// table lines up its columns; headings belong to it, so that they line up too.
type table struct {
	rows [][]cell
}

func (t *table) row(cells ...cell) { t.rows = append(t.rows, cells) }

func (t *table) head(title string, columns ...string) {
	if len(t.rows) > 0 {
		t.row()
	}
	cells := []cell{{title, palette.bold}}
	for _, c := range columns {
		cells = append(cells, faint(c))
	}
	t.row(cells...)
}

func (t *table) write(w io.Writer, p palette, width int) {
	const gap = 2
	var widths []int
	for _, row := range t.rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			// The last word of a heading may be longer than its column: it has the room.
			if i < len(row)-1 {
				widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
			}
		}
	}
	for _, row := range t.rows {
		var line strings.Builder
		written, column := 0, 0
		for i, c := range row {
			if width > 0 && column >= width-1 {
				break
			}
			text := c.text
			if width > 0 {
				text = cut(text, width-column)
			}
			line.WriteString(strings.Repeat(" ", column-written))
			line.WriteString(c.paint(p, text))
			written = column + utf8.RuneCountInString(text)
			column += widths[i] + gap
		}
		fmt.Fprintln(w, line.String())
	}
}
