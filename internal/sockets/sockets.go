// Package sockets tells who listens where on this machine, so that a program which finds its port taken can say by whom.
// It reads the kernel's tables in /proc; on other systems it knows nothing, and says so by an error.
package sockets

import (
	"errors"
	"net/netip"
)

// ErrUnsupported says that this system's sockets cannot be read.
var ErrUnsupported = errors.New("who listens where is known on Linux only")

// Listener is a socket that takes what arrives at an address.
type Listener struct {
	Network string // tcp or udp
	Address netip.AddrPort
	UID     int // whose it is
	inode   string
}

// Covers reports whether the listener is in the way of another at this address: it has the same one, or every address.
func (l Listener) Covers(network string, address netip.AddrPort) bool {
	if l.Network != network || l.Address.Port() != address.Port() {
		return false
	}
	a := l.Address.Addr().Unmap()
	return a == address.Addr().Unmap() || a.IsUnspecified()
}

// Owner is the process that has the socket open, and its arguments: 0 and "" if they may not be seen.
func (l Listener) Owner() (pid int, command string) { return owner(l.inode) }
