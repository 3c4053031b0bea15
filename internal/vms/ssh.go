package vms

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"

	"example.com/todo/internal/lab"
	"example.com/todo/internal/operator"
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

// shTo writes what the script prints to w as it comes.
func (v *Machines) shTo(ctx context.Context, m lab.Machine, w io.Writer, stdin, script string) error {
	config, fresh, err := v.sshConfig(ctx, m, false)
	if err != nil {
		return err
	}
	err = ssh(ctx, config, m, w, stdin, script)
	if fresh || !errors.Is(err, errUnreachable) {
		return err
	}
	// A machine may have another address since it was started again.
	config, changed, renewErr := v.sshConfig(ctx, m, true)
	if renewErr != nil || !changed {
		return errors.Join(err, renewErr)
	}
	return ssh(ctx, config, m, w, stdin, script)
}

func ssh(ctx context.Context, config string, m lab.Machine, w io.Writer, stdin, script string) error {
	var complaint bytes.Buffer
	c := exec.CommandContext(ctx, "ssh", "-F", config, "-o", "BatchMode=yes", "-o", "ConnectTimeout=3",
		"-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3", "-o", "LogLevel=ERROR", m.Name, "sudo sh -c "+quote(script))
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(stdin), w, &complaint
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = letGo
	err := c.Run()
	if err == nil {
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

// sshConfig is a file that tells ssh how to reach a machine, as Vagrant knows it. Asking Vagrant takes seconds, so its answer
// is kept; renew asks again and reports whether the answer is another one.
func (v *Machines) sshConfig(ctx context.Context, m lab.Machine, renew bool) (path string, changed bool, err error) {
	path = v.path("ssh", m.Name)
	kept, err := os.ReadFile(path)
	if err == nil && !renew {
		return path, false, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", false, err
	}
	text, err := v.vagrant(ctx, "ssh-config", m.Name)
	if err != nil {
		return "", false, fmt.Errorf("%s %w: %w", m.Name, errUnreachable, err)
	}
	if err := os.MkdirAll(v.path("ssh"), 0o700); err != nil {
		return "", false, err
	}
	return path, string(kept) != text, operator.WriteFile(path, []byte(text))
}

// forget drops what is known of the way to a machine, so that Vagrant is asked the next time.
func (v *Machines) forget(m lab.Machine) error {
	if err := os.Remove(v.path("ssh", m.Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
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
