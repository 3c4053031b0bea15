package lab

import (
	"fmt"
	"net/netip"
	"slices"

	"example.com/todo/internal/sockets"
)

// port is something a unit listens on.
type port struct {
	network string // tcp or udp
	address netip.AddrPort
}

func (p port) String() string { return fmt.Sprintf("%s (%s)", p.address, p.network) }

func tcp(m Machine, numbers ...uint16) []port { return portsOf("tcp", m, numbers) }
func udp(m Machine, numbers ...uint16) []port { return portsOf("udp", m, numbers) }

func portsOf(network string, m Machine, numbers []uint16) []port {
	var ps []port
	for _, n := range numbers {
		ps = append(ps, port{network, netip.AddrPortFrom(netip.MustParseAddr(m.Addr), n)})
	}
	return ps
}

// InUse reports whether anybody listens at an address of a network such as 127.20.20.
func InUse(network string) (bool, error) {
	if err := checkNet(network); err != nil {
		return false, err
	}
	ls, err := sockets.Listeners()
	if err != nil {
		return false, err
	}
	prefix := netip.PrefixFrom(netip.MustParseAddr(network+".0"), 24)
	for _, l := range ls {
		if prefix.Contains(l.Address.Addr().Unmap()) {
			return true, nil
		}
	}
	return false, nil
}

// portHolder says who listens where p would, or nil if nobody does. The lab's own processes count like any other.
func portHolder(ls []sockets.Listener, p port) *PortError {
	i := slices.IndexFunc(ls, func(l sockets.Listener) bool { return l.Covers(p.network, p.address) })
	if i < 0 {
		return nil
	}
	e := &PortError{Network: p.network, Address: p.address, UID: ls[i].UID}
	if e.PID, e.Command = ls[i].Owner(); e.PID != 0 {
		if _, dir, ok := inspect(e.PID); ok {
			e.Lab = dir
		}
	}
	return e
}

// PortError means that somebody else listens where a unit of the lab would.
type PortError struct {
	Unit    string
	Network string
	Address netip.AddrPort
	PID     int    // 0 if it may not be seen
	UID     int    // whose process it is
	Command string // its arguments, "" if they may not be seen
	Lab     string // the directory of the lab it belongs to, "" if to none
	More    int    // how many more ports of ours the same process, or lab, holds
}

func (e *PortError) Error() string {
	where, more := fmt.Sprintf("%s needs %s (%s), ", e.Unit, e.Address, e.Network), ""
	if e.More > 0 {
		more = fmt.Sprintf("; it has %d more of our ports", e.More)
	}
	switch {
	case e.Lab != "":
		return where + fmt.Sprintf("which belongs to the lab in %s (process %d): take that lab down (`lab --dir %s down`), or choose other addresses with --net%s", e.Lab, e.PID, e.Lab, more)
	case e.PID != 0:
		return where + fmt.Sprintf("which process %d holds: %s. End it, or choose other addresses with --net%s", e.PID, e.Command, more)
	default:
		return where + fmt.Sprintf("which a process of the user with id %d holds (root sees which: `ss -lptn`). End it, or choose other addresses with --net%s", e.UID, more)
	}
}
