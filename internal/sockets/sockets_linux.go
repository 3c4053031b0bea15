package sockets

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

// Listeners reads every listening socket of this network namespace.
func Listeners() ([]Listener, error) {
	var all []Listener
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
			if l, ok := parse(strings.TrimSuffix(table, "6"), lines.Text()); ok {
				all = append(all, l)
			}
		}
		if err := errors.Join(lines.Err(), f.Close()); err != nil {
			return nil, fmt.Errorf("read /proc/net/%s: %w", table, err)
		}
	}
	return all, nil
}

// parse reads one line: "sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …", as
// Documentation/networking/proc_net_tcp.rst of the kernel has it.
func parse(network, line string) (Listener, bool) {
	const local, state, uid, inode = 1, 3, 7, 9
	const listening = "0A"
	f := strings.Fields(line)
	if len(f) <= inode || network == "tcp" && f[state] != listening {
		return Listener{}, false
	}
	address, ok := parseHexAddress(f[local])
	if !ok {
		return Listener{}, false
	}
	id, err := strconv.Atoi(f[uid])
	return Listener{Network: network, Address: address, UID: id, inode: f[inode]}, err == nil
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

// owner finds a process that has a socket open; those of other users may not be looked at.
func owner(inode string) (pid int, command string) {
	want := "socket:[" + inode + "]"
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return 0, ""
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err != nil || target != want {
			continue
		}
		number := strings.Split(link, "/")[2]
		pid, _ := strconv.Atoi(number)
		args, _ := os.ReadFile("/proc/" + number + "/cmdline") // it may have ended meanwhile
		return pid, strings.TrimSpace(string(bytes.ReplaceAll(args, []byte{0}, []byte{' '})))
	}
	return 0, ""
}
