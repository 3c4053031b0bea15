package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"example.com/todo/internal/lab"
	"example.com/todo/internal/labtest"
	"example.com/todo/internal/operator"
)

// These tests run the program itself, in a lab of two instances with everything behind them.

const leaseTTL = 5 * time.Second

var shared = labtest.NewShared(labtest.Options{
	Vault: 1, MySQL: 1, Todo: 2,
	Times: operator.Times{Lease: leaseTTL, LeaseMax: time.Hour, Token: leaseTTL, TokenMax: time.Hour},
})

func TestMain(m *testing.M) { os.Exit(shared.Main(m).Run()) }

// soak chooses between the full count of a test and the one that `make test` has time for.
func soak(full, short int) int {
	if os.Getenv("SOAK") != "" {
		return full
	}
	return short
}

func url(l *lab.Lab, machine, path string) string {
	return "http://" + l.Addr(machine) + ":8080" + path
}

// call sends one request; body "" sends none. The content type is the one that curl -d sends.
func call(t *testing.T, method, url, body string, headers ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 15 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read whole
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return resp, string(b)
}

func TestSystem_KeepsTheContractAcrossInstances(t *testing.T) {
	l := shared.Lab(t)
	resp, body := call(t, "POST", url(l, "todo0", "/todo"), `{"id":12345,"status":"new","content":"buy milk"}`)
	var made struct {
		ID              int64
		Status, Content string
	}
	if err := json.Unmarshal([]byte(body), &made); err != nil || resp.StatusCode != 201 {
		t.Fatalf("POST: %s %s", resp.Status, body)
	}
	if made.ID == 12345 || made.Status != "new" || made.Content != "buy milk" {
		t.Errorf("POST made %s", body)
	}
	if got, want := resp.Header.Get("Location"), fmt.Sprintf("todo/%d", made.ID); got != want {
		t.Errorf("Location %q, want %q", got, want)
	}
	path := fmt.Sprintf("/todo/%d", made.ID)
	steps := []struct {
		method, machine, path, body string
		status                      int
		want                        string
	}{
		{"GET", "todo1", path, "", 200, `"content":"buy milk"`},
		{"GET", "todo1", "/todo", "", 200, `"content":"buy milk"`},
		{"PUT", "todo1", path, `{"id":99,"status":"done","content":"milk bought"}`, 200, fmt.Sprintf(`"id":%d`, made.ID)},
		{"PUT", "todo1", path, `{"id":99,"status":"done","content":"milk bought"}`, 200, `"status":"done"`}, // nothing changes, and it is found all the same
		{"GET", "todo0", path, "", 200, `"content":"milk bought"`},
		{"DELETE", "todo0", path, "", 204, ""},
		{"GET", "todo1", path, "", 404, "no todo with this id"},
		{"PUT", "todo1", path, `{"status":"new","content":"x"}`, 404, "no todo with this id"},
		{"DELETE", "todo1", path, "", 404, "no todo with this id"},
		{"GET", "todo0", "/health", "", 200, `"status":"passing"`},
		{"GET", "todo0", "/livez", "", 200, "alive"},
		{"GET", "todo0", "/readyz", "", 200, "ready"},
		{"GET", "todo0", "/metrics", "", 200, "creds_lease_seconds_left"},
		{"GET", "todo0", "/openapi.yaml", "", 200, "openapi:"},
	}
	for _, s := range steps {
		resp, body := call(t, s.method, url(l, s.machine, s.path), s.body)
		if resp.StatusCode != s.status || !strings.Contains(body, s.want) {
			t.Errorf("%s %s at %s: %s %s, want %d and %q", s.method, s.path, s.machine, resp.Status, body, s.status, s.want)
		}
	}
}

func TestSystem_AnswersBadInputWithWhatWasWrong(t *testing.T) {
	l := shared.Lab(t)
	const good = `{"status":"new","content":"x"}`
	_, before := call(t, "GET", url(l, "todo0", "/todo"), "")
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		says                     string
		headers                  []string
	}{
		{"not JSON", "POST", "/todo", "milk", 400, "JSON", nil},
		{"wrong type", "POST", "/todo", `{"status":"new","content":7}`, 400, "content", nil},
		{"unknown field", "POST", "/todo", `{"status":"new","content":"x","due":"now"}`, 400, "due", nil},
		{"trailing data", "POST", "/todo", good + good, 400, "", nil},
		{"empty content", "POST", "/todo", `{"status":"new","content":""}`, 400, "content", nil},
		{"over-long content", "POST", "/todo", `{"status":"new","content":"` + strings.Repeat("x", 5000) + `"}`, 400, "4096", nil},
		{"id is no number", "GET", "/todo/one", "", 400, "number", nil},
		{"id is no number, PUT", "PUT", "/todo/one", good, 400, "number", nil},
		{"id is no number, DELETE", "DELETE", "/todo/one", "", 400, "number", nil},
		{"id out of range", "GET", "/todo/99999999999999999999", "", 400, "9223372036854775807", nil},
		{"unknown id", "GET", "/todo/9000000000000000000", "", 404, "no todo with this id", nil},
		{"body over 1 MiB", "POST", "/todo", `{"content":"` + strings.Repeat("x", 1<<20) + `"}`, 413, "larger", nil},
		{"wrong method", "PATCH", "/todo/1", good, 405, "GET, HEAD, PUT, DELETE", nil},
		{"wrong method on the list", "DELETE", "/todo", "", 405, "GET, HEAD, POST", nil},
		{"wrong content type", "POST", "/todo", "<todo/>", 415, "application/json", []string{"Content-Type", "application/xml"}},
		{"not UTF-8", "POST", "/todo", "{\"status\":\"new\",\"content\":\"\xff\"}", 400, "UTF-8", nil},
		{"no such path", "GET", "/nothing", "", 404, "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp, body := call(t, c.method, url(l, "todo0", c.path), c.body, c.headers...)
			var e struct {
				Error struct{ Code, Message string }
			}
			if err := json.Unmarshal([]byte(body), &e); err != nil || e.Error.Code == "" || e.Error.Message == "" {
				t.Fatalf("%s: the answer does not say what was wrong: %s", resp.Status, body)
			}
			if resp.StatusCode != c.status || !strings.Contains(body, c.says) {
				t.Errorf("%s %s, want %d and a word on %q", resp.Status, body, c.status, c.says)
			}
			if strings.Contains(body, "goroutine") {
				t.Error("the answer holds a stack")
			}
		})
	}
	if _, after := call(t, "GET", url(l, "todo0", "/todo"), ""); after != before {
		t.Errorf("bad input left something behind:\n%s", after)
	}
}

func TestSystem_SilentClientIsCutOff(t *testing.T) {
	l := shared.Lab(t)
	for name, opening := range map[string]string{
		"silent":       "",
		"slow header":  "GET /todo HTTP/1.1\r\nHost: x\r\n",
		"broken body":  "POST /todo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"status\":",
		"not HTTP":     "\x16\x03\x01\x02\x00",
		"endless line": "GET /" + strings.Repeat("x", 64<<10),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := net.Dial("tcp", l.Addr("todo0")+":8080")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close() //nolint:errcheck // the server closes first
			if _, err := io.WriteString(c, opening); err != nil {
				t.Fatal(err)
			}
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection is still held after 20 s")
			}
		})
	}
}

func TestSystem_EveryStartLeavesNothingBehind(t *testing.T) {
	l := shared.Lab(t)
	v := newLedger(t, l)
	stop(t, l, "todo1")
	v.wait(t, "only todo0's is left", func(n holdings) bool { return n == holdings{1, 1, 1} })
	var slowest time.Duration
	for range soak(100, 8) {
		began := time.Now()
		if err := l.Start(t.Context(), "todo1"); err != nil {
			t.Fatal(err)
		}
		if rand.IntN(4) > 0 { // else it ends in mid-start
			waitReady(t, l, "todo1")
			slowest = max(slowest, time.Since(began))
		}
		stop(t, l, "todo1")
	}
	v.wait(t, "only todo0's is left", func(n holdings) bool { return n == holdings{1, 1, 1} })
	t.Logf("slowest start to ready: %v", slowest.Round(time.Millisecond))

	start(t, l, "todo1")
	if err := l.Kill(t.Context(), "todo1"); err != nil {
		t.Fatal(err)
	}
	if n := v.count(t); n != (holdings{2, 2, 2}) {
		t.Errorf("after SIGKILL %+v, want two of each: nobody was there to revoke", n)
	}
	v.wait(t, "the dead one's end by themselves", func(n holdings) bool { return n == holdings{1, 1, 1} })
	start(t, l, "todo1")
}

func TestSystem_StoppingLeavesTheCatalogueFirst(t *testing.T) {
	l := shared.Lab(t)
	stop(t, l, "todo1")
	if s := registered(t, l, "todo1"); strings.Contains(s, "todo-todo1") {
		t.Errorf("after SIGTERM the agent still lists %s", s)
	}
	start(t, l, "todo1")
}

func TestSystem_MaintenanceTakesAnInstanceOutOfDiscovery(t *testing.T) {
	l := shared.Lab(t)
	program, err := labtest.BuildTodo()
	if err != nil {
		t.Fatal(err)
	}
	maintain := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), program, append([]string{"maintenance"}, args...)...)
		cmd.Env = []string{"TODO_INSTANCE=todo1", "TODO_LISTEN=" + l.Addr("todo1") + ":8080", "CONSUL_HTTP_ADDR=" + l.Consul("todo1")}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("todo maintenance %v: %v\n%s", args, err, out)
		}
	}
	passing := func() string {
		_, body := call(t, "GET", "http://"+l.Consul("todo0")+"/v1/health/service/todo?passing", "")
		return body
	}
	maintain("on", "new", "disk")
	labtest.Eventually(t, 10*time.Second, "todo1 is out of discovery", func() bool { return !strings.Contains(passing(), "todo-todo1") })
	if resp, _ := call(t, "GET", url(l, "todo1", "/health"), ""); resp.StatusCode != 200 {
		t.Errorf("in maintenance it answers %s: it should go on serving", resp.Status)
	}
	maintain("off")
	labtest.Eventually(t, 10*time.Second, "todo1 is back", func() bool { return strings.Contains(passing(), "todo-todo1") })
}

func TestSystem_IdleInstanceIsSmall(t *testing.T) {
	l := shared.Lab(t)
	resp, body := call(t, "GET", url(l, "todo0", "/metrics"), "")
	if resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	m := regexp.MustCompile(`(?m)^process_resident_memory_bytes (\S+)$`).FindStringSubmatch(body)
	if m == nil {
		t.Fatal("no process_resident_memory_bytes")
	}
	rss, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("resident: %.1f MB", rss/1e6)
	if rss > 30e6 {
		t.Errorf("an idle instance holds %.1f MB, want 30 at most", rss/1e6)
	}
}

func TestSystem_TellsNoSecret(t *testing.T) {
	l := shared.Lab(t)
	secret, err := os.ReadFile(filepath.Join(l.Dir(), "machines", "todo0", "secret-id"))
	if err != nil {
		t.Fatal(err)
	}
	log, err := l.LogPath("todo0")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	_, health := call(t, "GET", url(l, "todo0", "/health"), "")
	_, metrics := call(t, "GET", url(l, "todo0", "/metrics"), "")
	for where, what := range map[string]string{"the log": string(text), "/health": health, "/metrics": metrics} {
		if strings.Contains(what, strings.TrimSpace(string(secret))) || regexp.MustCompile(`hvs\.[A-Za-z0-9]`).MatchString(what) {
			t.Errorf("%s holds a secret", where)
		}
	}
	if !bytes.Contains(text, []byte(`"msg":"credentials in use"`)) {
		t.Error("the log says nothing of credentials: this test looks at the wrong file")
	}
}

func TestProgram_SaysWhatIsWrongAndEndsWithTheRightCode(t *testing.T) {
	l := shared.Lab(t)
	program, err := labtest.BuildTodo()
	if err != nil {
		t.Fatal(err)
	}
	taken := l.Addr("todo0") + ":8080"
	for _, c := range []struct {
		name string
		args []string
		env  []string
		code int
		says []string
	}{
		{"no settings", nil, nil, 2, []string{"VAULT_ROLE_ID is not set", "VAULT_SECRET_ID or VAULT_SECRET_ID_FILE is not set"}},
		{"unknown setting", nil, []string{"TODO_LISTNE=:1", "VAULT_ROLE_ID=x", "VAULT_SECRET_ID=y"}, 2, []string{"TODO_LISTNE is no setting", "is TODO_LISTEN meant?"}},
		{"unknown command", []string{"server"}, nil, 2, []string{`"server" is no command`}},
		{"port in use", nil, []string{"TODO_LISTEN=" + taken, "VAULT_ROLE_ID=x", "VAULT_SECRET_ID=y"}, 1, []string{taken, "in use by process", " serve"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, program, c.args...)
			cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, c.env...)
			out, err := cmd.CombinedOutput()
			var ended *exec.ExitError
			if !errors.As(err, &ended) || ended.ExitCode() != c.code {
				t.Errorf("ended with %v, want code %d", err, c.code)
			}
			for _, want := range c.says {
				if !strings.Contains(string(out), want) {
					t.Errorf("it does not say %q:\n%s", want, out)
				}
			}
		})
	}
}

func stop(t *testing.T, l *lab.Lab, machine string) {
	t.Helper()
	killed, err := l.Stop(t.Context(), machine)
	if err != nil || len(killed) > 0 {
		t.Fatalf("stop %s: %v; killed %v", machine, err, killed)
	}
}

func start(t *testing.T, l *lab.Lab, machine string) {
	t.Helper()
	if err := l.Start(t.Context(), machine); err != nil {
		t.Fatal(err)
	}
	waitReady(t, l, machine)
}

func waitReady(t *testing.T, l *lab.Lab, machine string) {
	t.Helper()
	labtest.Eventually(t, 15*time.Second, machine+" is ready", func() bool {
		resp, err := http.Get(url(l, machine, "/readyz"))
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// registered is what a machine's own agent lists.
func registered(t *testing.T, l *lab.Lab, machine string) string {
	t.Helper()
	_, body := call(t, "GET", "http://"+l.Consul(machine)+"/v1/agent/services", "")
	return body
}

// holdings are what the instances of todo have of Vault and MySQL.
type holdings struct{ leases, users, tokens int }

type ledger struct {
	lab  *lab.Lab
	root *sql.DB
}

func newLedger(t *testing.T, l *lab.Lab) *ledger {
	t.Helper()
	root, err := l.MySQL()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return &ledger{l, root}
}

func (v *ledger) count(t *testing.T) (n holdings) {
	t.Helper()
	c, err := v.lab.VaultClient(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list := func(path string) []any {
		s, err := c.Logical().ListWithContext(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if s == nil {
			return nil
		}
		keys, _ := s.Data["keys"].([]any)
		return keys
	}
	n.leases = len(list("sys/leases/lookup/database/creds/todo"))
	for _, accessor := range list("auth/token/accessors") {
		s, err := c.Logical().WriteWithContext(t.Context(), "auth/token/lookup-accessor", map[string]any{"accessor": accessor})
		if err != nil {
			continue // it has ended since it was listed
		}
		if policies := fmt.Sprint(s.Data["policies"]); policies == "[todo]" {
			n.tokens++
		}
	}
	if err := v.root.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM mysql.user WHERE user LIKE 'v-approle-todo-%'").Scan(&n.users); err != nil {
		t.Fatal(err)
	}
	return n
}

func (v *ledger) wait(t *testing.T, what string, ok func(holdings) bool) {
	t.Helper()
	var last holdings
	defer func() {
		if t.Failed() {
			t.Logf("last seen: %+v", last)
		}
	}()
	labtest.Eventually(t, 4*leaseTTL, what, func() bool { last = v.count(t); return ok(last) })
}
