package vms

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strings"

	"example.com/todo/internal/lab"
	"example.com/todo/internal/operator"
	"example.com/todo/provision"
)

// StageOptions say which machines there shall be. Zero values mean what the machines that exist have, else the demo.
type StageOptions struct {
	Net    string // the first three parts of every address
	Counts lab.Counts
	Bin    string // the directory of the machines' programs: consul, vault, todo
	Slow   bool   // whether the machines' processors are emulated
}

const (
	modeFile = 0o644
	modeDir  = 0o755
	modeRun  = 0o755
)

// Stage lays out, for each machine, all that it installs: .vagrant/lab/machines/NAME, which the machine sees as /vagrant. It
// writes only what differs. If no machine exists, what an operator kept for the machines before is deleted: their Vault is
// gone, so its keys open nothing.
func (v *Machines) Stage(ctx context.Context, o StageOptions) error {
	done, err := v.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	wanted, err := v.want(o)
	if err != nil {
		return err
	}
	all, err := lab.Inventory(wanted.Net, wanted.Counts)
	if err != nil {
		return err
	}
	if !v.made("*") {
		if err := os.RemoveAll(v.path("operator")); err != nil {
			return fmt.Errorf("forget the machines that are gone: %w", err)
		}
	}
	for _, dir := range []string{"operator", "machines"} {
		if err := os.MkdirAll(v.path(dir), 0o700); err != nil {
			return err
		}
	}
	for _, m := range all {
		if err := v.stage(m, all, wanted, o); err != nil {
			return fmt.Errorf("stage %s: %w", m.Name, err)
		}
	}
	text, err := json.MarshalIndent(wanted, "", "  ")
	if err != nil {
		return err
	}
	return operator.WriteFile(v.path("lab.json"), append(text, '\n'))
}

// want merges what is asked for into what there is.
func (v *Machines) want(o StageOptions) (record, error) {
	asked := record{Net: o.Net, Counts: o.Counts}
	if asked.Net == "" {
		asked.Net = DefaultNet
	}
	if asked.Counts == (lab.Counts{}) {
		asked.Counts = lab.Demo()
	}
	if a, err := netip.ParseAddr(asked.Net + ".1"); err != nil || !a.Is4() || !a.IsPrivate() {
		return record{}, lab.Refuse("NET=%s: want the first three parts of a private network, such as %s", asked.Net, DefaultNet)
	}
	if !v.Exists() {
		return asked, nil
	}
	if asked.Net != v.record.Net {
		return record{}, lab.Refuse("the machines live in %s and cannot move to %s: NET=%s keeps them, `vagrant destroy -f` begins anew",
			v.record.Net, asked.Net, v.record.Net)
	}
	if asked.Counts.Consul != v.record.Counts.Consul {
		return record{}, lab.Refuse("the machines were made for %d Consul servers, not %d: CONSULS=%d keeps them, `vagrant destroy -f` begins anew",
			v.record.Counts.Consul, asked.Counts.Consul, v.record.Counts.Consul)
	}
	// A machine beyond what is asked for now may exist; it stays one of them.
	asked.Counts.Todo = max(asked.Counts.Todo, v.record.Counts.Todo)
	return asked, nil
}

// stage lays out one machine.
func (v *Machines) stage(m lab.Machine, all []lab.Machine, r record, o StageOptions) error {
	consul := provision.Consul{
		Node: m.Name, Address: m.Addr, DataDir: "/var/lib/consul", Servers: r.Counts.Consul,
		Server: m.Role == lab.RoleConsul, Scripts: m.Role == lab.RoleMySQL, Slow: o.Slow,
	}
	for _, other := range all {
		if other.Role == lab.RoleConsul {
			consul.Join = append(consul.Join, other.Addr)
		}
	}
	const socket = "/run/mysqld/mysqld.sock"
	t := tree{to: v.path("machines", m.Name)}
	t.text("machine.env", fmt.Sprintf("NAME=%s ROLE=%s ADDRESS=%s\n", m.Name, m.Role, m.Addr))
	t.copy("lib.sh", filepath.Join(v.project, "provision", "lib.sh"), modeFile)
	t.copy(m.Role+".sh", filepath.Join(v.project, "provision", m.Role+".sh"), modeFile)
	t.render("root/etc/consul.d/consul.hcl", "consul.hcl", consul)
	t.render("root/etc/systemd/resolved.conf.d/consul.conf", "resolved.conf", provision.Resolved{Address: m.Addr})
	t.render("root/etc/profile.d/lab.sh", "profile.sh", provision.Profile{Address: m.Addr, Vault: m.Role == lab.RoleVault})
	v.service(&t, "consul", o.Bin)
	switch m.Role {
	case lab.RoleVault:
		t.render("root/etc/vault.d/vault.hcl", "vault.hcl", provision.Vault{Address: m.Addr, MemoryLocked: false})
		v.service(&t, "vault", o.Bin)
	case lab.RoleMySQL:
		t.render("root/etc/mysql/todo.cnf", "my.cnf", provision.MySQL{Address: m.Addr, DataDir: "/var/lib/mysql", TmpDir: "/tmp", Socket: socket})
		t.copy("root/etc/systemd/system/mysql.service.d/todo.conf", filepath.Join(v.project, "provision", "units", "mysql.service.d", "todo.conf"), modeFile)
		t.render("root/etc/consul.d/mysql.hcl", "mysql-service.hcl", provision.MySQLService{Address: m.Addr, Admin: "mysqladmin", Socket: socket})
	case lab.RoleTodo:
		v.service(&t, "todo", o.Bin)
	}
	return t.finish()
}

// service lays out a program and the unit that runs it.
func (v *Machines) service(t *tree, name, bin string) {
	t.copy("root/etc/systemd/system/"+name+".service", filepath.Join(v.project, "provision", "units", name+".service"), modeFile)
	t.copy("root/usr/local/bin/"+name, filepath.Join(bin, name), modeRun)
}

// tree lays out a directory, and remembers the first thing that went wrong.
type tree struct {
	to    string
	files map[string]bool
	err   error
}

func (t *tree) render(name, template string, data any) {
	text, err := provision.Render(template, data)
	if err != nil && t.err == nil {
		t.err = err
	}
	t.text(name, string(text))
}

func (t *tree) text(name, text string) {
	to, ready := t.place(name)
	if !ready {
		return
	}
	if old, err := os.ReadFile(to); err == nil && string(old) == text {
		return
	}
	t.write(to, modeFile, func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	})
}

// copy copies a file unless the same one is there.
func (t *tree) copy(name, from string, mode os.FileMode) {
	to, ready := t.place(name)
	if !ready || same(from, to) {
		return
	}
	f, err := os.Open(from)
	if err != nil {
		t.err = err
		return
	}
	defer f.Close()
	t.write(to, mode, func(w io.Writer) error {
		_, err := io.Copy(w, f)
		return err
	})
}

func (t *tree) place(name string) (to string, ready bool) {
	if t.err != nil {
		return "", false
	}
	if t.files == nil {
		t.files = map[string]bool{}
	}
	t.files[path.Clean(name)] = true
	to = filepath.Join(t.to, filepath.FromSlash(name))
	t.err = os.MkdirAll(filepath.Dir(to), modeDir)
	return to, t.err == nil
}

// write makes a file appear whole.
func (t *tree) write(to string, mode os.FileMode, fill func(io.Writer) error) {
	f, err := os.CreateTemp(filepath.Dir(to), ".new-*")
	if err != nil {
		t.err = err
		return
	}
	err = errors.Join(fill(f), f.Chmod(mode), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), to)
	}
	if err != nil {
		t.err = errors.Join(err, os.Remove(f.Name()))
	}
}

// finish deletes what an earlier version laid out and this one does not.
func (t *tree) finish() error {
	if t.err != nil {
		return t.err
	}
	return filepath.WalkDir(t.to, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name := filepath.ToSlash(strings.TrimPrefix(p, t.to+string(filepath.Separator)))
		if t.files[name] {
			return nil
		}
		return os.Remove(p)
	})
}

// same compares two files by what is in them; programs are large, so what can be told sooner is.
func same(a, b string) bool {
	ia, errA := os.Stat(a)
	ib, errB := os.Stat(b)
	if errA != nil || errB != nil || ia.Size() != ib.Size() {
		return false
	}
	fa, errA := os.Open(a)
	if errA != nil {
		return false
	}
	defer fa.Close()
	fb, errB := os.Open(b)
	if errB != nil {
		return false
	}
	defer fb.Close()
	const block = 1 << 20
	ba, bb := make([]byte, block), make([]byte, block)
	for {
		na, ea := io.ReadFull(fa, ba)
		nb, eb := io.ReadFull(fb, bb)
		if !bytes.Equal(ba[:na], bb[:nb]) {
			return false
		}
		if ea != nil || eb != nil {
			return ea != nil && eb != nil
		}
	}
}
