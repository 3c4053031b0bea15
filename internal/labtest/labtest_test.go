package labtest

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"testing"

	"example.com/todo/internal/lab"
	"go.uber.org/goleak"
)

// leaveBehind makes this test program start a lab, say where, and wait to be killed.
const leaveBehind = "LABTEST_LEAVE_BEHIND"

func TestMain(m *testing.M) {
	if os.Getenv(leaveBehind) != "" {
		beLeft()
	}
	goleak.VerifyTestMain(m)
}

func beLeft() {
	r, err := open(Options{})
	if err == nil {
		err = r.up()
	}
	if err != nil {
		os.Stdout.WriteString("error " + err.Error() + "\n")
		os.Exit(1)
	}
	os.Stdout.WriteString("up " + r.lab.Net() + " " + r.lab.Dir() + "\n")
	select {}
}

func TestClaimNetwork_GivesEachLabItsOwn(t *testing.T) {
	seen := map[string]bool{}
	for range 3 {
		c, err := claimNetwork()
		if err != nil {
			t.Fatal(err)
		}
		defer c.release()
		if seen[c.network] {
			t.Errorf("%s was given twice", c.network)
		}
		seen[c.network] = true
	}
}

func TestStart_TakesAwayTheLabOfATestThatDied(t *testing.T) {
	skipShort(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), leaveBehind+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	what := strings.Fields(line)
	if err != nil || len(what) != 3 || what[0] != "up" {
		_ = cmd.Process.Kill()
		t.Fatalf("the other test says %q, %v", line, err)
	}
	network, dir := what[1], what[2]
	if used, err := lab.InUse(network); err != nil || !used {
		t.Errorf("nobody listens in %s: %v", network, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed

	Start(t, Options{Down: true})
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("%s is still there", dir)
	}
	// Another process may have taken the network by now, but not the directory of a lab that we removed: so nothing of
	// the dead lab can run if its directory's name runs nowhere.
	l, err := lab.Open(lab.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if l.Exists() {
		t.Error("the dead test's lab still exists")
	}
}

func TestStart_StartsWhatIsAskedForAndNoMore(t *testing.T) {
	l := Start(t, Options{MySQL: 1})
	if c := l.Counts(); c != (lab.Counts{Consul: 1, MySQL: 1}) {
		t.Errorf("got %+v", c)
	}
	db, err := l.MySQL()
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.PingContext(t.Context()); err != nil {
		t.Error(err)
	}
	if b, err := l.Status(t.Context()); err != nil || !b.Healthy || len(b.Problems) > 0 {
		t.Errorf("%q, %v", b.Problems, err)
	}
}
