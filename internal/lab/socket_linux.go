package lab

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"os/user"
	"time"

	"github.com/go-sql-driver/mysql"
	"golang.org/x/sys/unix"
)

// openMySQL opens the database through its socket, as the system's user that we are: that user is its root. It connects
// when it is first used.
func (l *Lab) openMySQL(m Machine) (*sql.DB, error) {
	data, err := l.service(m).dataDir()
	if err != nil {
		return nil, err
	}
	who, err := user.Current()
	if err != nil {
		return nil, fmt.Errorf("find out who we are: %w", err)
	}
	c := mysql.NewConfig()
	c.User, c.Net, c.Addr = who.Username, "unix", mysqlSocket
	c.Timeout, c.ParseTime = 5*time.Second, true
	c.DialFunc = func(ctx context.Context, _, socket string) (net.Conn, error) { return dialIn(ctx, data, socket) }
	connector, err := mysql.NewConnector(c)
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	return sql.OpenDB(connector), nil
}

// dialIn reaches a socket by its directory's handle, because the kernel takes no path of more than 107 characters.
func dialIn(ctx context.Context, dir, socket string) (net.Conn, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	defer unix.Close(fd)
	var d net.Dialer
	return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", fd, socket))
}
