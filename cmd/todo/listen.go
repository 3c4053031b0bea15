package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
)

// listen takes the port before anything else is begun, so that one in use is told at once.
func listen(ctx context.Context, address string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("listen on %s: the port is in use; `ss -lptn` shows by whom, and TODO_LISTEN chooses another: %w", address, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return l, nil
}
