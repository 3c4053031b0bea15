package lab

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// listener is one line of /proc/net/tcp and its relatives: a socket that takes what arrives at an address.
type listener struct {
	network string
	address netip.AddrPort
	uid     int
	inode   string
}

// covers reports whether the listener would be in the way of p: at the same address, or at every address.
func (l listener) covers(p port) bool {
	if l.network != p.network || l.address.Port() != p.address.Port() {
		return false
	}
	a := l.address.Addr().Unmap()
	return a == p.address.Addr() || a.IsUnspecified()
}

// portHolder says who listens where p would, or nil if nobody does. The lab's own processes count like any other.
func portHolder(ls []listener, p port) *PortError {
	i := slices.IndexFunc(ls, func(l listener) bool { return l.covers(p) })
	if i < 0 {
		return nil
	}
	e := &PortError{Network: p.network, Address: p.address, UID: ls[i].uid}
	if e.PID = socketOwner(ls[i].inode); e.PID != 0 {
		if _, dir, ok := inspect(e.PID); ok {
			e.Lab = dir
		}
		if args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", e.PID)); err == nil {
			e.Command = strings.TrimSpace(string(bytes.ReplaceAll(args, []byte{0}, []byte{' '})))
		}
	}
	return e
}

// listeners reads every listening socket of this network namespace.
func listeners() ([]listener, error) {
	var all []listener
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		f, err := os.Open("/proc/net/" + table)
		if errors.Is(err, fs.ErrNotExist) {
			continue // no IPv6 here
		}
		if err != nil {
			return nil, fmt.Errorf("look for listening sockets: %w", err)
		}
		lines := bufio.NewScanner(f)
		lines.Scan() // the heading
		for lines.Scan() {
			if l, ok := parseSocket(strings.TrimSuffix(table, "6"), lines.Text()); ok {
				all = append(all, l)
			}
		}
		if err := errors.Join(lines.Err(), f.Close()); err != nil {
			return nil, fmt.Errorf("read /proc/net/%s: %w", table, err)
		}
	}
	return all, nil
}

// parseSocket reads one line: "sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …", as
// Documentation/networking/proc_net_tcp.rst of the kernel has it.
func parseSocket(network, line string) (listener, bool) {
	const local, state, uid, inode = 1, 3, 7, 9
	const listening = "0A"
	f := strings.Fields(line)
	if len(f) <= inode || network == "tcp" && f[state] != listening {
		return listener{}, false
	}
	address, ok := parseHexAddress(f[local])
	if !ok {
		return listener{}, false
	}
	id, err := strconv.Atoi(f[uid])
	return listener{network: network, address: address, uid: id, inode: f[inode]}, err == nil
}

// parseHexAddress reads an address as the kernel prints it: each group of four bytes in the order of the machine, which
// is the wrong way round on every machine this runs on, and the port the right way round.
func parseHexAddress(s string) (netip.AddrPort, bool) {
	host, number, ok := strings.Cut(s, ":")
	raw, err := hex.DecodeString(host)
	p, perr := strconv.ParseUint(number, 16, 16)
	if !ok || err != nil || perr != nil {
		return netip.AddrPort{}, false
	}
	for group := range slices.Chunk(raw, 4) {
		slices.Reverse(group)
	}
	a, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(a, uint16(p)), ok
}

// socketOwner finds a process that has a socket open, or 0 if it is of another user and we may not look.
func socketOwner(inode string) int {
	want := "socket:[" + inode + "]"
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return 0
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && target == want {
			pid, _ := strconv.Atoi(strings.Split(link, "/")[2])
			return pid
		}
	}
	return 0
}
