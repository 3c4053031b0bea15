package discovery

import (
	"strings"
	"testing"
	"time"
)

func TestUsable_GivesPassingElseWarningAndNothingElse(t *testing.T) {
	i := func(addr string, h Health) Instance { return Instance{Addr: addr, Health: h} }
	for _, c := range []struct {
		name string
		all  []Instance
		want string
	}{
		{"nothing", nil, ""},
		{"passing before warning", []Instance{i("a:1", Passing), i("b:1", Warning)}, "a:1"},
		{"warning if nothing passes", []Instance{i("a:1", Critical), i("b:1", Warning)}, "b:1"},
		{"critical never", []Instance{i("a:1", Critical)}, ""},
		{"maintenance never", []Instance{i("a:1", Maintenance), i("b:1", Warning)}, "b:1"},
		{"unknown, as through dns, is passing", []Instance{i("a:1", Unknown)}, "a:1"},
		{"an address once", []Instance{i("a:1", Passing), i("a:1", Passing), i("b:1", Passing)}, "a:1 b:1"},
		{"an address whose old entry is critical", []Instance{i("a:1", Critical), i("a:1", Passing)}, "a:1"},
	} {
		if got := addrs(usable(c.all)); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestJoinAddr_TakesOnlyWhatCanBeDialled(t *testing.T) {
	for _, c := range []struct {
		host string
		port int
		want string
	}{
		{"10.0.0.1", 80, "10.0.0.1:80"},
		{"fd00::1", 80, "[fd00::1]:80"},
		{"db.example.com", 3306, "db.example.com:3306"},
		{"10.0.0.1", 0, ""},
		{"10.0.0.1", -1, ""},
		{"10.0.0.1", 65536, ""},
		{"", 80, ""},
		{"a/b", 80, ""},
		{"a b", 80, ""},
		{"user@host", 80, ""},
		{"host:80", 80, ""},
		{"host\x00", 80, ""},
		{strings.Repeat("a", 300), 80, ""},
	} {
		if got := joinAddr(c.host, c.port); got != c.want {
			t.Errorf("joinAddr(%q, %d) = %q, want %q", c.host, c.port, got, c.want)
		}
	}
}

func TestConfig_DefaultsToTheLocalAgent(t *testing.T) {
	c, err := Config{}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if c.Agent != "http://127.0.0.1:8500" || c.DNS != "127.0.0.1:8600" || c.Mode != Auto || c.Domain != "consul" {
		t.Errorf("got %+v", c)
	}
	c, err = Config{Agent: "https://[fd00::1]:8501/", Domain: "lab.consul."}.withDefaults()
	if err != nil || c.Agent != "https://[fd00::1]:8501" || c.DNS != "[fd00::1]:8600" || c.Domain != "lab.consul" {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestConfig_SaysWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{Agent: "localhost"}, "want host:port"},
		{Config{Agent: "ftp://localhost:1"}, "want host:port"},
		{Config{Agent: "http://user:secret@localhost:1"}, "want host:port"},
		{Config{Agent: "http://localhost:1/path"}, "want host:port"},
		{Config{Agent: ":8500"}, "want host:port"},
		{Config{DNS: "127.0.0.1"}, "want host:port"},
		{Config{Domain: "a b"}, "not a domain"},
		{Config{Mode: "guess"}, "want auto, api or dns"},
		{Config{Wait: time.Hour}, "want 1s to 10m"},
		{Config{Poll: time.Microsecond}, "want 10ms"},
	} {
		if _, err := NewWatch(c.cfg, "todo"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: got %v, want …%s…", c.cfg, err, c.want)
		}
	}
	for _, name := range []string{"", "a.b", "a/b", "-a", "ä", strings.Repeat("a", 64)} {
		if _, err := NewWatch(Config{}, name); err == nil {
			t.Errorf("service name %q is accepted", name)
		}
	}
}

func TestBackoff_DoublesJittersAndStartsAgain(t *testing.T) {
	b := backoff{first: 100 * time.Millisecond, most: time.Second}
	for round := range 2 {
		for _, most := range []time.Duration{100, 200, 400, 800, 1000, 1000} {
			most *= time.Millisecond
			if got := b.next(); got < most/2 || got > most {
				t.Errorf("round %d: %s is not between %s and %s", round, got, most/2, most)
			}
		}
		b.reset()
	}
}

func TestJitter_StaysInTheUpperHalf(t *testing.T) {
	for _, d := range []time.Duration{-time.Second, 0, 1, 2, 3, time.Second} {
		for range 100 {
			if got := jitter(d); got < 0 || got > max(d, 0) || got < d/2 {
				t.Fatalf("jitter(%d) = %d", d, got)
			}
		}
	}
}
