// Package labtest starts labs for tests: real Consul, real Vault, a real database, as few of each as the test needs.
//
// A lab of a test has a network and a directory of its own, so any number of test processes can run at once. It is gone
// when the test is over. One whose test process died without cleaning up is taken away by the next process that starts a
// lab. A test that starts a lab is skipped with -short; where a program is missing it fails and says how to get it.
package labtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"example.com/todo/internal/lab"
	"example.com/todo/internal/operator"
)

// Options say what a test needs. The zero value is one Consul server and nothing else.
type Options struct {
	Consul int // servers; 1 if zero
	Vault  int
	MySQL  int
	Todo   int
	// Times are the lifetimes of what Vault hands out; short ones make short tests.
	Times operator.Times
	// TodoBinary is the service to run; if it is empty and there are todos, cmd/todo is built.
	TodoBinary string
	// TodoEnv is added to the environment of every todo instance.
	TodoEnv map[string]string
	// Down leaves the lab as it is before its first start, for tests of starting.
	Down bool
}

const (
	upWithin   = 2 * time.Minute
	downWithin = time.Minute
	logLines   = 15
)

// Start starts a lab for one test, which ends with the test. The lab's logs are shown if the test fails.
func Start(t testing.TB, o Options) *lab.Lab {
	t.Helper()
	skipShort(t)
	r, err := open(o)
	if err != nil {
		t.Fatalf("labtest: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(r.logs())
		}
		if err := r.close(t.Failed()); err != nil {
			t.Errorf("labtest: take the lab down: %v", err)
		}
	})
	if o.Down {
		return r.lab
	}
	if err := r.up(); err != nil {
		t.Fatalf("labtest: %v", err)
	}
	return r.lab
}

// skipShort is the only place in the tree where a test is skipped.
func skipShort(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts processes, which -short forbids")
	}
}

// Shared is one lab for all tests of a package. It starts when the first test asks for it and ends after the last:
//
//	var shared = labtest.NewShared(labtest.Options{Vault: 1, MySQL: 1})
//
//	func TestMain(m *testing.M) { os.Exit(shared.Main(m).Run()) }           // or
//	func TestMain(m *testing.M) { goleak.VerifyTestMain(shared.Main(m)) }
//
//	func TestSomething(t *testing.T) { l := shared.Lab(t); … }
type Shared struct {
	options Options
	once    sync.Once
	running *running
	err     error
}

// NewShared starts nothing.
func NewShared(o Options) *Shared { return &Shared{options: o} }

// Lab is the package's lab, started if this is the first test that asks.
func (s *Shared) Lab(t testing.TB) *lab.Lab {
	t.Helper()
	skipShort(t)
	s.once.Do(func() {
		if s.running, s.err = open(s.options); s.err == nil && !s.options.Down {
			s.err = s.running.up()
		}
	})
	if s.err != nil {
		t.Fatalf("labtest: %v", s.err)
	}
	return s.running.lab
}

// Main wraps a package's tests: its Run runs them and then takes the lab away.
func (s *Shared) Main(m *testing.M) Runner { return Runner{shared: s, tests: m} }

// Runner is what a TestMain runs.
type Runner struct {
	shared *Shared
	tests  *testing.M
}

// Run runs the tests and returns their exit code.
func (r Runner) Run() int {
	code := r.tests.Run()
	running := r.shared.running
	if running == nil {
		return code
	}
	if code != 0 {
		fmt.Fprintln(os.Stderr, running.logs())
	}
	if err := running.close(code != 0); err != nil {
		fmt.Fprintf(os.Stderr, "labtest: take the lab down: %v\n", err)
		return max(code, 1)
	}
	return code
}

// running is a lab and the claim on its network.
type running struct {
	lab   *lab.Lab
	claim *claim
}

func open(o Options) (*running, error) {
	if o.Consul == 0 {
		o.Consul = 1
	}
	c, err := claimNetwork()
	if err != nil {
		return nil, err
	}
	r := &running{claim: c}
	b := lab.FindBinaries(os.Getenv)
	if o.TodoBinary != "" {
		b.Todo = o.TodoBinary
	} else if o.Todo > 0 && os.Getenv("TODO") == "" {
		if b.Todo, err = BuildTodo(); err != nil {
			return nil, errors.Join(err, c.release())
		}
	}
	r.lab, err = lab.Open(lab.Config{
		Dir: c.labDir(), Net: c.network, Binaries: b, Times: o.Times, TodoEnv: o.TodoEnv,
		Counts: lab.Counts{Consul: o.Consul, Vault: o.Vault, MySQL: o.MySQL, Todo: o.Todo},
	})
	if err != nil {
		return nil, errors.Join(err, c.release())
	}
	return r, nil
}

func (r *running) up() error {
	ctx, cancel := context.WithTimeout(context.Background(), upWithin)
	defer cancel()
	err := r.lab.Up(ctx, lab.UpOptions{})
	var u *lab.UnitError
	if errors.As(err, &u) {
		var b bytes.Buffer
		for _, line := range u.Tail(logLines) {
			fmt.Fprintf(&b, "\n    %s", line)
		}
		err = fmt.Errorf("%w\n  the end of %s:%s", err, u.Log, b.String())
	}
	return err
}

// close takes the lab away; its logs are kept if asked for.
func (r *running) close(keepLogs bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), downWithin)
	defer cancel()
	var keep error
	if keepLogs {
		keep = keepLogsOf(r.claim)
	}
	down := r.lab.Down(ctx, lab.DownOptions{Wipe: true, Hard: true})
	// The lab leaves alone what is not its own; here everything is the test's.
	return errors.Join(keep, down, os.RemoveAll(r.claim.labDir()), r.claim.release())
}

// logs shows the end of every log, and where the whole will be.
func (r *running) logs() string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "the lab's logs are kept in %s; their ends:\n", r.claim.keptDir())
	for _, path := range logFiles(r.claim.labDir()) {
		name, _ := filepath.Rel(filepath.Join(r.claim.labDir(), "machines"), path)
		fmt.Fprintf(&b, "--- %s\n", name)
		for _, line := range lab.Tail(path, logLines) {
			fmt.Fprintf(&b, "    %s\n", line)
		}
	}
	return b.String()
}

func logFiles(dir string) []string {
	paths, _ := filepath.Glob(filepath.Join(dir, "machines", "*", "*.log"))
	return paths
}

// keptLogs is how many failed labs' logs are kept; the oldest make room.
const keptLogs = 20

func keepLogsOf(c *claim) error {
	if err := forgetOldLogs(filepath.Dir(c.keptDir())); err != nil {
		return err
	}
	for _, path := range logFiles(c.labDir()) {
		to := filepath.Join(c.keptDir(), filepath.Base(filepath.Dir(path)), filepath.Base(path))
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := errors.Join(err, os.WriteFile(to, text, 0o600)); err != nil {
			return err
		}
	}
	return nil
}

func forgetOldLogs(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	age := func(e fs.DirEntry) time.Time {
		i, err := e.Info()
		if err != nil {
			return time.Time{} // gone, so it may go first
		}
		return i.ModTime()
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return age(a).Compare(age(b)) })
	for _, e := range entries[:max(0, len(entries)-keptLogs+1)] {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// BuildTodo builds the service from the source tree that the test belongs to and returns the program's path. The go
// command builds only what has changed.
func BuildTodo() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	dir, err := baseDir()
	if err != nil {
		return "", err
	}
	unlock, err := lockWait(filepath.Join(dir, "build.lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	// A program that runs elsewhere is not written over: each content has a name of its own.
	built := filepath.Join(dir, "build", "todo")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", built, "./cmd/todo")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build cmd/todo: %w\n%s", err, out)
	}
	return copyByContent(built, filepath.Join(dir, "build"))
}

func moduleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	return filepath.Dir(string(bytes.TrimSpace(out))), nil
}
