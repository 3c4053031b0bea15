// Package lab runs the machines of the demo as processes of one computer: three Consul servers, two Vaults, a database
// and any number of todo instances, each machine on a loopback address of its own with the standard ports, each with its
// own Consul agent.
//
// What it guarantees:
//
//   - All state lies in one directory, readable by its owner only. (One exception, noted there by a link: a database
//     server that root starts gives up root, and keeps its data in /var/lib/todo-lab where it can reach it.)
//   - There are no pid files. Every process carries in its environment which lab, machine and unit it is, and whoever
//     wants to know what runs looks at the processes. So nothing can be stale, and being killed at any moment, the lab
//     itself included, leaves nothing that the next command does not see.
//   - Files appear whole or not at all, and so do data directories.
//   - Up starts what is not running and waits by asking each thing itself. It leaves a working lab, or none of what it
//     started. Down leaves no process.
//   - Two labs do not meet unless they share addresses; then the second says who holds them.
//
// It needs Linux: the whole of 127.0.0.0/8 as loopback, and /proc.
package lab

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"

	"example.com/todo/internal/operator"
	vault "github.com/hashicorp/vault/api"
)

// Config says which lab. The zero value of each field means what the lab's own record says, and for a lab that does not
// exist yet, the default.
type Config struct {
	// Dir holds the lab's whole state; .lab by default.
	Dir string
	// Net is the first three parts of every machine's address, within 127.0.0.0/8; 127.20.20 by default.
	Net string
	// Counts says how many machines of each role there are. All zero means the whole demo; otherwise it is taken
	// literally, so that a test starts only what it needs.
	Counts Counts
	// Times are the lifetimes of what Vault hands out.
	Times operator.Times
	// Binaries are the programs to run; see FindBinaries.
	Binaries Binaries
	// TodoEnv is added to the environment of every todo instance.
	TodoEnv map[string]string
}

// Lab is one lab. Its methods may be called concurrently; those that change the lab as a whole (Up, Down, Start and the
// operator's steps) take their turns, and against another process that changes the same lab they fail with a *BusyError.
type Lab struct {
	dir      string
	state    state
	recorded *state // what lab.json says; nil if there is none
	machines []Machine
	binaries Binaries
	todoEnv  map[string]string
	turn     chan struct{}
}

// Open reads the record of the lab in a directory, if there is one, and merges the configuration into it. It changes
// nothing. Errors: *FormatError for a lab of another version; *ConfigError when the configuration asks for what no lab can be,
// or what this one cannot become.
func Open(c Config) (*Lab, error) {
	if c.Dir == "" {
		c.Dir = DefaultDir
	}
	dir, err := absolute(c.Dir)
	if err != nil {
		return nil, err
	}
	recorded, err := readState(dir)
	if err != nil {
		return nil, err
	}
	wanted, err := merge(recorded, state{Format: format, Net: c.Net, Counts: c.Counts, Times: c.Times})
	if err != nil {
		return nil, err
	}
	machines, err := Inventory(wanted.Net, wanted.Counts)
	if err != nil {
		return nil, err
	}
	return &Lab{
		dir: dir, state: wanted, recorded: recorded, machines: machines,
		binaries: c.Binaries, todoEnv: c.TodoEnv, turn: make(chan struct{}, 1),
	}, nil
}

// absolute resolves links, because the directory's name is how processes are told apart.
func absolute(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("lab directory %s: %w", dir, err)
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		return real, nil
	}
	if parent, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		return filepath.Join(parent, filepath.Base(abs)), nil
	}
	return abs, nil
}

// Supported reports what is missing for a lab on this system, before anything is done.
func Supported() error {
	if runtime.GOOS == "linux" {
		return nil
	}
	return fmt.Errorf("the one-machine lab needs Linux, and this is %s: it gives every machine an address of its own in 127.0.0.0/8 "+
		"(macOS has only 127.0.0.1 until somebody adds an alias for each) and finds its processes in /proc. "+
		"Run it in a Linux virtual machine or container, or use `vagrant up`", runtime.GOOS)
}

// Dir is the absolute path of the lab's directory.
func (l *Lab) Dir() string { return l.dir }

// Net is the first three parts of the machines' addresses.
func (l *Lab) Net() string { return l.state.Net }

// Counts says how many machines of each role the lab has.
func (l *Lab) Counts() Counts { return l.state.Counts }

// Times are the lifetimes of what Vault hands out.
func (l *Lab) Times() operator.Times { return l.state.Times }

// Exists reports whether the lab was ever started, and not wiped since.
func (l *Lab) Exists() bool { return l.recorded != nil }

// Machines lists the machines in the order of the board.
func (l *Lab) Machines() []Machine { return append([]Machine(nil), l.machines...) }

// Machine finds a machine by name.
func (l *Lab) Machine(name string) (Machine, error) {
	return find(l.machines, name)
}

func find(machines []Machine, name string) (Machine, error) {
	for _, m := range machines {
		if m.Name == name {
			return m, nil
		}
	}
	return Machine{}, fmt.Errorf("no machine is called %q; there are %s", name, names(machines))
}

// Addr is the address of a machine, or "" if there is none of that name.
func (l *Lab) Addr(name string) string {
	m, _ := l.Machine(name)
	return m.Addr
}

// Consul is the host:port of a machine's own Consul agent.
func (l *Lab) Consul(name string) string { return l.Addr(name) + ":8500" }

// role lists the machines of one role.
func (l *Lab) role(role string) []Machine {
	var ms []Machine
	for _, m := range l.machines {
		if m.Role == role {
			ms = append(ms, m)
		}
	}
	return ms
}

// Operator is the operator of this lab's Vaults and database.
func (l *Lab) Operator() (*operator.Operator, error) {
	c := operator.Config{Dir: l.path("operator"), Times: l.state.Times, SQL: l.sql, ResetStorage: l.resetVaultStorage}
	for _, m := range l.role(RoleVault) {
		c.Vaults = append(c.Vaults, VaultURL(m))
	}
	for _, m := range l.role(RoleMySQL) {
		c.MySQLAddress = m.Addr + ":3306"
	}
	return operator.New(c)
}

// VaultClient is a client of the active Vault with the root token.
func (l *Lab) VaultClient(ctx context.Context) (*vault.Client, error) {
	o, err := l.Operator()
	if err != nil {
		return nil, err
	}
	return o.Client(ctx)
}

// MySQL opens the database as its root, through the socket. The caller closes it.
func (l *Lab) MySQL() (*sql.DB, error) {
	ms := l.role(RoleMySQL)
	if len(ms) == 0 {
		return nil, errors.New("this lab has no database")
	}
	return l.openMySQL(ms[0])
}

// path is a file or directory of the lab.
func (l *Lab) path(parts ...string) string {
	return filepath.Join(append([]string{l.dir}, parts...)...)
}

// machineDir is where everything of one machine lies.
func (l *Lab) machineDir(m Machine) string { return l.path("machines", m.Name) }

// LogPath is the log of a unit, such as vault0 or vault0/agent.
func (l *Lab) LogPath(ref string) (string, error) {
	us, err := l.resolve(ref)
	if err != nil {
		return "", err
	}
	return us[0].log(), nil
}

// Check says what is wrong with a reference to a machine's units, if anything is.
func (l *Lab) Check(ref string) error {
	_, err := l.resolve(ref)
	return err
}

// KeysPath is the file with Vault's unseal keys and root token.
func (l *Lab) KeysPath() string { return operator.KeysPath(l.path("operator")) }

// MySQLHome is the directory whose my.cnf tells the stock clients where the database is.
func (l *Lab) MySQLHome() string {
	for _, m := range l.role(RoleMySQL) {
		return l.machineDir(m)
	}
	return ""
}

// MySQLSocket is where the database's root connects: the system's user who owns the lab, with no password.
func (l *Lab) MySQLSocket() (string, error) {
	ms := l.role(RoleMySQL)
	if len(ms) == 0 {
		return "", errors.New("this lab has no database")
	}
	data, err := l.service(ms[0]).dataDir()
	return filepath.Join(data, mysqlSocket), err
}
