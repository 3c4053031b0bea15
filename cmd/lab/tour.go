package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"time"

	"example.com/todo/internal/lab"
	"github.com/spf13/cobra"
)

func (a *app) tour() *cobra.Command {
	return &cobra.Command{
		Use:   "tour",
		Short: "A walk through the service's API, across its instances",
		Long: `Shows each call as you could type it, and its answer: writes through one instance, reads and changes through the other, and
which MySQL account each of them has leased. What it writes it deletes.`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			l, err := a.system()
			if err != nil {
				return err
			}
			var todos []lab.Machine
			for _, m := range l.Machines() {
				if m.Role == lab.RoleTodo {
					todos = append(todos, m)
				}
			}
			if len(todos) == 0 {
				return errors.New("this lab has no todo instance to walk through")
			}
			g := &guide{w: a.stdout, command: a.command(), paint: a.palette(), one: todos[0], other: todos[min(1, len(todos)-1)]}
			if _, processes := l.(*lab.Lab); processes {
				g.repair = ", `lab up` starts what does not run"
			}
			defer g.cleanUp(c.Context())
			return g.walk(c.Context())
		},
	}
}

// guide walks through the API.
type guide struct {
	w          io.Writer
	command    string // how a person begins to type one
	paint      palette
	repair     string // what else than looking helps
	one, other lab.Machine
	step       int
	made       string // path of the todo that is still there
}

func (g *guide) walk(ctx context.Context) error {
	for _, m := range []lab.Machine{g.one, g.other}[:g.instances()] {
		if err := g.account(ctx, m); err != nil {
			return err
		}
	}
	g.title("Write a todo through %s.", g.one.Name)
	made, err := g.call(ctx, g.one, http.MethodPost, "/todo", `{"status":"new","content":"see the demo"}`, http.StatusCreated)
	if err != nil {
		return err
	}
	var t struct{ ID int64 }
	if err := json.Unmarshal(made.body, &t); err != nil || t.ID == 0 {
		return fmt.Errorf("%s answered with no todo: %s", g.one.Name, made.body)
	}
	g.made = fmt.Sprintf("/todo/%d", t.ID)

	for _, s := range []struct {
		title, method, body string
		machine             lab.Machine
		want                int
	}{
		{"Read it through %s: instances keep nothing to themselves.", http.MethodGet, "", g.other, http.StatusOK},
		{"Change it through %s.", http.MethodPut, `{"status":"done","content":"see the demo"}`, g.other, http.StatusOK},
		{"Send %s something that is no todo: it says what is wrong.", http.MethodPut, `{"status":"done","contents":"?"}`, g.one, http.StatusBadRequest},
		{"Delete it through %s.", http.MethodDelete, "", g.one, http.StatusNoContent},
		{"Look for it through %s.", http.MethodGet, "", g.other, http.StatusNotFound},
	} {
		g.title(s.title, s.machine.Name)
		if _, err := g.call(ctx, s.machine, s.method, g.made, s.body, s.want); err != nil {
			return err
		}
	}
	g.made = ""
	fmt.Fprintf(g.w, "\n%s Now break something: `%s kill %s`, and take the tour's calls to %s.\n", g.paint.good("●"), g.command, g.one.Name, g.other.Name)
	return nil
}

// instances is how many different ones the walk visits.
func (g *guide) instances() int {
	if g.one == g.other {
		return 1
	}
	return 2
}

// account shows which database account an instance has leased.
func (g *guide) account(ctx context.Context, m lab.Machine) error {
	g.title("%s has no password for the database. It has leased an account of its own from Vault:", m.Name)
	a, err := g.ask(ctx, m, http.MethodGet, "/health", "")
	if err != nil {
		return err
	}
	var h struct {
		Status      string
		Credentials struct {
			User, Lease string
			SecondsLeft float64 `json:"seconds_left"`
		}
	}
	if err := json.Unmarshal(a.body, &h); err != nil {
		return fmt.Errorf("%s does not answer as a todo instance does: %w", m.Name, err)
	}
	g.show(fmt.Sprintf("%s, MySQL user %s, lease %s, %.0f s left", h.Status, h.Credentials.User, h.Credentials.Lease, h.Credentials.SecondsLeft))
	return nil
}

type answer struct {
	status   int
	location string
	body     []byte
}

// call asks, shows the answer, and insists on its status code.
func (g *guide) call(ctx context.Context, m lab.Machine, method, path, body string, want int) (answer, error) {
	a, err := g.ask(ctx, m, method, path, body)
	if err != nil {
		return answer{}, err
	}
	line := fmt.Sprintf("%d %s", a.status, http.StatusText(a.status))
	if a.location != "" {
		line += "   Location: " + a.location
	}
	g.show(line)
	if text := strings.TrimSpace(string(a.body)); text != "" {
		g.show(text)
	}
	if a.status != want {
		return a, fmt.Errorf("%s answered %d where %d was due", m.Name, a.status, want)
	}
	return a, nil
}

// ask shows the call as curl would make it, and makes it.
func (g *guide) ask(ctx context.Context, m lab.Machine, method, path, body string) (answer, error) {
	url := "http://" + m.Addr + ":8080" + path
	curl := "curl "
	if method != http.MethodGet {
		curl += "-X " + method + " "
	}
	curl += url
	if body != "" {
		curl += " -d " + quote(body)
	}
	fmt.Fprintf(g.w, "   %s %s\n", g.paint.faint("$"), curl)
	a, err := request(ctx, method, url, body)
	if err != nil && ctx.Err() == nil {
		return answer{}, fmt.Errorf("%s does not answer (%w): `%s status` says why%s", m.Name, reason(err), g.command, g.repair)
	}
	return a, err
}

// reason is the part of a network error that tells a person something.
func reason(err error) error {
	var number syscall.Errno
	switch {
	case errors.As(err, &number):
		return number
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("it took more than %v", askWithin)
	}
	return err
}

func (g *guide) title(format string, args ...any) {
	g.step++
	fmt.Fprintf(g.w, "\n%s %s\n", g.paint.bold(fmt.Sprintf("%d.", g.step)), g.paint.bold(fmt.Sprintf(format, args...)))
}

func (g *guide) show(line string) { fmt.Fprintf(g.w, "   %s\n", g.paint.good(line)) }

// cleanUp deletes what a walk that was cut short has left.
func (g *guide) cleanUp(ctx context.Context) {
	if g.made == "" {
		return
	}
	url := "http://" + g.other.Addr + ":8080" + g.made
	if a, err := request(context.WithoutCancel(ctx), http.MethodDelete, url, ""); err != nil || a.status/100 != 2 {
		fmt.Fprintf(g.w, "\nThe tour's todo could not be deleted and stays: %s\n", g.made)
	}
}

// askWithin is longer than anything takes on this computer.
const askWithin = 10 * time.Second

// request does one call.
func request(ctx context.Context, method, url, body string) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader([]byte(body)))
	if err != nil {
		return answer{}, err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded") // what the curl that is shown would send
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return answer{resp.StatusCode, resp.Header.Get("Location"), text}, err
}
