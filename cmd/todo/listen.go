package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"example.com/todo/internal/sockets"
)

// listen takes the port before anything else is begun, so that one in use is told at once.
func listen(ctx context.Context, address string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("listen on %s: %s; TODO_LISTEN chooses another port: %w", address, holder(address), err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return l, nil
}

// holder says who has the port, as far as it may be seen.
func holder(address string) string {
	const unseen = "the port is in use by a process that only root may see (`ss -lptn`)"
	at, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return unseen
	}
	port := at.AddrPort()
	if !port.Addr().IsValid() { // ":8080" is in the way of everybody at that port
		port = netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(at.Port))
	}
	all, err := sockets.Listeners()
	if err != nil {
		return unseen
	}
	for _, l := range all {
		if l.Covers("tcp", port) || port.Addr().IsUnspecified() && l.Network == "tcp" && l.Address.Port() == port.Port() {
			if pid, command := l.Owner(); pid != 0 {
				return fmt.Sprintf("the port is in use by process %d: %s", pid, command)
			}
		}
	}
	return unseen
}
