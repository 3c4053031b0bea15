// Command todo serves a todo list kept in MySQL. It finds MySQL and Vault through Consul and leases its database
// credentials from Vault; the environment holds all of its settings.
//
// Exit codes: 0 after an orderly end, 1 when something failed, 2 for wrong settings or arguments.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the build.
var version = "devel"

const usage = `todo serves a todo list kept in MySQL, with credentials that Vault leases.

  todo [serve]    serve until SIGTERM or SIGINT; a second signal ends it at once
  todo migrate    bring the database's schema up to date, and exit
  todo maintenance on [REASON]
  todo maintenance off
                  take this instance out of service discovery, and back; it goes
                  on serving whoever still asks it
  todo version    print the version
  todo help       print this

All settings come from the environment ("migrate" and "maintenance" read the same ones):

`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop) // so that a second signal ends the process at once
	err := run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	var bad usageError
	switch {
	case errors.As(err, &bad):
		fmt.Fprintf(os.Stderr, "todo: %v\n", err)
		os.Exit(2)
	case err != nil:
		fmt.Fprintf(os.Stderr, "todo: %v\n", err)
		os.Exit(1)
	}
}

// usageError is a mistake of whoever started the program.
type usageError struct{ error }

// run is the program without the process around it.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) error {
	command := "serve"
	if len(args) > 0 {
		command = args[0]
	}
	if len(args) > 1 && command != "maintenance" {
		return usageError{fmt.Errorf("%s takes no arguments: settings come from the environment; see \"todo help\"", command)}
	}
	switch command {
	case "serve", "migrate":
	case "maintenance":
		if err := checkMaintenance(args[1:]); err != nil {
			return usageError{err}
		}
	case "version", "--version":
		_, err := fmt.Fprintln(stdout, version)
		return err
	case "help", "-h", "-help", "--help":
		if _, err := io.WriteString(stdout, usage); err != nil {
			return err
		}
		return printSettings(stdout, "serve")
	default:
		return usageError{fmt.Errorf("%q is no command: want serve, migrate, maintenance, version or help", command)}
	}
	cfg, err := parse(command, environ)
	if err != nil {
		return usageError{fmt.Errorf("wrong settings:\n%w", err)}
	}
	logger := slog.New(slog.NewJSONHandler(stdout, &slog.HandlerOptions{Level: cfg.logLevel})).With("instance", cfg.instance)
	switch command {
	case "migrate":
		return migrate(ctx, cfg, logger)
	case "maintenance":
		return maintenance(ctx, cfg, args[1:], logger)
	}
	return serve(ctx, cfg, logger)
}
