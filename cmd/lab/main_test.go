package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/todo/internal/lab"
	"example.com/todo/internal/labtest"
)

// soak asks for the full counts, as `make soak` does.
func soak() bool { return os.Getenv("SOAK") != "" }

// lab runs the program within this process.
func runLab(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, surroundings{getenv: os.Getenv, stdout: &out, stderr: &errs})
	return code, out.String(), errs.String()
}

func TestRun_EndsWithTwoOnWrongArguments(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lab")
	for _, c := range []struct{ args, want string }{
		{"nonsense", `"nonsense" is no command`},
		{"statu", "did you mean status"},
		{"vault open", `"open" is no command of`},
		{"up --what", "unknown flag"},
		{"up now", `no use for "now"`},
		{"up --todo many", "many"},
		{"stop", "needs a machine"},
		{"mint", "needs a todo machine"},
		{"vault unseal vault0 vault1", `no use for "vault1"`},
		{"status --watch --json", "watch"},
		{"up --net 10.0.0", "not the beginning of a loopback network"},
		{"up --consul 2", "odd number"},
		{"up --lease 0s", "at least one"},
		{"up --lease -5s", "at least one"},
		{"up --token 1500ms", "whole seconds"},
		{"up --lease-max 30s", "a lease of 1m0s is longer than its maximum of 30s"},
		{"up --lease 48h", "longer than its maximum of 24h"},
		{"up --token 2h --token-max 1h", "a token's life of 2h0m0s is longer"},
	} {
		code, _, stderr := runLab(t, append([]string{"--dir", dir}, strings.Fields(c.args)...)...)
		if code != exitUsage || !strings.Contains(stderr, c.want) {
			t.Errorf("lab %s: code %d, %q; want %d and %q", c.args, code, stderr, exitUsage, c.want)
		}
	}
}

func TestStage_EndsWithTwoOnMachinesThatCannotBe(t *testing.T) {
	project := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(project, "vagrant"), 0o700), os.WriteFile(filepath.Join(project, "vagrant", "machines.yaml"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Chdir(project)
	for _, c := range []struct{ args, want string }{
		{"--consul 2", "odd number"},
		{"--todo 1000", "at most"},
		{"--net 8.8.8", "private network"},
	} {
		code, _, stderr := runLab(t, append([]string{"--on", "vagrant", "stage"}, strings.Fields(c.args)...)...)
		if code != exitUsage || !strings.Contains(stderr, c.want) {
			t.Errorf("lab stage %s: code %d, %q; want %d and %q", c.args, code, stderr, exitUsage, c.want)
		}
	}
}

// stopped is a lab that is recorded and of which nothing runs.
func stopped(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "lab")
	record := `{"format":1,"net":"127.98.1","machines":{"consul":1,"vault":1,"mysql":1,"todo":2},
		"nanoseconds":{"lease":60000000000,"lease_max":3600000000000,"token":60000000000,"token_max":3600000000000}}`
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "lab.json"), []byte(record), 0o600)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestRun_EndsWithTwoOnWhatThisLabCannotBeOrHas(t *testing.T) {
	dir := stopped(t)
	for _, c := range []struct{ args, want string }{
		{"mint todo9", "there are todo0, todo1"},
		{"mint vault0", "there are todo0, todo1"},
		{"vault unseal vault9", "there are vault0"},
		{"logs todo9", "todo9"},
		{"up --net 127.98.2", "cannot move"},
		{"up --consul 3", "only the number of todo instances can change"},
		{"up --lease 2h", "longer than its maximum of 1h"},
	} {
		code, _, stderr := runLab(t, append([]string{"--dir", dir}, strings.Fields(c.args)...)...)
		if code != exitUsage || !strings.Contains(stderr, c.want) {
			t.Errorf("lab %s: code %d, %q; want %d and %q", c.args, code, stderr, exitUsage, c.want)
		}
	}
}

func TestRun_SaysThatThereIsNoLab(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lab")
	for _, args := range []string{"status", "stop todo0", "env", "tour", "logs vault0", "vault init", "mint todo0", "migrate"} {
		code, _, stderr := runLab(t, append([]string{"--dir", dir}, strings.Fields(args)...)...)
		if code != exitFailed || !strings.Contains(stderr, "there is no lab in "+dir) {
			t.Errorf("lab %s: code %d, %q", args, code, stderr)
		}
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("asking about no lab made one")
	}
}

func TestDown_LeavesADirectoryThatIsNoLabAlone(t *testing.T) {
	dir := t.TempDir()
	theirs := filepath.Join(dir, "machines", "important")
	if err := errors.Join(os.Mkdir(filepath.Dir(theirs), 0o700), os.WriteFile(theirs, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--dir", dir, "down"}, {"--dir", dir, "down", "--wipe"}, {"--dir", filepath.Join(dir, "none"), "down"}} {
		code, stdout, stderr := runLab(t, args...)
		if code != 0 || !strings.HasPrefix(stdout, "there is no lab in "+dir) {
			t.Errorf("lab %q: code %d, %q %q", args, code, stdout, stderr)
		}
	}
	entries, err := os.ReadDir(dir)
	if _, gone := os.Stat(theirs); gone != nil || err != nil || len(entries) != 1 {
		t.Errorf("down changed what is not a lab's: %v %v (%v)", gone, entries, err)
	}
}

func TestHelp_TeachesEveryCommand(t *testing.T) {
	root := (&app{}).root()
	_, help, _ := runLab(t, "--help")
	for _, c := range root.Commands() {
		if c.GroupID == "" && c.Name() != "help" && c.Name() != "completion" {
			t.Errorf("%s is in no group of the help", c.Name())
		}
		if c.Short == "" || !strings.Contains(help, c.Short) {
			t.Errorf("the help does not explain %s", c.Name())
		}
	}
}

func TestBoard_CutsItsLinesAtTheTerminalsEdge(t *testing.T) {
	row := lab.Row{Name: "todo0", Address: "127.20.20.14", Agent: "passing", Health: "passing", Process: "running", Version: "1.0"}
	b := lab.Board{Healthy: true, Todo: []lab.TodoRow{{Row: row, Live: true, User: "v-approle-todo-0123456789012345", SecondsLeft: 41, State: "current"}}}
	for _, width := range []int{0, 120, 80, 40, 10} {
		var out bytes.Buffer
		writeBoard(&out, b, false, width)
		for line := range strings.Lines(out.String()) {
			if n := len([]rune(strings.TrimRight(line, "\n"))); width > 0 && n > width && strings.Contains(line, "127.") {
				t.Errorf("at a width of %d there is a line of %d: %q", width, n, line)
			}
		}
		if width == 0 && !strings.Contains(out.String(), "41 s") {
			t.Errorf("the lease is not shown: %s", out.String())
		}
	}
}

func TestProgress_EndsWithoutALineThatGoesOn(t *testing.T) {
	p := (&app{surroundings: surroundings{stdout: io.Discard}}).progress([]lab.Machine{{Name: "todo0"}, {Name: "todo1"}}, false)
	p.report(lab.Event{Machine: "todo0", Text: "ready", Done: true})
	p.report(lab.Event{Machine: "todo1", Text: "the service starts"})
	p.since["todo1"] = time.Now().Add(-time.Minute)
	if line := p.line("todo1", 80); !strings.Contains(line, "60 s") {
		t.Errorf("a line that goes on is %q, without its time", line)
	}
	p.close()
	for name, want := range map[string]string{"todo0": "✓ todo0     ready", "todo1": "· todo1     not done: the service starts"} {
		if line := p.line(name, 80); line != want {
			t.Errorf("at the end a line is %q, want %q", line, want)
		}
	}
}

func TestTour_SaysWhoDoesNotAnswerAndWhatToType(t *testing.T) {
	code, _, stderr := runLab(t, "--dir", stopped(t), "tour")
	want := "lab: todo0 does not answer (connection refused): `lab status` says why, `lab up` starts what does not run\n"
	if code != exitFailed || stderr != want {
		t.Errorf("code %d, %q; want %d and %q", code, stderr, exitFailed, want)
	}
}

func TestQuote_MakesOneWordOfTheShell(t *testing.T) {
	for _, s := range []string{"plain", "with space", "it's", `a"b$c\d`, ""} {
		out, err := exec.Command("sh", "-c", "printf %s "+quote(s)).Output()
		if err != nil || string(out) != s {
			t.Errorf("%q came out as %q (%v)", s, out, err)
		}
	}
}

// program builds the lab's own program, once for all tests of this process.
func program(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lab")
	if out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		t.Fatalf("build the lab: %v\n%s", err, out)
	}
	return path
}

// cli runs the program as a person does, for a lab that is not there yet.
type cli struct {
	program string
	dir     string
	up      []string
	env     []string
	as      *syscall.Credential
	under   []string // a program that runs the program, and its arguments
}

func newCLI(t *testing.T, o labtest.Options) *cli {
	t.Helper()
	o.Down = true
	l := labtest.Start(t, o)
	todo, err := labtest.BuildTodo()
	if err != nil {
		t.Fatal(err)
	}
	return &cli{
		program: program(t), dir: l.Dir(), env: append(os.Environ(), "TODO="+todo),
		up: []string{"up", "--net", l.Net(), "--consul", strconv.Itoa(max(o.Consul, 1)), "--todo", strconv.Itoa(o.Todo)},
	}
}

func (c *cli) command(ctx context.Context, args ...string) *exec.Cmd {
	line := slices.Concat(c.under, []string{c.program, "--dir", c.dir}, args)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = c.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.as}
	return cmd
}

func (c *cli) must(t *testing.T, args ...string) string {
	t.Helper()
	begun := time.Now()
	out, err := c.command(t.Context(), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("lab %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	t.Logf("%5.1f s  lab %s", time.Since(begun).Seconds(), strings.Join(args, " "))
	return string(out)
}

// mayFail is for commands whose exit code tells of the lab and not of themselves.
func (c *cli) mayFail(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.command(t.Context(), args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out)
}

func (c *cli) board(t *testing.T) (b lab.Board) {
	t.Helper()
	if err := json.Unmarshal([]byte(c.must(t, "status", "--json")), &b); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestUp_GetsToAGreenBoardAfterEveryKill(t *testing.T) {
	times := 3
	if soak() {
		times = 20
	}
	c := newCLI(t, labtest.Options{Vault: 2, MySQL: 1, Todo: 2})
	// Every other time from nothing, where more can go wrong: what is made once is being made.
	downs := [][]string{{"down", "--wipe"}, {"down"}}
	var length [2]time.Duration // of an up after each that nobody cuts off
	for i, down := range downs {
		c.must(t, down...)
		begun := time.Now()
		c.must(t, c.up...)
		length[i] = time.Since(begun)
	}
	late := 0
	for round := 0; round < times; {
		kind := round % len(downs)
		c.must(t, downs[kind]...)
		after := rand.N(length[kind])
		begun := time.Now()
		if c.killedAfter(t, after) {
			round++
		} else if late++; late > times { // it was quicker than the one that was measured
			t.Fatalf("%d times up had ended before the kill", late)
		} else {
			length[kind] = time.Since(begun)
			continue
		}
		begun = time.Now()
		c.must(t, c.up...)
		if b := c.board(t); !b.Healthy || len(b.Problems) > 0 {
			t.Errorf("killed after %v, then up again: %q", after, b.Problems)
		}
		t.Logf("kill %d after %.1f s, then green in %.1f s", round, after.Seconds(), time.Since(begun).Seconds())
	}
	t.Logf("%d kills, each of a running up; %d that came too late do not count", times, late)
}

// killedAfter runs up, and reports whether it was still running when it was killed.
func (c *cli) killedAfter(t *testing.T, after time.Duration) bool {
	t.Helper()
	var out bytes.Buffer
	up := c.command(t.Context(), c.up...)
	up.Stdout, up.Stderr = &out, &out
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(after, func() { _ = up.Process.Kill() })
	defer kill.Stop()
	err := up.Wait()
	if status, ok := up.ProcessState.Sys().(syscall.WaitStatus); err == nil || ok && status.Signaled() {
		return err != nil
	}
	t.Fatalf("up failed before it was killed: %v\n%s", err, out.Bytes())
	return false
}

func TestCommands_WorkForAPersonAtAShell(t *testing.T) {
	c := newCLI(t, labtest.Options{Vault: 2, MySQL: 1, Todo: 2})
	c.must(t, c.up...)
	for _, step := range []struct{ args, want string }{
		{"status", "all is well"},
		{"tour", "404 Not Found"},
		{"up", "as it was"},
		{"logs vault0 -n 5", "core:"},
		{"logs todo0/agent", "agent"},
		{"doctor", "held by this lab"},
		{"vault init", "initialised already"},
		{"vault unseal", "nothing was sealed"},
		{"vault configure", "configured"},
		{"migrate", "up to date"},
		{"mint todo0", "minted"},
		{"stop todo0 todo1/agent", "todo1/agent stopped"},
		{"start todo0 todo1/agent", "todo0 answers"},
		{"pause todo1", "todo1 paused"},
		{"resume todo1", "todo1 goes on"},
		{"kill todo1", "todo1 killed"},
		{"start todo1", "todo1 answers"},
	} {
		if out := c.must(t, strings.Fields(step.args)...); !strings.Contains(out, step.want) {
			t.Errorf("lab %s says %q, which lacks %q", step.args, out, step.want)
		}
	}
	// The exports are tried as they are meant: by a shell, with the stock clients.
	script := fmt.Sprintf(`eval "$(%s --dir %s env)"; consul members; vault token lookup; mysql -N -e 'SELECT COUNT(*) FROM todo.todo'`,
		c.program, quote(c.dir))
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "alive") || !strings.Contains(string(out), "root") {
		t.Errorf("the stock clients: %v\n%s", err, out)
	}
	if out, err := c.command(t.Context(), "stop", "mysql").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := c.command(t.Context(), "status").Run(); err == nil {
		t.Error("status ends with 0 though the database is stopped")
	}
	if out := c.must(t, "down", "--wipe"); !strings.Contains(out, "nothing is left") {
		t.Errorf("down --wipe says %q", out)
	}
}

func TestUp_WorksForAnOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		// Every other test of this run is this test.
		return
	}
	c := newCLI(t, labtest.Options{Vault: 2, MySQL: 1, Todo: 1})
	c.as = ordinaryUser(t)
	c.become(t)
	c.must(t, c.up...)
	if b := c.board(t); !b.Healthy || len(b.Problems) > 0 {
		t.Errorf("the board is not green: %q", b.Problems)
	}
	c.must(t, "stop", "mysql")
	c.must(t, "start", "mysql")
	c.must(t, "down", "--wipe")
	if _, err := os.Stat(c.dir); err == nil {
		t.Errorf("%s is still there", c.dir)
	}
}

// nameless runs a program where no name can be looked up, its own and localhost included.
const nameless = `echo a-name-that-nobody-knows >/proc/sys/kernel/hostname
[ ! -e /etc/hosts ] || mount --bind /dev/null /etc/hosts
exec "$@"`

// In a container root may not look into processes of other users, such as the database server that it started, and its
// computer's name may be known to nobody.
func TestUp_WorksForRootInAContainer(t *testing.T) {
	if os.Geteuid() != 0 {
		return // and there is nothing to take away
	}
	c := newCLI(t, labtest.Options{Vault: 2, MySQL: 1})
	c.under = []string{
		"unshare", "--uts", "--mount", "sh", "-ec", nameless, "sh",
		"setpriv", "--bounding-set=-sys_ptrace,-perfmon,-sys_admin,-dac_read_search",
	}
	c.must(t, c.up...)
	c.must(t, c.up...)
	c.must(t, "stop", "mysql")
	c.must(t, "start", "mysql")
	c.must(t, "pause", "mysql")
	if b := c.mayFail(t, "status", "--json"); !strings.Contains(b, `"process": "paused"`) {
		t.Errorf("the board does not show that the database is paused: %s", b)
	}
	c.must(t, "down", "--wipe")
}

// ordinaryUser is nobody, who exists everywhere and may do nothing.
func ordinaryUser(t *testing.T) *syscall.Credential {
	t.Helper()
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	var c syscall.Credential
	if _, err := fmt.Sscan(nobody.Uid+" "+nobody.Gid, &c.Uid, &c.Gid); err != nil {
		t.Fatal(err)
	}
	return &c
}

// become moves everything the program needs to where the ordinary user can reach it.
func (c *cli) become(t *testing.T) {
	t.Helper()
	home, err := os.MkdirTemp("", "lab-user")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.command(context.Background(), "down", "--wipe").Run() // in case the test failed
		if err := os.RemoveAll(home); err != nil {
			t.Error(err)
		}
	})
	b := lab.FindBinaries(func(name string) string {
		for _, v := range c.env {
			if value, ok := strings.CutPrefix(v, name+"="); ok {
				return value
			}
		}
		return ""
	})
	env := []string{"HOME=" + home, "PATH=" + os.Getenv("PATH")}
	for name, path := range map[string]string{"CONSUL": b.Consul, "VAULT": b.Vault, "TODO": b.Todo, "LAB": c.program} {
		to := filepath.Join(home, strings.ToLower(name))
		if err := copyProgram(path, to); err != nil {
			t.Fatal(err)
		}
		if name != "LAB" {
			env = append(env, name+"="+to)
		}
	}
	c.program, c.env, c.dir = filepath.Join(home, "lab"), env, filepath.Join(home, ".lab")
	for _, path := range []string{home, c.program} {
		if err := os.Chown(path, int(c.as.Uid), int(c.as.Gid)); err != nil {
			t.Fatal(err)
		}
	}
}

func copyProgram(from, to string) error {
	if os.Link(from, to) == nil {
		return nil
	}
	return exec.Command("cp", from, to).Run()
}
