package todo

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// serveShort serves h with NewServer's timeouts, made shorter by a factor that leaves a busy machine its time, and returns its address.
func serveShort(t *testing.T, h http.Handler) string {
	t.Helper()
	server := NewServer(h, discard())
	for _, timeout := range []*time.Duration{&server.ReadHeaderTimeout, &server.ReadTimeout, &server.WriteTimeout, &server.IdleTimeout} {
		if *timeout <= 0 {
			t.Fatal("a timeout is missing")
		}
		*timeout /= 20
	}
	server.IdleTimeout /= 4
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

// untilClosed sends text, then reads until the server closes the connection, which it must do within a generous while.
func untilClosed(t *testing.T, address, text string) string {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the connection is still held after 10 s; read %q", answer)
	}
	return string(answer)
}

func TestServer_LetsNoClientHoldAConnection(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	address := serveShort(t, newBareHandler(t, store))
	for name, test := range map[string]struct{ sent, answer string }{
		"silent":           {"", ""},
		"half a header":    {"GET /todo HTTP/1.1\r\nHost: x\r\n", ""},
		"idle after one":   {"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200"},
		"oversized header": {"GET /todo HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", "HTTP/1.1 431"},
	} {
		if got := untilClosed(t, address, test.sent); !strings.HasPrefix(got, test.answer) || test.answer == "" && strings.HasPrefix(got, "HTTP/1.1 2") {
			t.Errorf("%s: answered %q", name, got)
		}
	}
	if len(store.todos) != 0 {
		t.Errorf("stored %v", store.todos)
	}
}

func TestServer_TellsAClientThatItsBodyIsTooSlow(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	h := newBareHandler(t, store)
	got := untilClosed(t, serveShort(t, h), "POST /todo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"content\":\"x\"}")
	if !strings.HasPrefix(got, "HTTP/1.1 408") || !strings.Contains(got, `"code":"body_timeout"`) || !strings.Contains(got, "Connection: close") {
		t.Errorf("answered %q", got)
	}
	if len(store.todos) != 0 {
		t.Errorf("stored %v", store.todos)
	}
}

func TestServer_LetsNobodyReadAListForEver(t *testing.T) {
	t.Parallel()
	store := newFakeStore()
	for range 16 * pageSize { // 16 MiB, more than the kernel's buffers take.
		store.add(Draft{"new", strings.Repeat("x", MaxContentLength)})
	}
	done := make(chan struct{})
	h := newBareHandler(t, store)
	address := serveShort(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(done)
		h.ServeHTTP(w, r)
	}))
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /todo HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	select { // Without reading.
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the handler still writes to a client that does not read")
	}
}

func TestServer_ClosesAfterRefusingABodyThatIsTooLarge(t *testing.T) {
	t.Parallel()
	address := serveShort(t, newBareHandler(t, newFakeStore()))
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "POST /todo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusRequestEntityTooLarge || !answer.Close {
		t.Errorf("answered %d, close %v", answer.StatusCode, answer.Close)
	}
}

// A client that sends all before it reads must not lose the answer because the server closes meanwhile.
func TestServer_LetsAClientSendOnAfterItsBodyWasRefused(t *testing.T) {
	address := serveShort(t, newBareHandler(t, newFakeStore()))
	most := 0
	for range 5 { // a long pause of this process looks like the fault
		if most = max(most, sendOn(t, address)); most > 10 {
			return
		}
	}
	t.Errorf("the connection was closed while the client sent: it could send on %d times, a hundredth of a second apart", most)
}

// sendOn sends a body that is too large, and goes on after the answer. It returns how often it could.
func sendOn(t *testing.T, address string) (times int) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const limit = 1 << 20
	request := "POST /todo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 8388608\r\n\r\n" + strings.Repeat("x", limit+1)
	if _, err := io.WriteString(c, request); err != nil {
		t.Log(err)
		return 0
	}
	answer, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 413 ") {
		t.Logf("%q, %v", answer, err)
		return 0
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		if _, err := c.Write(make([]byte, 1<<10)); err != nil {
			break
		}
		times++
	}
	return times
}
