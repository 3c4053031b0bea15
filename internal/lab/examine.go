package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"slices"
	"strings"
	"time"

	"example.com/todo/internal/sockets"
)

// Finding is one thing that a lab needs of this computer.
type Finding struct {
	What string
	Have string // what there is
	Err  error  // or what is missing, and how to get it
}

func (f Finding) String() string {
	if f.Err != nil {
		return f.Err.Error()
	}
	return f.Have
}

// Examine looks at everything the lab needs, and changes nothing.
func (l *Lab) Examine(ctx context.Context) []Finding {
	if err := Supported(); err != nil {
		return []Finding{{What: "system", Err: err}}
	}
	return []Finding{
		{What: "system", Have: runtime.GOOS + "/" + runtime.GOARCH},
		l.examineAddresses(ctx),
		l.examinePorts(),
		examineProgram(ctx, "consul", l.binaries.Consul, l.binaries.check(l.binaries.Consul, "consul")),
		examineProgram(ctx, "vault", l.binaries.Vault, l.binaries.check(l.binaries.Vault, "vault")),
		examineProgram(ctx, "todo", l.binaries.Todo, l.binaries.check(l.binaries.Todo, "todo")),
		examineDatabase(ctx),
	}
}

// examineAddresses tries whether any loopback address can be listened on, as on Linux it can unless somebody forbids it.
func (l *Lab) examineAddresses(ctx context.Context) Finding {
	f := Finding{What: "addresses", Have: l.state.Net + ".0/24 is loopback"}
	var config net.ListenConfig
	for _, m := range l.machines {
		s, err := config.Listen(ctx, "tcp", m.Addr+":0")
		if err != nil {
			f.Err = fmt.Errorf("%s cannot be used: %w; choose others with --net", m.Addr, err)
			return f
		}
		_ = s.Close()
	}
	return f
}

// examinePorts looks for strangers on the lab's ports; its own processes may be there.
func (l *Lab) examinePorts() Finding {
	f := Finding{What: "ports", Have: "free, or held by this lab"}
	ls, err := sockets.Listeners()
	if err != nil {
		f.Err = err
		return f
	}
	var held []*PortError
	for _, m := range l.machines {
		for _, u := range l.units(m) {
			for _, p := range u.ports {
				if e := portHolder(ls, p); e != nil && e.Lab != l.dir {
					e.Unit = u.id()
					held = append(held, e)
				}
			}
		}
	}
	f.Err = byHolder(held)
	return f
}

// byHolder says once of each holder that it is in the way, and of how much: another lab would otherwise be named for
// every port there is.
func byHolder(held []*PortError) error {
	var firsts []*PortError
	for _, e := range held {
		i := slices.IndexFunc(firsts, func(f *PortError) bool {
			return f.Lab == e.Lab && (f.Lab != "" || f.PID == e.PID && f.UID == e.UID)
		})
		if i < 0 {
			firsts = append(firsts, e)
		} else {
			firsts[i].More++
		}
	}
	var errs []error
	for _, e := range firsts {
		errs = append(errs, e)
	}
	return errors.Join(errs...)
}

func examineProgram(ctx context.Context, name, path string, err error) Finding {
	f := Finding{What: name, Err: err}
	if err != nil {
		return f
	}
	version, err := firstLine(ctx, path, "version")
	if err != nil {
		f.Err = fmt.Errorf("%s does not run: %w", path, err)
	}
	f.Have = fmt.Sprintf("%s (%s)", version, path)
	return f
}

func examineDatabase(ctx context.Context) Finding {
	f := Finding{What: "database"}
	d, err := findDatabase()
	if err != nil {
		f.Err = err
		return f
	}
	version, err := firstLine(ctx, d.server, "--no-defaults", "--version")
	if err != nil {
		f.Err = fmt.Errorf("%s does not run: %w", d.server, err)
		return f
	}
	f.Have = version
	if os.Geteuid() == 0 {
		if lost := orphans(); len(lost) > 0 {
			f.Have += fmt.Sprintf("; left by labs that were deleted and not wiped: `rm -r %s`", strings.Join(lost, " "))
		}
		if _, err := user.Lookup(databaseUser); err != nil {
			f.Err = fmt.Errorf("root does not run the database server itself, and the user %q is missing: %w", databaseUser, err)
		}
		return f
	}
	if confined(d.server) {
		f.Err = fmt.Errorf("AppArmor confines %s to /var/lib/mysql: `sudo ln -s /etc/apparmor.d/usr.sbin.mysqld /etc/apparmor.d/disable/ && sudo apparmor_parser -R /etc/apparmor.d/usr.sbin.mysqld` frees it", d.server)
	}
	return f
}

// confined reports whether the system lets a program reach only what its packagers thought of, as Ubuntu does with MySQL.
func confined(program string) bool {
	profiles, err := os.ReadFile("/sys/kernel/security/apparmor/profiles")
	return err == nil && strings.Contains(string(profiles), program+" (enforce)")
}

func firstLine(ctx context.Context, path string, args ...string) (string, error) {
	const limit = 10 * time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).Output()
	line, _, _ := strings.Cut(string(out), "\n")
	return line, err
}
