package sockets

import (
	"net"
	"net/netip"
	"os"
	"testing"
)

func TestParse_ReadsTheKernelsLines(t *testing.T) {
	for name, c := range map[string]struct {
		network, line string
		want          Listener
		ok            bool
	}{
		"listening": {"tcp", "   0: 0A14147F:2134 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1001        0 4711 1 0 100 0 0 10 0",
			Listener{"tcp", netip.MustParseAddrPort("127.20.20.10:8500"), 1001, "4711"}, true},
		"connected": {"tcp", "   1: 0A14147F:2134 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 20 4 30 10 -1",
			Listener{}, false},
		"IPv6 wildcard": {"tcp", "   0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 99 1 0 100 0 0 10 0",
			Listener{"tcp", netip.MustParseAddrPort("[::]:8080"), 0, "99"}, true},
		"udp":     {"udp", "  12: 0100007F:2198 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 77 2 0 0", Listener{"udp", netip.MustParseAddrPort("127.0.0.1:8600"), 0, "77"}, true},
		"garbage": {"tcp", "what is this", Listener{}, false},
	} {
		got, ok := parse(c.network, c.line)
		if ok != c.ok || ok && got != c.want {
			t.Errorf("%s: got %+v, %v; want %+v, %v", name, got, ok, c.want, c.ok)
		}
	}
}

func TestListener_CoversItsAddressAndAllAddresses(t *testing.T) {
	p := netip.MustParseAddrPort("127.20.20.10:8500")
	for address, want := range map[string]bool{
		"127.20.20.10:8500": true, "0.0.0.0:8500": true, "[::]:8500": true, "[::ffff:127.20.20.10]:8500": true,
		"127.20.20.11:8500": false, "127.20.20.10:8501": false, "[::1]:8500": false,
	} {
		if got := (Listener{Network: "tcp", Address: netip.MustParseAddrPort(address)}).Covers("tcp", p); got != want {
			t.Errorf("%s: %v, want %v", address, got, want)
		}
	}
	if (Listener{Network: "udp", Address: p}).Covers("tcp", p) {
		t.Error("a UDP socket is no obstacle to a TCP one")
	}
}

func TestListener_NamesItsOwner(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // the test is over
	all, err := Listeners()
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	for _, s := range all {
		if s.Covers("tcp", at) {
			if pid, command := s.Owner(); pid != os.Getpid() || command == "" {
				t.Errorf("owner %d %q, want this process, %d", pid, command, os.Getpid())
			}
			return
		}
	}
	t.Errorf("nobody listens at %s", at)
}
