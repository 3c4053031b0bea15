// Package provision renders the configuration files of every machine of the demo. The templates lie beside it and are
// the only source of those files: the one-machine lab and the virtual machines differ in the values they fill in, never
// in the text.
//
// A template refuses a value that it was not given, so a file is rendered whole or not at all.
package provision

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"fmt"
	"path"
	"text/template"
)

//go:embed templates
var templates embed.FS

// Consul is what consul.hcl needs: the agent of one machine.
type Consul struct {
	Node    string   // the machine's name, unique in the cluster
	Address string   // the machine's own address: the agent binds to it and serves its clients on it
	DataDir string   // where the agent keeps its state
	Servers int      // how many Consul servers the cluster has; they elect a leader when all of them have met
	Server  bool     // whether this machine is one of them
	Join    []string // addresses of the servers
	Scripts bool     // whether this agent may run check scripts; only the database's machine needs it
	Slow    bool     // whether the machines' processors are emulated
}

// NodeID is the machine's identity in Consul, made from its name. An agent that lost its data would otherwise come back under
// its name with another identity, and Consul refuses that while it still holds the old one for alive.
func (c Consul) NodeID() string {
	h := sha256.Sum256([]byte("consul node " + c.Node))
	h[6], h[8] = h[6]&0x0f|0x80, h[8]&0x3f|0x80 // a UUID of version 8: made in a way of one's own (RFC 9562)
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[0:4], h[4:6], h[6:8], h[8:10], h[10:16])
}

// MySQLService is what mysql-service.hcl needs: how the database's machine announces its server to Consul.
type MySQLService struct {
	Address string
	Admin   string // the program that asks the server, mysqladmin or mariadb-admin
	Socket  string // where it asks
}

// Vault is what vault.hcl needs.
type Vault struct {
	Address      string // the machine's own address
	MemoryLocked bool   // whether Vault may keep its memory out of the swap; needs CAP_IPC_LOCK
}

// MySQL is what my.cnf needs; the same file serves MariaDB and MySQL.
type MySQL struct {
	Address string
	DataDir string
	TmpDir  string // its own: servers in containers that share /tmp may have the same process id, and temporary tables are named by it
	Socket  string // relative names are relative to DataDir
}

// ClientSocket is the socket as clients need it, for which the data directory is nothing special.
func (m MySQL) ClientSocket() string {
	if path.IsAbs(m.Socket) {
		return m.Socket
	}
	return path.Join(m.DataDir, m.Socket)
}

// Resolved is what resolved.conf needs: the agent of the machine, which answers for the domain "consul".
type Resolved struct{ Address string }

// Profile is what profile.sh needs: the exports with which the stock clients work on the machine.
type Profile struct {
	Address string
	Vault   bool // whether the machine has a Vault of its own
}

// Todo is what todo.env needs: the whole configuration of one instance.
type Todo struct {
	Instance     string
	Address      string
	RoleID       string
	SecretIDFile string
}

// Render fills the template of one configuration file, named as the file is: "consul.hcl", "mysql-service.hcl",
// "vault.hcl", "my.cnf", "todo.env", "resolved.conf" or "profile.sh". The data is the type of this package that belongs to it.
func Render(file string, data any) ([]byte, error) {
	t, err := template.New(file+".tmpl").Option("missingkey=error").ParseFS(templates, "templates/"+file+".tmpl")
	if err != nil {
		return nil, fmt.Errorf("template of %s: %w", file, err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, data); err != nil {
		return nil, fmt.Errorf("render %s: %w", file, err)
	}
	return b.Bytes(), nil
}
