package discovery

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	dnsTimeout = 2 * time.Second // of one exchange, over either transport
	// udpSize is what one datagram may carry, told to the server through EDNS: what passes any network unfragmented.
	udpSize = 1232
	maxUDP  = 64 << 10
)

// resolver asks an agent's DNS for SRV records. It is not net.Resolver, because that throws the additional section away, in which
// Consul sends the addresses: 50 instances would take 50 further questions.
//
// TCP comes first. Consul cuts what does not fit into a datagram, and does not say so unless it is configured to: measured,
// 60 instances become 3 over plain UDP and 19 with EDNS of 1232 bytes, without the bit that says "truncated". An answer over TCP is
// whole up to 64 KiB, some 500 instances. UDP is asked where TCP is closed.
type resolver struct {
	server string
	domain string
}

var errTruncated = errors.New("dns answer is truncated: some instances are missing")

// service asks for the instances of a service. A name that does not exist is a service without healthy instances, not an error. With
// errTruncated there are instances, but not all.
func (r *resolver) service(ctx context.Context, name string) ([]Instance, error) {
	name += ".service." + r.domain + "."
	all, err := r.ask(ctx, "tcp", name)
	if err == nil || ctx.Err() != nil {
		return all, err
	}
	all, udpErr := r.ask(ctx, "udp", name)
	if udpErr != nil && len(all) == 0 {
		return nil, fmt.Errorf("consul dns %s: over tcp: %w; over udp: %w", r.server, err, udpErr)
	}
	return all, udpErr
}

// ask does one exchange.
func (r *resolver) ask(ctx context.Context, network, name string) ([]Instance, error) {
	ctx, cancel := context.WithTimeout(ctx, dnsTimeout)
	defer cancel()
	id := uint16(rand.Uint32())
	query, err := dnsQuery(id, name)
	if err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, r.server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// Closing is what ends a read when ctx does, be it by time or by hand.
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	exchange := exchangeTCP
	if network == "udp" {
		exchange = exchangeUDP
	}
	all, err := exchange(conn, id, name, query)
	if ctx.Err() != nil && err != nil {
		return nil, context.Cause(ctx)
	}
	return all, err
}

// exchangeTCP puts two bytes of length before each message (RFC 1035, 4.2.2).
func exchangeTCP(conn net.Conn, id uint16, name string, query []byte) ([]Instance, error) {
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	answer := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, answer); err != nil {
		return nil, err
	}
	return parseSRV(answer, id, name)
}

// exchangeUDP reads until the answer to this very question comes: anybody may send a datagram.
func exchangeUDP(conn net.Conn, id uint16, name string, query []byte) ([]Instance, error) {
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	buffer := make([]byte, maxUDP)
	for {
		n, err := conn.Read(buffer)
		if err != nil {
			return nil, err
		}
		all, err := parseSRV(buffer[:n], id, name)
		if !errors.Is(err, errNotOurs) {
			return all, err
		}
	}
}

func dnsQuery(id uint16, name string) ([]byte, error) {
	qname, err := dnsmessage.NewName(name)
	if err != nil {
		return nil, fmt.Errorf("dns name %q: %w", name, err)
	}
	b := dnsmessage.NewBuilder(make([]byte, 0, 512), dnsmessage.Header{ID: id})
	if err := b.StartQuestions(); err != nil {
		return nil, err
	}
	if err := b.Question(dnsmessage.Question{Name: qname, Type: dnsmessage.TypeSRV, Class: dnsmessage.ClassINET}); err != nil {
		return nil, err
	}
	if err := b.StartAdditionals(); err != nil {
		return nil, err
	}
	var edns dnsmessage.ResourceHeader
	if err := edns.SetEDNS0(udpSize, dnsmessage.RCodeSuccess, false); err != nil {
		return nil, err
	}
	if err := b.OPTResource(edns, dnsmessage.OPTResource{}); err != nil {
		return nil, err
	}
	return b.Finish()
}

var errNotOurs = errors.New("not an answer to the question that was asked")

// parseSRV reads the answer to question id about name. It returns instances together with errTruncated if the server says that
// there are more.
func parseSRV(message []byte, id uint16, name string) ([]Instance, error) {
	var p dnsmessage.Parser
	header, err := p.Start(message)
	if err != nil || header.ID != id || !header.Response {
		return nil, errNotOurs
	}
	questions, err := p.AllQuestions()
	if err != nil || len(questions) != 1 || questions[0].Type != dnsmessage.TypeSRV || !strings.EqualFold(questions[0].Name.String(), name) {
		return nil, errNotOurs
	}
	switch header.RCode {
	case dnsmessage.RCodeSuccess:
	case dnsmessage.RCodeNameError:
		return []Instance{}, nil
	default:
		return nil, fmt.Errorf("dns answer: %s", header.RCode)
	}
	targets, err := parseTargets(&p)
	if err != nil {
		return nil, err
	}
	addrs, err := parseAddrs(&p)
	// A cut message may end anywhere in its last section: what was read of it is good.
	if err != nil && !header.Truncated {
		return nil, err
	}
	all := resolve(targets, addrs)
	if header.Truncated {
		return all, errTruncated
	}
	if len(targets) > 0 && len(all) == 0 {
		return nil, errors.New("dns answer names no address")
	}
	return all, nil
}

// target is one SRV record: priority and weight are left, because Consul has the same for all that pass.
type target struct {
	host string
	port uint16
}

func parseTargets(p *dnsmessage.Parser) ([]target, error) {
	var targets []target
	for {
		header, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return targets, p.SkipAllAuthorities()
		}
		if err != nil {
			return nil, fmt.Errorf("dns answer: %w", err)
		}
		if header.Type != dnsmessage.TypeSRV {
			if err := p.SkipAnswer(); err != nil {
				return nil, fmt.Errorf("dns answer: %w", err)
			}
			continue
		}
		srv, err := p.SRVResource()
		if err != nil {
			return nil, fmt.Errorf("dns answer: %w", err)
		}
		targets = append(targets, target{host: strings.ToLower(srv.Target.String()), port: srv.Port})
	}
}

// parseAddrs reads the addresses that come along with the targets.
func parseAddrs(p *dnsmessage.Parser) (map[string]netip.Addr, error) {
	addrs := make(map[string]netip.Addr)
	for {
		header, err := p.AdditionalHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return addrs, nil
		}
		if err != nil {
			return addrs, fmt.Errorf("dns answer: %w", err)
		}
		host := strings.ToLower(header.Name.String())
		switch header.Type {
		case dnsmessage.TypeA:
			a, err := p.AResource()
			if err != nil {
				return addrs, fmt.Errorf("dns answer: %w", err)
			}
			addrs[host] = netip.AddrFrom4(a.A)
		case dnsmessage.TypeAAAA:
			aaaa, err := p.AAAAResource()
			if err != nil {
				return addrs, fmt.Errorf("dns answer: %w", err)
			}
			if _, known := addrs[host]; !known {
				addrs[host] = netip.AddrFrom16(aaaa.AAAA).Unmap()
			}
		default:
			if err := p.SkipAdditional(); err != nil {
				return addrs, fmt.Errorf("dns answer: %w", err)
			}
		}
	}
}

// resolve joins targets and addresses. A target without an address is a name that the dialler will look up, as when a service
// was registered under one.
func resolve(targets []target, addrs map[string]netip.Addr) []Instance {
	all := []Instance{}
	for _, t := range targets {
		host := strings.TrimSuffix(t.host, ".")
		node, _, isNode := strings.Cut(host, ".node.")
		if !isNode {
			node = ""
		}
		if ip, ok := addrs[t.host]; ok {
			host = ip.String()
		}
		if addr := joinAddr(host, int(t.port)); addr != "" {
			all = append(all, Instance{Addr: addr, Node: node})
		}
	}
	sortInstances(all)
	return all
}
