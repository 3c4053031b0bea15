// Package discovery finds services through Consul, and lets a service be found. What it guarantees:
//
//   - What was found stays found. A Watch follows the catalogue through the local agent's API, asks the agent's DNS when the API
//     fails, and goes on with the last good answer while neither answers. Status says which of the three it is, and how old.
//   - Looking up costs nothing: Pick, Keep and Instances answer from memory, without a lock. Only the first answer is waited for.
//   - Only passing instances are given out; ones in warning if nothing passes; never ones in maintenance. A catalogue that
//     has lost all instances of a service at once – more often a Consul that forgot than a service that ended – is not
//     believed before Config.HoldEmpty has passed.
//   - A VaultFinder takes no other word than a Vault's own for its being active.
//   - A Transport sends a request a second time only where that cannot do anything twice: nothing was sent the first time, or the
//     request's method or Idempotency-Key says that it may be repeated.
//   - A Registration comes back by itself after the agent forgot it, was replaced, or was not there, and never changes the health
//     of a service that is registered already.
//   - Every call ends within a second of its context. No goroutine outlives the Run or the call that started it. No answer,
//     however garbled, panics, and none is read beyond a fixed size.
//
// All it needs is the address of the local agent. The environment is not read.
package discovery

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Defaults of Config.
const (
	DefaultAgent     = "127.0.0.1:8500"
	DefaultDomain    = "consul"
	DefaultWait      = time.Minute
	DefaultPoll      = 500 * time.Millisecond
	DefaultHoldEmpty = time.Minute

	dnsPort = "8600" // on which a Consul agent answers DNS
	maxWait = 10 * time.Minute
)

var (
	// ErrNoInstances says that the catalogue has answered, and that nothing may be used of what it lists. Nothing was sent; the
	// same call may succeed later.
	ErrNoInstances = errors.New("no healthy instance")
	// ErrNoAnswer says that neither the agent's API nor its DNS has answered since Run began. Nothing was sent; the same call
	// may succeed later.
	ErrNoAnswer = errors.New("no answer from consul yet")
	// ErrNoActive says that no Vault calls itself active. Its text says for each candidate what it is instead.
	ErrNoActive = errors.New("no active vault")
)

// Mode says where a Watch looks.
type Mode string

// The modes. The zero Mode is Auto.
const (
	Auto Mode = "auto" // the API, and DNS while the API fails
	API  Mode = "api"  // the API only
	DNS  Mode = "dns"  // DNS only, for places where the API's port is closed; then warning and passing cannot be told apart
)

// Config says how to reach the local Consul agent. The zero Config is that of an agent with default ports on this machine.
type Config struct {
	Agent  string        // API: host:port, or with http:// or https:// before it. Default DefaultAgent.
	DNS    string        // DNS: host:port, TCP and UDP. Default the agent's host, port 8600.
	Domain string        // of Consul's DNS. Default DefaultDomain.
	Mode   Mode          // default Auto
	Token  func() string // gives the ACL token of each API call, so that it may be renewed. Nil: none. DNS takes no token.
	TLS    *tls.Config   // for an agent at https://

	Wait      time.Duration // how long a blocking query may block. Default DefaultWait, at most 10 m.
	Poll      time.Duration // how often DNS is asked while it is the source. Default DefaultPoll.
	HoldEmpty time.Duration // how long the last good answer outlives answers without a healthy instance. Default DefaultHoldEmpty; negative: not at all.

	Logger *slog.Logger // default: discards
}

// Health is how Consul sees an instance: the worst of its checks and of its node's.
type Health string

// The healths an instance may have. DNS tells none, so there it is Unknown, which counts as passing.
const (
	Unknown     Health = ""
	Passing     Health = "passing"
	Warning     Health = "warning"
	Critical    Health = "critical"
	Maintenance Health = "maintenance"
)

// Instance is one place where a service is offered. Its Tags and Meta are shared: read them only.
type Instance struct {
	Addr   string // host:port, ready to be dialled
	ID     string // of the service instance; empty if found through DNS, as are Tags and Meta
	Node   string
	Health Health
	Tags   []string
	Meta   map[string]string

	// index grows with every change of this entry in the catalogue; 0 through DNS.
	index uint64
}

func (i Instance) equal(o Instance) bool {
	return i.Addr == o.Addr && i.ID == o.ID && i.Node == o.Node && i.Health == o.Health && i.index == o.index &&
		slices.Equal(i.Tags, o.Tags) && equalMeta(i.Meta, o.Meta)
}

func equalMeta(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

// sortInstances orders by address, so that two answers with the same content are equal.
func sortInstances(all []Instance) {
	slices.SortFunc(all, func(a, b Instance) int {
		return cmp.Or(strings.Compare(a.Addr, b.Addr), strings.Compare(a.ID, b.ID), strings.Compare(a.Node, b.Node))
	})
}

// usable chooses from a sorted catalogue what is given out: what passes, else what warns; each address once.
func usable(all []Instance) []Instance {
	var passing, warning []Instance
	for _, i := range all {
		switch i.Health {
		case Passing, Unknown:
			passing = append(passing, i)
		case Warning:
			warning = append(warning, i)
		}
	}
	if len(passing) == 0 {
		passing = warning
	}
	return slices.CompactFunc(passing, func(a, b Instance) bool { return a.Addr == b.Addr })
}

// serviceName is what both the API and DNS can look up: one DNS label.
var serviceName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?$`)

// hostName is what may stand where an address is expected. Whatever else the catalogue says is not dialled.
var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?$`)

func checkService(name string) error {
	if !serviceName.MatchString(name) {
		return fmt.Errorf("%q is not the name of a service: letters, digits, - and _, at most 63", name)
	}
	return nil
}

// joinAddr makes host:port of what a catalogue says, or "" if it is neither an address nor a name.
func joinAddr(host string, port int) string {
	if port < 1 || port > 65535 {
		return ""
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return netip.AddrPortFrom(ip, uint16(port)).String()
	}
	if !hostName.MatchString(host) {
		return ""
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// withDefaults fills in and validates.
func (c Config) withDefaults() (Config, error) {
	c.Agent = cmp.Or(c.Agent, DefaultAgent)
	if !strings.Contains(c.Agent, "://") {
		c.Agent = "http://" + c.Agent
	}
	agent, err := url.Parse(c.Agent)
	if err != nil || (agent.Scheme != "http" && agent.Scheme != "https") || agent.Port() == "" || agent.Hostname() == "" ||
		strings.Trim(agent.Path, "/") != "" || agent.RawQuery != "" || agent.User != nil {
		return c, fmt.Errorf("consul agent %q: want host:port, http://host:port or https://host:port", c.Agent)
	}
	c.Agent = agent.Scheme + "://" + agent.Host
	c.DNS = cmp.Or(c.DNS, net.JoinHostPort(agent.Hostname(), dnsPort))
	if host, port, err := net.SplitHostPort(c.DNS); err != nil || host == "" || port == "" {
		return c, fmt.Errorf("consul dns %q: want host:port", c.DNS)
	}
	c.Domain = strings.Trim(cmp.Or(c.Domain, DefaultDomain), ".")
	if !hostName.MatchString(c.Domain) {
		return c, fmt.Errorf("consul domain %q is not a domain", c.Domain)
	}
	c.Mode = cmp.Or(c.Mode, Auto)
	if c.Mode != Auto && c.Mode != API && c.Mode != DNS {
		return c, fmt.Errorf("discovery mode %q: want %s, %s or %s", c.Mode, Auto, API, DNS)
	}
	c.Wait = cmp.Or(c.Wait, DefaultWait)
	if c.Wait < time.Second || c.Wait > maxWait {
		return c, fmt.Errorf("wait of %s: want 1s to %s", c.Wait, maxWait)
	}
	c.Poll = cmp.Or(c.Poll, DefaultPoll)
	if c.Poll < 10*time.Millisecond {
		return c, fmt.Errorf("poll every %s: want 10ms or more", c.Poll)
	}
	c.HoldEmpty = max(cmp.Or(c.HoldEmpty, DefaultHoldEmpty), 0)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// jitter spreads d over its upper half, so that many processes that began together do not stay together.
func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return d/2 + rand.N(d/2+1)
}

// backoff grows from first to most, doubling.
type backoff struct {
	first, most, now time.Duration
}

func (b *backoff) next() time.Duration {
	b.now = min(max(b.now*2, b.first), b.most)
	return jitter(b.now)
}

func (b *backoff) reset() { b.now = 0 }
