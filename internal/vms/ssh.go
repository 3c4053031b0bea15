package vms

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"example.com/todo/internal/lab"
)

const (
	// sshUnreachable is ssh's own exit code: it could not connect, or lost the connection.
	sshUnreachable = 255
	// letGo bounds the wait for a program that was told to end.
	letGo = 5 * time.Second
)

// errUnreachable means that no ssh session to a machine could be had.
var errUnreachable = errors.New("cannot be reached over ssh")

// sh runs a script as root on a machine and returns what it printed. The script is an argument of a program: nothing secret
// may be in it; that goes through stdin.
func (v *Machines) sh(ctx context.Context, m lab.Machine, stdin, script string) (string, error) {
	var out bytes.Buffer
	err := v.shTo(ctx, m, &out, stdin, script)
	return strings.TrimSpace(out.String()), err
}

// shTo writes what the script prints to w as it comes. ssh goes to the machine's private address, which is known, and which Cut
// leaves open for it; Vagrant would have to be asked for any other, which takes seconds and a lock.
func (v *Machines) shTo(ctx context.Context, m lab.Machine, w io.Writer, stdin, script string) error {
	key, err := v.key(m)
	if err != nil {
		return err
	}
	var complaint bytes.Buffer
	c := exec.CommandContext(ctx, "ssh", "-F", "none", "-i", key, "-l", "vagrant",
		"-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR",
		"-o", "ConnectTimeout=20", // until sshd has greeted: an emulated one may be long; one without power is found out in 3 s
		"-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", // a machine that is made again has another key
		m.Addr, "sudo sh -c "+quote(script))
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(stdin), w, &complaint
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = letGo
	if err = c.Run(); err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	text := strings.TrimSpace(complaint.String())
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == sshUnreachable {
		return fmt.Errorf("%s %w: %s", m.Name, errUnreachable, text)
	}
	if text == "" {
		text = err.Error()
	}
	return fmt.Errorf("on %s: %s", m.Name, text)
}

// key is the private key that Vagrant made for a machine when it first came up.
func (v *Machines) key(m lab.Machine) (string, error) {
	keys, err := filepath.Glob(filepath.Join(v.project, ".vagrant", "machines", m.Name, "*", "private_key"))
	if err != nil || len(keys) == 0 {
		return "", fmt.Errorf("%s %w: Vagrant has no key for it, so it never came up: `vagrant up %s`", m.Name, errUnreachable, m.Name)
	}
	return keys[0], nil
}

// vagrant runs the program itself, in the project.
func (v *Machines) vagrant(ctx context.Context, args ...string) (string, error) {
	var out, complaint bytes.Buffer
	c := exec.CommandContext(ctx, "vagrant", args...)
	c.Dir, c.Stdout, c.Stderr = v.project, &out, &complaint
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = letGo
	if err := c.Run(); err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return "", fmt.Errorf("vagrant %s: %w: %s", strings.Join(args, " "), err, oneLine(complaint.String()))
	}
	return out.String(), nil
}

// oneLine joins the paragraphs in which Vagrant explains itself.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// quote makes one word of the shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
