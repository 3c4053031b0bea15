package lab

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/todo/internal/operator"
)

func TestInventory_MirrorsTheAddressesOf2015(t *testing.T) {
	ms, err := Inventory("127.20.20", Demo())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, m := range ms {
		got[m.Name] = m.Addr
	}
	want := map[string]string{
		"consul0": "127.20.20.10", "vault0": "127.20.20.11", "vault1": "127.20.20.12", "mysql": "127.20.20.13",
		"todo0": "127.20.20.14", "todo1": "127.20.20.15", "consul1": "127.20.20.16", "consul2": "127.20.20.17",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestInventory_GivesMoreTodosAddressesOfTheirOwn(t *testing.T) {
	ms, err := Inventory("127.1.2", Counts{Consul: 1, Vault: 1, MySQL: 1, Todo: 40})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for _, m := range ms {
		if other := seen[m.Addr]; other != "" {
			t.Errorf("%s and %s share %s", m.Name, other, m.Addr)
		}
		seen[m.Addr] = m.Name
	}
	if seen["127.1.2.20"] != "todo2" || seen["127.1.2.57"] != "todo39" {
		t.Errorf("todo2 and todo39 are at %q and %q", seen["127.1.2.20"], seen["127.1.2.57"])
	}
}

func TestInventory_RefusesWhatCannotWork(t *testing.T) {
	for name, c := range map[string]Counts{
		"no Consul":               {Vault: 1},
		"an even number":          {Consul: 2},
		"more Consuls than known": {Consul: 5},
		"more Vaults than known":  {Consul: 1, Vault: 3},
		"two databases":           {Consul: 1, MySQL: 2},
		"todo without Vault":      {Consul: 1, MySQL: 1, Todo: 1},
		"todo without database":   {Consul: 1, Vault: 1, Todo: 1},
		"more than a network":     {Consul: 1, Vault: 1, MySQL: 1, Todo: 300},
	} {
		if _, err := Inventory("127.1.2", c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCheckNet_AcceptsLoopbackOnly(t *testing.T) {
	for net, ok := range map[string]bool{
		"127.20.20": true, "127.0.0": true, "127.255.255": true,
		"": false, "10.0.0": false, "127.1": false, "127.1.2.3": false, "127.1.256": false, "::1": false, "127.01.2": false,
	} {
		if got := checkNet(net) == nil; got != ok {
			t.Errorf("checkNet(%q) accepts: %v, want %v", net, got, ok)
		}
	}
}

func TestMerge_KeepsWhatIsRecorded(t *testing.T) {
	recorded := &state{Format: format, Net: "127.9.9", Counts: Counts{Consul: 1, Vault: 2, MySQL: 1, Todo: 2}, Times: operator.Times{Lease: time.Second}.WithDefaults()}
	got, err := merge(recorded, state{})
	if err != nil || got != *recorded {
		t.Errorf("got %+v, %v; want %+v", got, err, *recorded)
	}
	more := recorded.Counts
	more.Todo = 5
	if got, err = merge(recorded, state{Counts: more}); err != nil || got.Counts != more {
		t.Errorf("more todos: got %+v, %v", got.Counts, err)
	}
	more.Consul = 3
	for name, asked := range map[string]state{"another network": {Net: "127.8.8"}, "more Consul servers": {Counts: more}} {
		if _, err := merge(recorded, asked); err == nil || !strings.Contains(err.Error(), "down --wipe") {
			t.Errorf("%s: got %v, want a refusal that says what to do", name, err)
		}
	}
}

func TestOpen_RefusesALabOfAnotherFormat(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, stateFile), []byte(`{"format": 99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(Config{Dir: dir})
	var wrong *FormatError
	if !errors.As(err, &wrong) || wrong.Found != 99 {
		t.Errorf("got %v, want a FormatError with 99", err)
	}
}

func TestOpen_RefusesARecordThatIsNone(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, stateFile), []byte(`{"for`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), stateFile) {
		t.Errorf("got %v, want an error that names the file", err)
	}
}

func TestResolve_KnowsServiceAgentAndAll(t *testing.T) {
	l := openTest(t)
	for ref, want := range map[string]string{
		"vault0": "vault0/vault", "vault0/vault": "vault0/vault", "vault0/agent": "vault0/agent",
		"vault0/all": "vault0/agent vault0/vault",
		"consul1":    "consul1/consul", "consul1/agent": "consul1/consul", "consul1/all": "consul1/consul",
		"mysql": "mysql/mysql", "todo1/all": "todo1/agent todo1/todo",
		"vault9": "", "vault0/todo": "", "": "", "/agent": "",
	} {
		us, err := l.resolve(ref)
		var ids []string
		for _, u := range us {
			ids = append(ids, u.id())
		}
		if got := strings.Join(ids, " "); got != want || (err != nil) != (want == "") {
			t.Errorf("%q: got %q, %v; want %q", ref, got, err, want)
		}
	}
}

func openTest(t *testing.T) *Lab {
	t.Helper()
	l, err := Open(Config{Dir: filepath.Join(t.TempDir(), "lab")})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestChange_LetsOneProcessAtATime(t *testing.T) {
	l := openTest(t)
	if err := l.makeDir(); err != nil {
		t.Fatal(err)
	}
	done, err := l.change(t.Context(), "first")
	if err != nil {
		t.Fatal(err)
	}
	other, err := Open(Config{Dir: l.dir})
	if err != nil {
		t.Fatal(err)
	}
	_, err = other.change(t.Context(), "second")
	var busy *BusyError
	if !errors.As(err, &busy) || busy.PID != os.Getpid() || busy.Command != "first" {
		t.Errorf("got %v, want a BusyError that names us and the first command", err)
	}
	done()
	if done, err = other.change(t.Context(), "third"); err != nil {
		t.Fatalf("after the first was done: %v", err)
	}
	done()
}

func TestChange_QueuesWithinOneProcess(t *testing.T) {
	l := openTest(t)
	if err := l.makeDir(); err != nil {
		t.Fatal(err)
	}
	done, err := l.change(t.Context(), "first")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := l.change(ctx, "second"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want to have waited until the deadline", err)
	}
	done()
}

func TestMakeDir_RefusesTheDirectoryOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		return // only root can give a directory away
	}
	l := openTest(t)
	if err := l.makeDir(); err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	if err := os.Chown(l.dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	if err := l.makeDir(); err == nil || !strings.Contains(err.Error(), "65534") {
		t.Errorf("got %v, want a refusal that names the owner", err)
	}
}

func TestDialIn_ReachesASocketWhosePathIsTooLong(t *testing.T) {
	dir := t.TempDir()
	s, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	long := filepath.Join(dir, strings.Repeat("long", 40))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "s"), filepath.Join(long, "s")); err != nil {
		t.Fatal(err)
	}
	c, err := dialIn(t.Context(), long, "s")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestReadEnv_TakesLinesAndLeavesComments(t *testing.T) {
	path := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(path, []byte("# comment\n\nA=1\n  B=x=y \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readEnv(path)
	if want := []string{"A=1", "B=x=y"}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

func TestTail_ShowsTheLastLinesOfALongFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	long := strings.Repeat("something happened\n", 10_000) + "the end\n"
	if err := os.WriteFile(path, []byte(long), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := Tail(path, 2); !reflect.DeepEqual(got, []string{"something happened", "the end"}) {
		t.Errorf("got %q", got)
	}
	if got := Tail(path+".none", 2); got != nil {
		t.Errorf("of no file: got %q", got)
	}
}

func TestFindBinaries_PrefersWhatTheEnvironmentNames(t *testing.T) {
	env := map[string]string{"HOME": "/home/x", "VAULT": "/opt/vault"}
	b := FindBinaries(func(name string) string { return env[name] })
	if b.Vault != "/opt/vault" || !strings.HasPrefix(b.Consul, "/home/x/.cache/todo-lab/consul-"+ConsulVersion+"-") {
		t.Errorf("got %+v", b)
	}
	env["CONSUL"] = "sh"
	if b = FindBinaries(func(name string) string { return env[name] }); !filepath.IsAbs(b.Consul) {
		t.Errorf("a program on the path: got %+v", b)
	}
	t.Chdir("/")
	env["CONSUL"] = "bin/sh"
	if b = FindBinaries(func(name string) string { return env[name] }); b.Consul != "/bin/sh" {
		t.Errorf("a program in a directory below: got %+v", b)
	}
	delete(env, "CONSUL")
	env["XDG_CACHE_HOME"] = "/c"
	if b = FindBinaries(func(name string) string { return env[name] }); !strings.HasPrefix(b.Consul, "/c/todo-lab/") {
		t.Errorf("with XDG_CACHE_HOME: got %+v", b)
	}
}

func TestBinaries_SayWhichIsMissingAndHowToGetIt(t *testing.T) {
	b := Binaries{Consul: "/none/consul", Vault: "/none/vault", Todo: "/none/todo"}
	err := b.Check(Counts{Consul: 1, Vault: 1, Todo: 1})
	for _, want := range []string{"/none/consul", "/none/vault", "/none/todo", "make tools", "make build"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}

func TestVersions_AreThoseThatTheToolModulesPin(t *testing.T) {
	for name, version := range map[string]string{"consul": ConsulVersion, "vault": VaultVersion} {
		text, err := os.ReadFile(filepath.Join("..", "..", "tools", name, "go.mod"))
		if err != nil {
			t.Fatal(err)
		}
		if want := "github.com/hashicorp/" + name + " v" + version; !strings.Contains(string(text), want) {
			t.Errorf("tools/%s/go.mod does not require %s", name, want)
		}
	}
}

func TestJudge_IsHealthyOnlyIfEveryServiceIs(t *testing.T) {
	whole := func() Board {
		row := func(name string) Row { return Row{Name: name, Agent: "passing", Health: "passing", Process: "running"} }
		return Board{
			Leader: "consul0",
			Consul: []ConsulRow{{Row: row("consul0"), Leader: true}},
			Vault:  []VaultRow{{Row: row("vault0"), Initialized: true, Leader: true}, {Row: row("vault1"), Initialized: true}},
			MySQL:  []MySQLRow{{Row: row("mysql")}},
			Todo:   []TodoRow{{Row: row("todo0"), Live: true}, {Row: row("todo1"), Live: true}},
		}
	}
	for name, c := range map[string]struct {
		harm     func(*Board)
		healthy  bool
		problems int
	}{
		"nothing":             {func(*Board) {}, true, 0},
		"one todo stopped":    {func(b *Board) { b.Todo[0].Process, b.Todo[0].Live = "stopped", false }, true, 1},
		"one todo in warning": {func(b *Board) { b.Todo[0].Health = "warning"; b.Todo[1].Live = false; b.Todo[1].Error = "x" }, true, 2},
		"both todos cannot write": {func(b *Board) {
			for i := range b.Todo {
				b.Todo[i].Live, b.Todo[i].Error = false, "no"
			}
		}, false, 3},
		"standby sealed":              {func(b *Board) { b.Vault[1].Sealed = true }, true, 1},
		"active sealed":               {func(b *Board) { b.Vault[0].Sealed, b.Vault[0].Leader = true, false }, false, 2},
		"database gone":               {func(b *Board) { b.MySQL[0].Error = "connection refused" }, false, 1},
		"database critical by Consul": {func(b *Board) { b.MySQL[0].Health = "critical" }, false, 1},
		"active killed":               {func(b *Board) { b.Vault[0].Process, b.Vault[0].Leader = "stopped", false }, false, 2},
		"no leader":                   {func(b *Board) { b.Leader = "" }, false, 1},
		"an agent lost":               {func(b *Board) { b.Todo[0].Agent = "critical" }, true, 1},
	} {
		b := whole()
		c.harm(&b)
		b.judge(catalog{})
		if b.Healthy != c.healthy || len(b.Problems) != c.problems {
			t.Errorf("%s: healthy %v, problems %q; want %v and %d of them", name, b.Healthy, b.Problems, c.healthy, c.problems)
		}
	}
}

func TestByHolder_NamesEveryHolderOnce(t *testing.T) {
	held := func(unit string, e PortError) *PortError { e.Unit = unit; return &e }
	err := byHolder([]*PortError{
		held("consul0/consul", PortError{Lab: "/other", PID: 7}),
		held("consul0/consul", PortError{Lab: "/other", PID: 7}),
		held("vault0/vault", PortError{PID: 9, Command: "python3"}),
		held("mysql/mysql", PortError{Lab: "/other", PID: 8, UID: 100}),
		held("todo0/todo", PortError{UID: 200}),
		held("todo1/todo", PortError{UID: 201}),
	})
	if err == nil {
		t.Fatal("nobody is in the way")
	}
	lines := strings.Split(err.Error(), "\n")
	for i, want := range []string{"the lab in /other", "process 9", "id 200", "id 201"} {
		if len(lines) != 4 || !strings.Contains(lines[i], want) || strings.Contains(lines[i], "2 more of our ports") != (i == 0) {
			t.Fatalf("got %q; want line %d of 4 to be about %q", lines, i, want)
		}
	}
	if err := byHolder(nil); err != nil {
		t.Errorf("of nothing: %v", err)
	}
}

func TestTail_OfNoLinesIsEmpty(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte("one\ntwo\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, -5} {
		if got := Tail(path, n); len(got) != 0 {
			t.Errorf("Tail(%d) = %q", n, got)
		}
	}
}

func TestObserve_LooksOnlyAtTheProcessesOfMachinesThatDoNotAnswer(t *testing.T) {
	l, err := net.Listen("tcp", "127.97.31.10:8500")
	if err != nil {
		t.Fatal(err)
	}
	answers := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}") })}
	go func() { _ = answers.Serve(l) }()
	t.Cleanup(func() { _ = answers.Close() })
	machines := []Machine{{Name: "consul0", Role: RoleConsul, Addr: "127.97.31.10"}, {Name: "consul1", Role: RoleConsul, Addr: "127.97.31.11"}}
	var looked []string
	b := Observe(t.Context(), machines, func(_ context.Context, silent []Machine) map[string]string {
		for _, m := range silent {
			looked = append(looked, m.Name)
		}
		return map[string]string{"consul1": "paused"}
	})
	if !slices.Equal(looked, []string{"consul1"}) || b.Consul[0].Process != "running" || b.Consul[1].Process != "paused" {
		t.Errorf("looked at %v: %+v", looked, b.Consul)
	}
	for _, r := range Observe(t.Context(), machines, nil).Consul {
		if want := map[string]string{"consul0": "running"}[r.Name]; r.Process != want {
			t.Errorf("where nobody can see processes, that of %s is %q, want %q", r.Name, r.Process, want)
		}
	}
}

func TestBoard_SaysWhatHelps(t *testing.T) {
	stopped := Board{Vault: []VaultRow{{Row: Row{Name: "vault0", Process: "stopped"}}}, Todo: []TodoRow{{Row: Row{Name: "todo0", Process: "stopped"}}}}
	unreachable := Board{Vault: []VaultRow{{Row: Row{Name: "vault0", Process: "running", Agent: "absent"}}}}
	unready := Board{Leader: "consul0", Todo: []TodoRow{{Row: Row{Name: "todo0", Process: "running", Error: "no answer in 2s"}, Reason: "the table cannot be queried"}}}
	for want, b := range map[string]*Board{
		"nothing runs; `lab up` starts it all":              &stopped,
		"vault0: cannot reach its storage, which is Consul": &unreachable,
		"todo0: the table cannot be queried":                &unready,
	} {
		b.judge(catalog{})
		if !slices.Contains(b.Problems, want) {
			t.Errorf("the board does not say %q: %q", want, b.Problems)
		}
	}
}

func TestBoard_SaysWhoTakesOverFromALostVault(t *testing.T) {
	none := "vault: none is active; no credentials can be leased or renewed"
	vault1 := none + " until vault1 takes over: up to 45 s after a crash, when the dead one's lock has run out"
	lost := VaultRow{Row: Row{Process: "stopped", Error: "connection refused"}}
	for name, c := range map[string]struct {
		consul string // who leads it
		vault0 VaultRow
		vault1 VaultRow
		want   string
	}{
		"a standby waits":                     {"consul0", lost, VaultRow{}, vault1},
		"the other is sealed":                 {"consul0", lost, VaultRow{Sealed: true}, none},
		"nobody can have the lock":            {"", lost, VaultRow{}, none},
		"Consul has not seen the new one yet": {"consul0", VaultRow{Leader: true}, VaultRow{}, none},
	} {
		c.vault0.Name, c.vault0.Initialized, c.vault1.Name, c.vault1.Initialized = "vault0", true, "vault1", true
		b := Board{Leader: c.consul, Vault: []VaultRow{c.vault0, c.vault1}}
		b.judge(catalog{})
		if !slices.Contains(b.Problems, c.want) {
			t.Errorf("%s: the board does not say %q: %q", name, c.want, b.Problems)
		}
	}
}
