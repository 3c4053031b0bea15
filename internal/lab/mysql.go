package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"example.com/todo/provision"
)

const (
	mysqlConfig  = "my.cnf"
	mysqlSocket  = "mysql.sock"
	unitInstall  = "install" // the making of the first data directory
	unitMigrate  = "migrate" // a change of the schema
	databaseHome = "/var/lib/todo-lab"
	homeNote     = "lab"   // the file there that says which lab it belongs to
	databaseUser = "mysql" // what the server runs as when root starts it
)

// database is the database server that the system has.
type database struct {
	server  string
	admin   string // the program that asks it how it is
	install string // the program that makes a data directory; MySQL's server does it itself
	mariadb bool
}

// findDatabase looks for MariaDB first, then MySQL.
func findDatabase() (database, error) {
	d := database{server: lookup("mariadbd", "mysqld"), admin: lookup("mariadb-admin", "mysqladmin")}
	if d.server == "" || d.admin == "" {
		return d, errors.New("no database server is installed: `apt-get install mariadb-server` (Debian) or `apt-get install mysql-server` (Ubuntu), or `make deps`")
	}
	// Either name may be a link to the other's server, so the server itself is asked.
	version, err := exec.Command(d.server, "--no-defaults", "--version").Output()
	if err != nil {
		return d, fmt.Errorf("ask %s which server it is: %w", d.server, err)
	}
	d.mariadb = strings.Contains(string(version), "MariaDB")
	if d.install = lookup("mariadb-install-db", "mysql_install_db"); d.mariadb && d.install == "" {
		return d, errors.New("MariaDB is installed without mariadb-install-db: `apt-get install mariadb-server`")
	}
	return d, nil
}

// lookup finds the first of some programs in the directories that the lab's processes search.
func lookup(names ...string) string {
	for _, n := range names {
		for _, dir := range filepath.SplitList(searchPath) {
			if path, err := exec.LookPath(filepath.Join(dir, n)); err == nil {
				return path
			}
		}
	}
	return ""
}

// mysqlServer is the one database. Its root is the system's user who owns the lab, known by the socket: nobody has a
// password for it.
func (l *Lab) mysqlServer(m Machine) *unit {
	u := &unit{lab: l, machine: m, name: RoleMySQL, stopWithin: 30 * time.Second}
	u.ports = tcp(m, 3306)
	u.prepare = func(ctx context.Context) error { return l.prepareMySQL(ctx, u) }
	u.command = func() (command, error) {
		d, err := findDatabase()
		if err != nil {
			return command{}, err
		}
		return command{path: d.server, args: d.serverArgs(u.file(mysqlConfig))}, nil
	}
	u.answers = func(ctx context.Context) error {
		db, err := l.openMySQL(m)
		if err != nil {
			return err
		}
		defer db.Close()
		return db.PingContext(ctx)
	}
	u.ready = func(ctx context.Context) error {
		if err := u.answers(ctx); err != nil {
			return err
		}
		return passing(m)(ctx)
	}
	return u
}

func (d database) serverArgs(config string) []string {
	args := []string{"--defaults-file=" + config}
	if os.Geteuid() == 0 {
		args = append(args, "--user="+databaseUser)
	}
	if !d.mariadb {
		args = append(args, "--plugin-load-add=auth_socket.so")
	}
	return args
}

// dataDir is where the tables lie. When root starts the server, it runs as a user who cannot reach into the lab's
// directory, nor into root's home: then this is a link to a directory of its own.
func (u *unit) dataDir() (string, error) {
	dir := u.file("data")
	if target, err := os.Readlink(dir); err == nil {
		return target, nil
	}
	if os.Geteuid() != 0 {
		return dir, nil
	}
	sum := sha256.Sum256([]byte(u.lab.dir))
	return filepath.Join(databaseHome, hex.EncodeToString(sum[:8]), "data"), nil
}

func (l *Lab) prepareMySQL(ctx context.Context, u *unit) error {
	data, err := u.dataDir()
	if err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		if err := makeDatabaseHome(u, data); err != nil {
			return err
		}
	}
	temporary, err := makeTemporary(data)
	if err != nil {
		return err
	}
	c := provision.MySQL{Address: u.machine.Addr, DataDir: data, TmpDir: temporary, Socket: mysqlSocket}
	if err := render(u.file(mysqlConfig), mysqlConfig, c); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(data, "mysql")); err == nil {
		return nil
	}
	return l.installMySQL(ctx, u, data)
}

// makeDatabaseHome makes the directory outside the lab. The link comes first, so that a directory without a link to it is
// what a deleted lab left behind, and is emptied.
func makeDatabaseHome(u *unit, data string) error {
	home := filepath.Dir(data)
	if _, err := os.Lstat(u.file("data")); errors.Is(err, fs.ErrNotExist) {
		if err := os.RemoveAll(home); err != nil {
			return err
		}
		if err := os.Symlink(data, u.file("data")); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(home, 0o755); err != nil {
		return err
	}
	uid, gid, err := databaseOwner()
	if err != nil {
		return err
	}
	note := os.WriteFile(filepath.Join(home, homeNote), []byte(u.lab.dir+"\n"), 0o600)
	return errors.Join(note, os.Chown(home, uid, gid), os.Chmod(home, 0o700))
}

// orphans are the database directories of labs that are gone, because somebody deleted their directories without wiping
// them. Nobody but their owner knows whether a directory is gone or only not mounted, so they are named and not deleted.
func orphans() []string {
	var lost []string
	notes, _ := filepath.Glob(filepath.Join(databaseHome, "*", homeNote))
	for _, n := range notes {
		lab, err := os.ReadFile(n)
		if err != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(strings.TrimSpace(string(lab)), stateFile)); errors.Is(err, fs.ErrNotExist) {
			lost = append(lost, filepath.Dir(n))
		}
	}
	return lost
}

// makeTemporary makes the server's directory for temporary tables, beside its data.
func makeTemporary(data string) (string, error) {
	dir := filepath.Join(filepath.Dir(data), "tmp")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if os.Geteuid() != 0 {
		return dir, nil
	}
	uid, gid, err := databaseOwner()
	if err != nil {
		return "", err
	}
	return dir, os.Chown(dir, uid, gid)
}

func databaseOwner() (uid, gid int, err error) {
	who, err := user.Lookup(databaseUser)
	if err != nil {
		return 0, 0, fmt.Errorf("the database server does not run as root, and the user it runs as is missing: %w", err)
	}
	_, err = fmt.Sscan(who.Uid+" "+who.Gid, &uid, &gid)
	return uid, gid, err
}

// installMySQL makes the first data directory. It appears under its name when it is complete.
func (l *Lab) installMySQL(ctx context.Context, u *unit, data string) error {
	d, err := findDatabase()
	if err != nil {
		return err
	}
	owner, err := user.Current()
	if err != nil {
		return fmt.Errorf("find out who owns the lab: %w", err)
	}
	fresh := data + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	install := &unit{lab: l, machine: u.machine, name: unitInstall, stopWithin: 5 * time.Second}
	c, err := d.installCommand(u, fresh, owner.Username)
	if err != nil {
		return err
	}
	if err := install.run(ctx, c); err != nil {
		return fmt.Errorf("make the database's first data directory: %w", err)
	}
	return os.Rename(fresh, data)
}

func (d database) installCommand(u *unit, fresh, owner string) (command, error) {
	var asUser []string
	if os.Geteuid() == 0 {
		asUser = []string{"--user=" + databaseUser}
	}
	defaults := "--defaults-file=" + u.file(mysqlConfig)
	if d.mariadb {
		// --force: do without a host name that can be looked up. Accounts are matched by address here, and many a container
		// has a name that nobody knows.
		return command{path: d.install, args: append([]string{
			defaults, "--datadir=" + fresh, "--skip-test-db", "--force",
			"--auth-root-authentication-method=socket", "--auth-root-socket-user=" + owner,
		}, asUser...)}, nil
	}
	who := quote(owner)
	statements := "CREATE USER IF NOT EXISTS " + who + "@'localhost';\n" +
		"ALTER USER " + who + "@'localhost' IDENTIFIED WITH auth_socket;\n" +
		"GRANT ALL PRIVILEGES ON *.* TO " + who + "@'localhost' WITH GRANT OPTION;\n"
	if owner != "root" {
		statements += "ALTER USER 'root'@'localhost' ACCOUNT LOCK;\n"
	}
	script := filepath.Join(filepath.Dir(fresh), "accounts.sql")
	if err := os.WriteFile(script, []byte(statements), 0o644); err != nil {
		return command{}, err
	}
	args := append([]string{defaults, "--datadir=" + fresh, "--initialize-insecure", "--plugin-load-add=auth_socket.so", "--init-file=" + script}, asUser...)
	return command{path: d.server, args: args}, nil
}

// quote makes a literal of SQL out of a name.
func quote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `''`).Replace(s) + "'"
}

// writeMySQLService describes the database to its machine's agent. The socket is named relative to the agent's working
// directory, because a socket's whole path may have no more than 107 characters.
func (l *Lab) writeMySQLService(u *unit) error {
	d, err := findDatabase()
	if err != nil {
		return err
	}
	return render(u.file("mysql-service.hcl"), "mysql-service.hcl", provision.MySQLService{
		Address: u.machine.Addr, Admin: d.admin, Socket: filepath.Join("data", mysqlSocket),
	})
}

// sql runs statements as the database's root.
func (l *Lab) sql(ctx context.Context, statements ...string) error {
	db, err := l.MySQL()
	if err != nil {
		return err
	}
	defer db.Close()
	for _, s := range statements {
		if _, err := db.ExecContext(ctx, s); err != nil {
			return fmt.Errorf("as the database's root: %w", err)
		}
	}
	return nil
}

// removeDatabaseHome deletes the data directory outside the lab, if there is one.
func (l *Lab) removeDatabaseHome() error {
	for _, m := range l.role(RoleMySQL) {
		data, err := l.service(m).dataDir()
		if err != nil {
			return err
		}
		home := filepath.Dir(data)
		if filepath.Dir(home) == databaseHome {
			if err := os.RemoveAll(home); err != nil {
				return fmt.Errorf("delete the database's data: %w", err)
			}
			_ = os.Remove(databaseHome) // only if no other lab has its data there
		}
	}
	return nil
}
