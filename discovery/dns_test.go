package discovery

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// srvAnswer makes an answer of n instances to a query, with addresses or without.
func srvAnswer(t testing.TB, query []byte, n int, change func(*dnsmessage.Message)) []byte {
	t.Helper()
	var q dnsmessage.Message
	if err := q.Unpack(query); err != nil {
		t.Error(err)
		return nil
	}
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: q.ID, Response: true, Authoritative: true}, Questions: q.Questions}
	for i := range n {
		node := dnsmessage.MustNewName(fmt.Sprintf("n%d.node.dc1.consul.", i))
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: q.Questions[0].Name, Class: dnsmessage.ClassINET},
			Body:   &dnsmessage.SRVResource{Priority: 1, Weight: 1, Port: 80, Target: node}})
		m.Additionals = append(m.Additionals,
			dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: node, Class: dnsmessage.ClassINET},
				Body: &dnsmessage.AResource{A: [4]byte{10, 0, byte(i / 256), byte(i % 256)}}},
			dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: node, Class: dnsmessage.ClassINET},
				Body: &dnsmessage.TXTResource{TXT: []string{"consul-network-segment="}}})
	}
	if change != nil {
		change(&m)
	}
	packed, err := m.Pack()
	if err != nil {
		t.Error(err)
	}
	return packed
}

// fakeDNS answers on one port over TCP and UDP. A nil answer is silence; a nil function closes that door.
func fakeDNS(t *testing.T, tcp, udp func(query []byte) [][]byte) *resolver {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var servers sync.WaitGroup
	t.Cleanup(func() { l.Close(); p.Close(); servers.Wait() })
	if tcp == nil {
		l.Close()
	}
	if udp == nil {
		p.Close()
	}
	servers.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			servers.Go(func() {
				defer c.Close()
				var size [2]byte
				if _, err := io.ReadFull(c, size[:]); err != nil {
					return
				}
				query := make([]byte, binary.BigEndian.Uint16(size[:]))
				if _, err := io.ReadFull(c, query); err != nil {
					return
				}
				for _, a := range tcp(query) {
					_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...))
				}
				_, _ = io.Copy(io.Discard, c)
			})
		}
	})
	servers.Go(func() {
		query := make([]byte, 64<<10)
		for {
			n, from, err := p.ReadFrom(query)
			if err != nil {
				return
			}
			for _, a := range udp(query[:n]) {
				_, _ = p.WriteTo(a, from)
			}
		}
	})
	return &resolver{server: l.Addr().String(), domain: "consul"}
}

func TestResolver_ReadsAllInstancesWholeFromOneQuestion(t *testing.T) {
	for _, n := range []int{5, 50} {
		questions := 0
		r := fakeDNS(t, func(q []byte) [][]byte { questions++; return [][]byte{srvAnswer(t, q, n, nil)} }, func(q []byte) [][]byte {
			t.Error("asked over UDP, where Consul cuts without saying so")
			return nil
		})
		all, err := r.service(t.Context(), "todo")
		if err != nil || len(all) != n || questions != 1 || all[1].Addr != "10.0.0.10:80" && all[1].Addr != "10.0.0.1:80" || all[0].Node == "" {
			t.Errorf("got %d instances of %d from %d questions, %v: %v", len(all), n, questions, err, all)
		}
	}
}

func TestResolver_AsksOverUDPWhereTCPIsClosed(t *testing.T) {
	r := fakeDNS(t, nil, func(q []byte) [][]byte {
		forged := srvAnswer(t, q, 1, func(m *dnsmessage.Message) { m.ID++ })
		other := srvAnswer(t, q, 2, func(m *dnsmessage.Message) { m.Questions[0].Name = dnsmessage.MustNewName("other.") })
		return [][]byte{forged, other, []byte("garbage"), srvAnswer(t, q, 3, nil)}
	})
	if all, err := r.service(t.Context(), "todo"); err != nil || len(all) != 3 {
		t.Errorf("got %v, %v", all, err)
	}
}

func TestResolver_SaysWhenAnAnswerIsTruncated(t *testing.T) {
	r := fakeDNS(t, nil, func(q []byte) [][]byte {
		return [][]byte{srvAnswer(t, q, 3, func(m *dnsmessage.Message) { m.Truncated = true })}
	})
	if all, err := r.service(t.Context(), "todo"); !errors.Is(err, errTruncated) || len(all) != 3 {
		t.Errorf("got %v, %v", all, err)
	}
}

func TestResolver_TellsNoSuchNameFromNoAnswer(t *testing.T) {
	for _, c := range []struct {
		code dnsmessage.RCode
		fine bool
	}{{dnsmessage.RCodeNameError, true}, {dnsmessage.RCodeSuccess, true}, {dnsmessage.RCodeServerFailure, false}, {dnsmessage.RCodeRefused, false}} {
		answer := func(q []byte) [][]byte {
			return [][]byte{srvAnswer(t, q, 0, func(m *dnsmessage.Message) { m.RCode = c.code })}
		}
		all, err := fakeDNS(t, answer, answer).service(t.Context(), "todo")
		if (err == nil) != c.fine || len(all) != 0 {
			t.Errorf("%s: got %v, %v", c.code, all, err)
		}
	}
}

func TestResolver_LeavesNamesWithoutAddressToTheDialler(t *testing.T) {
	r := fakeDNS(t, func(q []byte) [][]byte {
		return [][]byte{srvAnswer(t, q, 1, func(m *dnsmessage.Message) {
			m.Answers[0].Body.(*dnsmessage.SRVResource).Target = dnsmessage.MustNewName("DB.example.com.")
		})}
	}, nil)
	if all, err := r.service(t.Context(), "todo"); err != nil || addrs(all) != "db.example.com:80" {
		t.Errorf("got %v, %v", all, err)
	}
}

func TestResolver_EndsWithItsContextThoughNobodyAnswers(t *testing.T) {
	silent := func([]byte) [][]byte { return nil }
	r := fakeDNS(t, silent, silent)
	for _, limit := range []time.Duration{50 * time.Millisecond, dnsTimeout * 10} {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		began := time.Now()
		_, err := r.service(ctx, "todo")
		cancel()
		if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took > min(limit, 2*dnsTimeout)+500*time.Millisecond {
			t.Errorf("limit %s: took %s: %v", limit, took, err)
		}
	}
}

func FuzzParseSRV(f *testing.F) {
	const name = "todo.service.consul."
	query, err := dnsQuery(7, name)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(srvAnswer(f, query, 3, nil))
	f.Add(srvAnswer(f, query, 40, func(m *dnsmessage.Message) { m.Truncated = true })[:900])
	f.Add(srvAnswer(f, query, 0, func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeNameError }))
	f.Fuzz(func(t *testing.T, message []byte) {
		all, err := parseSRV(message, 7, name)
		if err != nil && !errors.Is(err, errTruncated) && len(all) > 0 {
			t.Error("an answer and an error")
		}
		for _, i := range all {
			if host, port, err := net.SplitHostPort(i.Addr); err != nil || host == "" || strings.ContainsAny(host, "/@ ") || port == "0" {
				t.Errorf("%q cannot be dialled", i.Addr)
			}
		}
	})
}
