package lab

import (
	"fmt"
	"net/netip"
	"strings"

	"example.com/todo/vagrant"
	"go.yaml.in/yaml/v3"
)

// The roles a machine can have.
const (
	RoleConsul = "consul"
	RoleVault  = "vault"
	RoleMySQL  = "mysql"
	RoleTodo   = "todo"
)

// Machine is one machine of the demo.
type Machine struct {
	Name string `yaml:"name" json:"name"`
	Role string `yaml:"role" json:"role"`
	Addr string `yaml:"-" json:"address"`
	Host int    `yaml:"host" json:"-"`
}

// Counts says how many machines of each role there are.
type Counts struct {
	Consul int `json:"consul"`
	Vault  int `json:"vault"`
	MySQL  int `json:"mysql"`
	Todo   int `json:"todo"`
}

// Demo is the whole demo: what zero Counts mean.
func Demo() Counts { return Counts{Consul: 3, Vault: 2, MySQL: 1, Todo: 2} }

// roles pairs each role with its count, in the order in which they depend on each other.
func (c Counts) roles() []struct {
	Role  string
	Count int
} {
	return []struct {
		Role  string
		Count int
	}{{RoleConsul, c.Consul}, {RoleVault, c.Vault}, {RoleMySQL, c.MySQL}, {RoleTodo, c.Todo}}
}

// Inventory picks the machines from the one list that this lab and the virtual machines share. The network is the first
// three parts of every address.
func Inventory(network string, c Counts) ([]Machine, error) {
	var list struct {
		Machines []Machine
		More     []Machine
	}
	if err := yaml.Unmarshal([]byte(vagrant.Machines()), &list); err != nil {
		return nil, fmt.Errorf("read machines.yaml: %w", err)
	}
	if c.Consul < 1 {
		return nil, Refuse("a lab needs a Consul server: everything else finds its way through it")
	}
	if c.Consul%2 == 0 {
		return nil, Refuse("%d Consul servers survive no more than %d would: use an odd number", c.Consul, c.Consul-1)
	}
	if c.Todo > 0 && (c.Vault == 0 || c.MySQL == 0) {
		return nil, Refuse("a todo instance needs a vault and the database")
	}
	var all []Machine
	for _, r := range c.roles() {
		found := 0
		for _, m := range list.Machines {
			if m.Role == r.Role && found < r.Count {
				found++
				all = append(all, m)
			}
		}
		for _, m := range list.More {
			for host := m.Host; m.Role == r.Role && found < r.Count && host < 255; host++ {
				all = append(all, Machine{Name: fmt.Sprintf("%s%d", r.Role, found), Role: r.Role, Host: host})
				found++
			}
		}
		if found < r.Count {
			return nil, Refuse("there are at most %d machines with the role %s, not %d", found, r.Role, r.Count)
		}
	}
	for i := range all {
		all[i].Addr = fmt.Sprintf("%s.%d", network, all[i].Host)
	}
	return all, nil
}

// checkNet accepts the first three parts of a loopback address.
func checkNet(network string) error {
	a, err := netip.ParseAddr(network + ".1")
	if err != nil || !a.Is4() || !a.IsLoopback() || strings.Count(network, ".") != 2 {
		return Refuse("%q is not the beginning of a loopback network: write something like 127.20.21", network)
	}
	return nil
}

func names(ms []Machine) string {
	var n []string
	for _, m := range ms {
		n = append(n, m.Name)
	}
	return strings.Join(n, ", ")
}
