package lab_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/todo/internal/lab"
	"example.com/todo/internal/lab/wait"
	"example.com/todo/internal/labtest"
	"go.uber.org/goleak"
)

// Most stories wait for most of their time, so they are told side by side; those that measure time are told alone.

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// small is the smallest lab in which a todo can be written, and whole the smallest in which anything may fail.
var (
	small = labtest.Options{Vault: 1, MySQL: 1, Todo: 1}
	whole = labtest.Options{Vault: 2, MySQL: 1, Todo: 2}
)

// shown is how soon the board shows what happened.
const shown = 10 * time.Second

func TestLab_KeepsTheTodosThroughDownAndUp(t *testing.T) {
	l := labtest.Start(t, small)
	write(t, l, "todo0", "kept")
	before := running(t, l)

	begun := time.Now()
	up(t, l)
	if took := time.Since(begun); took > time.Second {
		t.Errorf("a second up took %v", took)
	}
	if after := running(t, l); !slices.Equal(before, after) {
		t.Errorf("a second up changed what runs: %q, then %q", before, after)
	}

	if err := l.Down(t.Context(), lab.DownOptions{}); err != nil {
		t.Fatal(err)
	}
	if left := running(t, l); len(left) > 0 {
		t.Errorf("down left %q", left)
	}
	if used, err := lab.InUse(l.Net()); err != nil || used {
		t.Errorf("down left somebody listening in %s (%v)", l.Net(), err)
	}
	up(t, l)
	if todos := list(t, l, "todo0"); !strings.Contains(todos, `"kept"`) {
		t.Errorf("after down and up there are %s", todos)
	}
}

func TestDown_WipesEverythingAndNothingElse(t *testing.T) {
	t.Parallel()
	l := labtest.Start(t, labtest.Options{MySQL: 1})
	socket, err := l.MySQLSocket()
	if err != nil {
		t.Fatal(err)
	}
	theirs := filepath.Join(l.Dir(), "somebody's.txt")
	if err := os.WriteFile(theirs, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.Down(t.Context(), lab.DownOptions{Wipe: true}); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(l.Dir())
	if err != nil || len(entries) != 1 || entries[0].Name() != filepath.Base(theirs) {
		t.Errorf("wiping left %v (%v), want only the file that is not the lab's", entries, err)
	}
	if _, err := os.Stat(filepath.Dir(socket)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the database's directory is still there: %v", err)
	}
	if left := running(t, l); len(left) > 0 {
		t.Errorf("down left %q", left)
	}
}

func TestUp_EndsTheProcessesOfALabWhoseDirectoryWasDeleted(t *testing.T) {
	t.Parallel()
	l := labtest.Start(t, labtest.Options{})
	old := l.PID("consul0/consul")
	if err := os.RemoveAll(l.Dir()); err != nil {
		t.Fatal(err)
	}
	again := reopen(t, l, l.Counts())
	up(t, again)
	if now := again.PID("consul0/consul"); now == old || now == 0 {
		t.Errorf("the server of the deleted lab is process %d, the new one's %d", old, now)
	}
}

func TestUp_ChangesTheNumberOfTodos(t *testing.T) {
	t.Parallel()
	l := labtest.Start(t, small)
	counts := l.Counts()
	counts.Todo = 3
	l = reopen(t, l, counts)
	up(t, l)
	write(t, l, "todo2", "through the third")
	counts.Todo = 1
	l = reopen(t, l, counts)
	var told []lab.Event
	if err := l.Up(t.Context(), lab.UpOptions{Report: func(e lab.Event) { told = append(told, e) }}); err != nil {
		t.Fatal(err)
	}
	both := slices.IndexFunc(told, func(e lab.Event) bool { return e.Text == "taken away" })
	if both < 2 || told[0].Text != "is taken away" || told[1].Text != "is taken away" {
		t.Errorf("two machines are not taken away together: %+v", told)
	}
	for _, id := range running(t, l) {
		if strings.HasPrefix(id, "todo1/") || strings.HasPrefix(id, "todo2/") {
			t.Errorf("%s still runs", id)
		}
	}

	// What did not come up is not remembered, and the next up looks again at all that it touched.
	b := lab.FindBinaries(os.Getenv)
	b.Todo = "/bin/false"
	counts.Todo = 2
	failing, err := lab.Open(lab.Config{Dir: l.Dir(), Counts: counts, Binaries: b})
	if err != nil {
		t.Fatal(err)
	}
	if err := failing.Up(t.Context(), lab.UpOptions{}); err == nil {
		t.Error("a todo that ends at once has come up")
	}
	counts = reopen(t, l, lab.Counts{}).Counts()
	if n := counts.Todo; n != 1 {
		t.Errorf("after an up to 2 that failed, the lab has %d todos; want 1 as before", n)
	}
	l = reopen(t, l, counts)
	green(t, l)
	if !changes(t, l) {
		t.Error("after an up that failed, the next leaves everything as it was")
	}
	if changes(t, l) {
		t.Error("after an up that got to its end, the next looks at everything again")
	}
}

// changes runs up, and reports whether it had anything to do.
func changes(t *testing.T, l *lab.Lab) (changed bool) {
	t.Helper()
	err := l.Up(t.Context(), lab.UpOptions{Report: func(e lab.Event) {
		changed = changed || e.Machine == lab.OperatorLine && e.Done && !strings.Contains(e.Text, "as it was")
	}})
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

func TestBoard_ShowsEveryFaultAndItsEndWhileTheServiceServes(t *testing.T) {
	l := labtest.Start(t, whole)
	green(t, l)
	standby := "vault0"
	if b := board(t, l); b.Vault[0].Leader {
		standby = "vault1"
	}
	for _, machine := range []string{"todo0", standby} {
		for _, fault := range []struct {
			name      string
			do, undo  func(context.Context, string) error
			wantState string
		}{
			{"pause", l.Pause, l.Resume, "paused"},
			{"kill", l.Kill, l.Start, "stopped"},
			{"stop", func(ctx context.Context, ref string) error { _, err := l.Stop(ctx, ref); return err }, l.Start, "stopped"},
		} {
			t.Run(fault.name+" "+machine, func(t *testing.T) {
				if err := fault.do(t.Context(), machine); err != nil {
					t.Fatal(err)
				}
				await(t, l, "the fault", func(b lab.Board) bool {
					r := rowOf(b, machine)
					return b.Healthy && r.Process == fault.wantState && r.Health != "passing"
				})
				write(t, l, "todo1", "served all the same")
				if err := fault.undo(t.Context(), machine); err != nil {
					t.Fatal(err)
				}
				if strings.HasPrefix(machine, "vault") && fault.name != "pause" {
					await(t, l, "that it came back sealed", func(b lab.Board) bool { return b.Healthy && sealed(b, machine) })
					if _, err := l.Unseal(t.Context(), machine); err != nil {
						t.Fatal(err)
					}
				}
				await(t, l, "the recovery", allIsWell)
			})
		}
	}
}

func TestBoard_ShowsAPausedAndAStoppedDatabase(t *testing.T) {
	t.Parallel()
	l := labtest.Start(t, labtest.Options{MySQL: 1})
	gone := func(state string) func(lab.Board) bool {
		return func(b lab.Board) bool {
			return !b.Healthy && b.MySQL[0].Process == state && b.MySQL[0].Health == "critical" && b.MySQL[0].Error != ""
		}
	}
	if err := l.Pause(t.Context(), "mysql"); err != nil {
		t.Fatal(err)
	}
	await(t, l, "the pause", gone("paused"))
	for command, do := range map[string]func() error{
		"start": func() error { return l.Start(t.Context(), "mysql") },
		"up":    func() error { return l.Up(t.Context(), lab.UpOptions{}) },
	} {
		begun := time.Now()
		refuses(t, command+" of a paused database", do, "lab resume mysql")
		if took := time.Since(begun); took > shown/2 {
			t.Errorf("%s took %v to see that the database is paused", command, took)
		}
	}
	if err := l.Resume(t.Context(), "mysql"); err != nil {
		t.Fatal(err)
	}
	await(t, l, "the end of the pause", func(b lab.Board) bool { return rowOf(b, "mysql").Health == "passing" })
	if _, err := l.Stop(t.Context(), "mysql"); err != nil {
		t.Fatal(err)
	}
	await(t, l, "the stop", gone("stopped"))
}

func TestUp_LeavesAVaultThatAPersonRestartedSealed(t *testing.T) {
	t.Parallel()
	l := labtest.Start(t, labtest.Options{Vault: 2})
	standby := "vault1"
	if board(t, l).Vault[1].Leader {
		standby = "vault0"
	}
	if err := l.Kill(t.Context(), standby+"/all"); err != nil {
		t.Fatal(err)
	}
	refuses(t, "start of a vault without its agent", func() error { return l.Start(t.Context(), standby) }, "lab start "+standby+"/agent")
	if err := l.Start(t.Context(), standby+"/all"); err != nil {
		t.Fatal(err)
	}
	up(t, l)
	if b := board(t, l); !sealed(b, standby) || !slices.ContainsFunc(b.Problems, func(p string) bool { return strings.Contains(p, "unseal "+standby) }) {
		t.Errorf("after a restart by hand and an up, the board has %+v and says %q", b.Vault, b.Problems)
	}
	if err := l.Kill(t.Context(), standby); err != nil {
		t.Fatal(err)
	}
	up(t, l)
	if b := board(t, l); sealed(b, standby) {
		t.Error("up did not unseal the vault that it started itself")
	}
}

func TestUp_LeavesTheOperatorsStepsToAPersonIfAsked(t *testing.T) {
	t.Parallel()
	o := small
	o.Down = true
	l := labtest.Start(t, o)
	if err := l.Up(t.Context(), lab.UpOptions{Manual: true}); err != nil {
		t.Fatal(err)
	}
	if b := board(t, l); b.Vault[0].Initialized {
		t.Error("vault is initialised though nobody did it")
	}
	refuses(t, "start of a todo without an identity", func() error { return l.Start(t.Context(), "todo0") }, "lab mint todo0")
	refuses(t, "an identity before there is a table", func() error { return l.Mint(t.Context(), "todo0") }, "lab migrate")
	for _, step := range []func() error{
		func() error { _, err := l.VaultInit(t.Context()); return err },
		func() error { _, err := l.Unseal(t.Context(), "vault0"); return err },
		func() error { return l.Configure(t.Context()) },
		func() error { return l.Migrate(t.Context()) },
		func() error { return l.Mint(t.Context(), "todo0") },
		func() error { return l.Start(t.Context(), "todo0") },
	} {
		for range 2 { // each step may be repeated
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}
	}
	await(t, l, "a whole lab", allIsWell)
}

func TestUp_SaysWhoHoldsAPortAndStartsNothing(t *testing.T) {
	t.Parallel()
	l := labtest.Start(t, labtest.Options{Down: true, MySQL: 1})
	tcp, err := net.Listen("tcp", l.Addr("mysql")+":3306")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	want := func(unit, network string) {
		t.Helper()
		var held *lab.PortError
		if err := l.Up(t.Context(), lab.UpOptions{}); !errors.As(err, &held) {
			t.Fatalf("got %v, want a PortError", err)
		}
		if held.Unit != unit || held.Network != network || held.PID != os.Getpid() || held.Command == "" || held.Lab != "" {
			t.Errorf("got %+v, want %s over %s, held by this process", *held, unit, network)
		}
		if left := running(t, l); len(left) > 0 {
			t.Errorf("%q runs", left)
		}
		if _, err := os.Stat(l.Dir()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a lab that was not begun left its directory: %v", err)
		}
	}
	want("mysql/mysql", "tcp")
	udp, err := net.ListenPacket("udp", l.Addr("consul0")+":8600")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	want("consul0/consul", "udp")
}

func TestUp_NamesTheOtherLabInItsWay(t *testing.T) {
	t.Parallel()
	first := labtest.Start(t, labtest.Options{})
	second, err := lab.Open(lab.Config{
		Dir: filepath.Join(t.TempDir(), "second"), Net: first.Net(), Counts: lab.Counts{Consul: 1}, Binaries: lab.FindBinaries(os.Getenv),
	})
	if err != nil {
		t.Fatal(err)
	}
	var held *lab.PortError
	if err := second.Up(t.Context(), lab.UpOptions{}); !errors.As(err, &held) || held.Lab != first.Dir() {
		t.Errorf("got %v, want a PortError that names %s", err, first.Dir())
	}
	if b := board(t, first); b.Leader != "consul0" {
		t.Errorf("the first lab suffered: %q", b.Problems)
	}
}

func TestUp_StopsWhatItStartedWhenAMachineFails(t *testing.T) {
	t.Parallel()
	healthy := labtest.Start(t, labtest.Options{})
	b := lab.FindBinaries(os.Getenv)
	b.Vault = "/bin/false"
	l, err := lab.Open(lab.Config{Dir: healthy.Dir(), Binaries: b})
	if err != nil {
		t.Fatal(err)
	}
	if err := healthy.Down(t.Context(), lab.DownOptions{Wipe: true}); err != nil {
		t.Fatal(err)
	}
	if l, err = lab.Open(lab.Config{Dir: l.Dir(), Net: l.Net(), Counts: lab.Counts{Consul: 1, Vault: 1}, Binaries: b}); err != nil {
		t.Fatal(err)
	}
	var failed *lab.UnitError
	told := ""
	err = l.Up(t.Context(), lab.UpOptions{Report: func(e lab.Event) {
		if e.Failed {
			told = e.Machine
		}
	}})
	if !errors.As(err, &failed) || failed.Unit != "vault0/vault" || told != "vault0" {
		t.Errorf("got %v, and was told of %q; want a UnitError about vault0/vault", err, told)
	}
	if left := running(t, l); len(left) > 0 {
		t.Errorf("the failed up left %q", left)
	}
}

func TestUp_StopsWhatItStartedWhenInterrupted(t *testing.T) {
	t.Parallel()
	l := labtest.Start(t, labtest.Options{Down: true, Vault: 1})
	ctx, cancel := context.WithCancel(t.Context())
	err := l.Up(ctx, lab.UpOptions{Report: func(e lab.Event) {
		if e.Machine == "vault0" && e.Text == "Vault starts" {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want to have been interrupted", err)
	}
	if left := running(t, l); len(left) > 0 {
		t.Errorf("the interrupted up left %q", left)
	}
	up(t, l)
}

func TestUp_RefusesWhileAnotherProcessChangesTheLab(t *testing.T) {
	t.Parallel()
	l := labtest.Start(t, labtest.Options{})
	lock, err := lab.TryLock(filepath.Join(l.Dir(), "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	var busy *lab.BusyError
	if err := l.Up(t.Context(), lab.UpOptions{}); !errors.As(err, &busy) {
		t.Errorf("got %v, want a BusyError", err)
	}
}

func TestStop_EndsAPausedProcessGracefully(t *testing.T) {
	t.Parallel()
	l := labtest.Start(t, labtest.Options{})
	if err := l.Pause(t.Context(), "consul0"); err != nil {
		t.Fatal(err)
	}
	if killed, err := l.Stop(t.Context(), "consul0"); err != nil || len(killed) > 0 {
		t.Errorf("killed %q, %v", killed, err)
	}
	if _, err := l.Stop(t.Context(), "consul0"); !errors.Is(err, lab.ErrNotRunning) {
		t.Errorf("stopping it again: got %v, want ErrNotRunning", err)
	}
}

func TestLab_ShowsNoSecretToAnybodyElse(t *testing.T) {
	t.Parallel()
	l := labtest.Start(t, small)
	secrets := secretsOf(t, l)
	err := filepath.WalkDir(l.Dir(), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		holds := ""
		if text, err := os.ReadFile(path); err == nil {
			holds = firstIn(string(text), secrets)
		}
		info, err := d.Info()
		if err != nil {
			return nil // gone meanwhile
		}
		switch name := filepath.Base(path); {
		case holds != "" && info.Mode().Perm()&0o077 != 0:
			t.Errorf("%s holds %s, and its mode is %v", path, holds, info.Mode())
		case holds != "" && strings.HasSuffix(name, ".log"):
			t.Errorf("%s holds %s", path, holds)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(l.Dir()); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the lab's directory: %v, %v", info.Mode(), err)
	}
	arguments, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range arguments {
		text, err := os.ReadFile(path)
		if found := firstIn(string(text), secrets); err == nil && found != "" {
			t.Errorf("%s is in the arguments of a process: %q", found, text)
		}
	}
}

// secretsOf collects every secret of a lab that is on the disk.
func secretsOf(t *testing.T, l *lab.Lab) map[string]string {
	t.Helper()
	o, err := l.Operator()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := o.Keys()
	if err != nil {
		t.Fatal(err)
	}
	secrets := map[string]string{"the root token": string(keys.RootToken)}
	for i, s := range keys.Shares {
		secrets[fmt.Sprintf("key share %d", i)] = string(s)
	}
	text, err := os.ReadFile(filepath.Join(l.Dir(), "machines", "todo0", "secret-id"))
	if err != nil {
		t.Fatal(err)
	}
	secrets["the secret id"] = strings.TrimSpace(string(text))
	return secrets
}

func firstIn(text string, secrets map[string]string) string {
	for name, s := range secrets {
		if strings.Contains(text, s) {
			return name
		}
	}
	return ""
}

func up(t *testing.T, l *lab.Lab) {
	t.Helper()
	if err := l.Up(t.Context(), lab.UpOptions{}); err != nil {
		t.Fatal(err)
	}
}

// refuses wants an error that says what to type instead.
func refuses(t *testing.T, what string, do func() error, want string) {
	t.Helper()
	if err := do(); err == nil || !strings.Contains(err.Error(), "`"+want+"`") {
		t.Errorf("%s: got %v, want to be told to type %q", what, err, want)
	}
}

// reopen opens the lab as a later command would.
func reopen(t *testing.T, l *lab.Lab, counts lab.Counts) *lab.Lab {
	t.Helper()
	b := lab.FindBinaries(os.Getenv)
	if counts.Todo > 0 {
		var err error
		if b.Todo, err = labtest.BuildTodo(); err != nil {
			t.Fatal(err)
		}
	}
	again, err := lab.Open(lab.Config{Dir: l.Dir(), Net: l.Net(), Counts: counts, Binaries: b})
	if err != nil {
		t.Fatal(err)
	}
	return again
}

func running(t *testing.T, l *lab.Lab) []string {
	t.Helper()
	ids, err := lab.Running(l.Dir())
	if err != nil {
		t.Fatal(err)
	}
	// Check scripts come and go; what counts is what the lab started.
	ids = slices.DeleteFunc(ids, func(id string) bool { return strings.HasSuffix(id, "+") })
	slices.Sort(ids)
	return ids
}

func board(t *testing.T, l *lab.Lab) lab.Board {
	t.Helper()
	b, err := l.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func allIsWell(b lab.Board) bool { return b.Healthy && len(b.Problems) == 0 }

func green(t *testing.T, l *lab.Lab) {
	t.Helper()
	if b := board(t, l); !allIsWell(b) {
		t.Fatalf("the board is not green: %q", b.Problems)
	}
}

// await waits until the board shows something.
func await(t *testing.T, l *lab.Lab, what string, is func(lab.Board) bool) {
	t.Helper()
	var last lab.Board
	err := wait.Within(t.Context(), shown, 200*time.Millisecond, func(ctx context.Context) error {
		var err error
		if last, err = l.Status(ctx); err == nil && !is(last) {
			err = errors.New("not yet")
		}
		return err
	})
	if err != nil {
		text, _ := json.MarshalIndent(last, "", " ")
		t.Fatalf("the board does not show %s: %v\n%s", what, err, text)
	}
}

func rowOf(b lab.Board, machine string) lab.Row {
	for _, r := range b.Vault {
		if r.Name == machine {
			return r.Row
		}
	}
	for _, r := range b.Todo {
		if r.Name == machine {
			return r.Row
		}
	}
	return b.MySQL[0].Row
}

func sealed(b lab.Board, machine string) bool {
	for _, r := range b.Vault {
		if r.Name == machine {
			return r.Sealed && r.Error == ""
		}
	}
	return false
}

func write(t *testing.T, l *lab.Lab, machine, content string) {
	t.Helper()
	body := fmt.Sprintf(`{"status":"new","content":%q}`, content)
	resp, err := client().Post("http://"+l.Addr(machine)+":8080/todo", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("writing through %s: %s", machine, resp.Status)
	}
}

func list(t *testing.T, l *lab.Lab, machine string) string {
	t.Helper()
	resp, err := client().Get("http://" + l.Addr(machine) + ":8080/todo")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// client leaves no goroutine behind.
func client() *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
}
