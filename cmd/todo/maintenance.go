package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
)

// checkMaintenance says how the command is used if this is not it.
func checkMaintenance(args []string) error {
	if len(args) == 0 || args[0] != "on" && args[0] != "off" || args[0] == "off" && len(args) > 1 {
		return errors.New("want \"todo maintenance on [REASON]\" or \"todo maintenance off\"")
	}
	return nil
}

// maintenance takes the instance that these settings describe out of service discovery, or back. Consul's local agent keeps the
// state, so it outlives a restart of the instance, and an operator may as well ask the agent (consul maint -service=ID).
func maintenance(ctx context.Context, cfg config, args []string, logger *slog.Logger) error {
	r, err := newRegistration(cfg, cfg.listen, logger)
	if err != nil {
		return err
	}
	return r.Maintenance(ctx, args[0] == "on", strings.Join(args[1:], " "))
}
