// Command lab runs the machines of the demo as processes of this computer, breaks them on request, and shows how they
// are. `lab help` explains it.
//
// Exit codes: 0 when all went well, 1 when something failed (for `lab status`: when a service has no healthy instance),
// 2 for wrong arguments.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"example.com/todo/internal/lab"
)

// version is set by the build.
var version = "devel"

// The exit codes.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // so that a second signal ends the program at once
	os.Exit(run(ctx, os.Args[1:], surroundings{getenv: os.Getenv, stdout: os.Stdout, stderr: os.Stderr}))
}

// surroundings are what the program gets from the process around it.
type surroundings struct {
	getenv         func(string) string
	stdout, stderr io.Writer
}

// usageError is a mistake in the arguments.
type usageError struct{ error }

// errUnhealthy ends `lab status` with code 1; the board has said why.
var errUnhealthy = errors.New("a service has no healthy instance")

// run is the program without the process around it.
func run(ctx context.Context, args []string, s surroundings) int {
	app := &app{surroundings: s}
	root := app.root()
	root.SetArgs(args)
	root.SetOut(s.stdout)
	root.SetErr(s.stderr)
	err := root.ExecuteContext(ctx)
	var usage usageError
	var impossible *lab.ConfigError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage), errors.As(err, &impossible):
		fmt.Fprintf(s.stderr, "lab: %v\n", err)
		return exitUsage
	case errors.Is(err, errUnhealthy):
		return exitFailed
	case ctx.Err() != nil:
		fmt.Fprintf(s.stderr, "lab: interrupted: %v\n", err)
	default:
		fmt.Fprintf(s.stderr, "lab: %v\n", err)
	}
	var unit *lab.UnitError
	if errors.As(err, &unit) {
		app.showLog(unit)
	}
	return exitFailed
}

// showLog shows the end of the log of the unit that is in trouble.
func (a *app) showLog(e *lab.UnitError) {
	const lines = 12
	end := e.Tail(lines)
	if len(end) == 0 {
		return
	}
	fmt.Fprintf(a.stderr, "\nthe end of %s:\n", a.relative(e.Log))
	for _, line := range end {
		fmt.Fprintf(a.stderr, "  %s\n", line)
	}
}
