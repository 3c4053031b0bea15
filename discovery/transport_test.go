package discovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/todo/internal/labtest"
)

func TestTransport_SpreadsEvenly(t *testing.T) {
	a, b, c := newBackend(t, nil), newBackend(t, nil), newBackend(t, nil)
	client, _ := clientOf(t, TransportConfig{}, at(hostOf(a.Server), hostOf(b.Server), hostOf(c.Server))...)
	for range 30 {
		if code, body, err := send(t, client, "PUT", "text"); err != nil || code != 200 || body != "todo /path?x=1 text" {
			t.Fatalf("got %d, %q, %v", code, body, err)
		}
	}
	for _, b := range []*backend{a, b, c} {
		if n := b.served.Load(); n != 10 {
			t.Errorf("one served %d of 30", n)
		}
	}
}

func TestTransport_SpreadsEvenlyOverWhatIsLeft(t *testing.T) {
	a, b, c := newBackend(t, nil), newBackend(t, nil), newBackend(t, nil)
	client, _ := clientOf(t, TransportConfig{}, at(hostOf(a.Server), hostOf(b.Server), hostOf(c.Server))...)
	a.Close()
	for range 60 {
		if _, _, err := send(t, client, "GET", ""); err != nil {
			t.Fatal(err)
		}
	}
	if nb, nc := b.served.Load(), c.served.Load(); nb+nc != 60 || nb < 25 || nc < 25 {
		t.Errorf("served %d and %d of 60", nb, nc)
	}
}

// TestTransport_SendsAgainWhatMayBeSentAgain is the table of the package comment's promise.
func TestTransport_SendsAgainWhatMayBeSentAgain(t *testing.T) {
	key := []string{"Idempotency-Key", "k"}
	for _, c := range []struct {
		name   string
		fault  http.HandlerFunc // nil: the instance is not there
		method string
		header []string
		again  bool
		code   int // what the caller gets if not; 0 is an error
	}{
		{"get, nobody there", nil, "GET", nil, true, 0},
		{"post, nobody there: nothing was sent", nil, "POST", nil, true, 0},
		{"get, connection lost", reset, "GET", nil, true, 0},
		{"put, connection lost", reset, "PUT", nil, true, 0},
		{"delete, connection lost", reset, "DELETE", nil, true, 0},
		{"post with key, connection lost", reset, "POST", key, true, 0},
		{"post, connection lost: it may have been done", reset, "POST", nil, false, 0},
		{"patch, connection lost", reset, "PATCH", nil, false, 0},
		{"get, 503", status(503), "GET", nil, true, 0},
		{"post with key, 503", status(503), "POST", key, true, 0},
		{"post, 503: who knows", status(503), "POST", nil, false, 503},
		{"get, 502", status(502), "GET", nil, true, 0},
		{"get, 504", status(504), "GET", nil, true, 0},
		{"get, 500: an answer", status(500), "GET", nil, false, 500},
		{"get, 404: an answer", status(404), "GET", nil, false, 404},
		{"get, 429: an answer", status(429), "GET", nil, false, 429},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad, good := newBackend(t, c.fault), newBackend(t, nil)
			if c.fault == nil {
				bad.Close()
			}
			client, w := clientOf(t, TransportConfig{}, at(hostOf(bad.Server), hostOf(good.Server))...)
			ahead(w, bad)
			body := "text"
			if c.method == "GET" {
				body = ""
			}
			code, text, err := send(t, client, c.method, body, c.header...)
			switch {
			case c.again && (err != nil || code != 200 || text != "todo /path?x=1 "+body || good.served.Load() != 1 || good.attempt.Load() != "2"):
				t.Errorf("not sent again as it was: %d, %q, %v, attempt %v", code, text, err, good.attempt.Load())
			case !c.again && good.served.Load() != 0:
				t.Error("sent again")
			case !c.again && code != c.code:
				t.Errorf("got %d, %v, want %d", code, err, c.code)
			}
		})
	}
}

func TestTransport_DoesNotSendAgainABodyThatIsGone(t *testing.T) {
	bad, good := newBackend(t, reset), newBackend(t, nil)
	client, w := clientOf(t, TransportConfig{}, at(hostOf(bad.Server), hostOf(good.Server))...)
	ahead(w, bad)
	r, _ := http.NewRequestWithContext(t.Context(), "PUT", "http://todo/", io.MultiReader(strings.NewReader("text")))
	if resp, err := client.Do(r); err == nil {
		resp.Body.Close()
		t.Errorf("got %s", resp.Status)
	}
	if good.served.Load() != 0 {
		t.Error("sent again")
	}
}

func TestTransport_NeverAsksAgainForAnAnswerThatBegan(t *testing.T) {
	bad := newBackend(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		fmt.Fprint(w, "half")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	good := newBackend(t, nil)
	client, w := clientOf(t, TransportConfig{}, at(hostOf(bad.Server), hostOf(good.Server))...)
	ahead(w, bad)
	code, body, err := send(t, client, "GET", "")
	if code != 200 || body != "half" || !errors.Is(err, io.ErrUnexpectedEOF) || good.served.Load() != 0 {
		t.Errorf("got %d, %q, %v", code, body, err)
	}
}

func TestTransport_TurnsFromAnInstanceThatDoesNotAnswer(t *testing.T) {
	paused := newBackend(t, hang)
	good := newBackend(t, nil)
	client, w := clientOf(t, TransportConfig{TryTimeout: 50 * time.Millisecond, Timeout: 300 * time.Millisecond}, at(hostOf(paused.Server), hostOf(good.Server))...)
	ahead(w, paused)
	if code, _, err := send(t, client, "GET", ""); code != 200 || err != nil {
		t.Errorf("got %d, %v", code, err)
	}
	for range 10 {
		if _, _, err := send(t, client, "GET", ""); err != nil {
			t.Error(err)
		}
	}
	if n := paused.served.Load(); n != 1 {
		t.Errorf("asked the instance that just failed %d times", n)
	}
	// What may not be sent again is given the whole time, and then an end.
	ahead(w, paused)
	w.take(FromAPI, at(hostOf(paused.Server)), nil)
	began := time.Now()
	_, _, err := send(t, client, "POST", "text")
	var failed *TransportError
	if took := time.Since(began); !errors.As(err, &failed) || failed.NotSent() || !failed.Timeout() || took < 250*time.Millisecond || took > 2*time.Second {
		t.Errorf("after %s: %v", took, err)
	}
}

func TestTransport_IsBoundedInTriesAndTime(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault http.HandlerFunc
		cfg   TransportConfig
		tries int64
		most  time.Duration
	}{
		{"tries", reset, TransportConfig{Tries: 3}, 3, time.Second},
		{"time", reset, TransportConfig{Tries: 1000, Timeout: 300 * time.Millisecond}, 10, time.Second},
		{"tries that hang", hang,
			TransportConfig{TryTimeout: 50 * time.Millisecond, Timeout: 200 * time.Millisecond}, 5, time.Second},
	} {
		b := newBackend(t, c.fault)
		client, _ := clientOf(t, c.cfg, at(hostOf(b.Server))...)
		began := time.Now()
		_, _, err := send(t, client, "PUT", "text")
		took := time.Since(began)
		if err == nil || b.served.Load() < 2 || b.served.Load() > c.tries || took > c.most {
			t.Errorf("%s: %d tries in %s: %v", c.name, b.served.Load(), took, err)
		}
	}
}

func TestTransport_GivesTheCallerTheLastRefusal(t *testing.T) {
	b := newBackend(t, status(503, "Retry-After", "1"))
	client, _ := clientOf(t, TransportConfig{Tries: 2}, at(hostOf(b.Server))...)
	began := time.Now()
	code, body, err := send(t, client, "GET", "")
	if took := time.Since(began); err != nil || code != 503 || body != "503" || b.served.Load() != 2 || took < time.Second {
		t.Errorf("after %s and %d tries: %d, %q, %v", took, b.served.Load(), code, body, err)
	}
	h := status(503, "Retry-After", "4")
	b.handle.Store(&h)
	began = time.Now()
	code, _, err = send(t, client, "GET", "")
	if took := time.Since(began); err != nil || code != 503 || b.served.Load() != 3 || took > 2*time.Second {
		t.Errorf("after %s and %d tries: %d, %v: the wait is the caller's to choose", took, b.served.Load(), code, err)
	}
}

func TestTransport_AvoidsAnInstanceThatCloses(t *testing.T) {
	leaving := newBackend(t, status(200, "Connection", "close"))
	staying := newBackend(t, nil)
	client, w := clientOf(t, TransportConfig{}, at(hostOf(leaving.Server), hostOf(staying.Server))...)
	ahead(w, leaving)
	for range 11 {
		if code, _, err := send(t, client, "GET", ""); code != 200 || err != nil {
			t.Errorf("got %d, %v", code, err)
		}
	}
	if n := leaving.served.Load(); n != 1 {
		t.Errorf("an instance that closes was asked %d times", n)
	}
}

func TestTransport_GoesBackToAnInstanceThatWorksAgain(t *testing.T) {
	a, b := newBackend(t, status(503)), newBackend(t, nil)
	client, _ := clientOf(t, TransportConfig{}, at(hostOf(a.Server), hostOf(b.Server))...)
	for range 4 {
		if code, _, err := send(t, client, "GET", ""); code != 200 || err != nil {
			t.Fatalf("got %d, %v", code, err)
		}
	}
	a.handle.Store(nil)
	n := a.served.Load()
	labtest.Eventually(t, 5*time.Second, "it serves again", func() bool {
		_, _, err := send(t, client, "GET", "")
		return err == nil && a.served.Load() > n+3
	})
}

func TestTransport_SaysThatNothingWasSent(t *testing.T) {
	gone := newBackend(t, nil)
	gone.Close()
	client, w := clientOf(t, TransportConfig{Tries: 3}, at(hostOf(gone.Server))...)
	_, _, err := send(t, client, "POST", "text")
	var failed *TransportError
	if !errors.As(err, &failed) || !failed.NotSent() || len(failed.Tries) != 3 || !strings.Contains(err.Error(), "tried 3 times") {
		t.Errorf("got %v", err)
	}
	if dial, ok := errors.AsType[*net.OpError](err); !ok || dial.Op != "dial" {
		t.Errorf("%v hides its cause", err)
	}
	w.cfg.HoldEmpty = 0
	w.take(FromAPI, nil, nil)
	if _, _, err := send(t, client, "POST", "text"); !errors.Is(err, ErrNoInstances) || !errors.As(err, &failed) || !failed.NotSent() {
		t.Errorf("without an instance: %v", err)
	}
	lost := newBackend(t, reset)
	w.take(FromAPI, at(hostOf(lost.Server)), nil)
	if _, _, err := send(t, client, "POST", "text"); !errors.As(err, &failed) || failed.NotSent() {
		t.Errorf("a request that was sent is called unsent: %v", err)
	}
}

// deafTransport fails without telling any trace.
type deafTransport struct{ calls atomic.Int64 }

func (d *deafTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	d.calls.Add(1)
	closeBody(r)
	return nil, errBroken
}

func TestTransport_TakesAFailureItCannotReadForOneAfterSending(t *testing.T) {
	base := &deafTransport{}
	client, _ := clientOf(t, TransportConfig{Base: base}, at("a:1", "b:1")...)
	if _, _, err := send(t, client, "POST", "text"); !errors.Is(err, errBroken) || base.calls.Load() != 1 {
		t.Errorf("sent %d times: %v", base.calls.Load(), err)
	}
}

func TestTransport_WaitsForTheFirstAnswer(t *testing.T) {
	b := newBackend(t, nil)
	client, w := clientOf(t, TransportConfig{Timeout: time.Second})
	go w.take(FromAPI, at(hostOf(b.Server)), nil)
	if code, _, err := send(t, client, "POST", "text"); code != 200 || err != nil {
		t.Errorf("got %d, %v", code, err)
	}
	client, _ = clientOf(t, TransportConfig{Timeout: 50 * time.Millisecond})
	if _, _, err := send(t, client, "GET", ""); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("got %v", err)
	}
}

func TestTransport_RefusesRequestsForOthers(t *testing.T) {
	client, _ := clientOf(t, TransportConfig{}, at("127.0.0.1:1")...)
	for _, url := range []string{"http://other/", "http://todo:80/", "http://127.0.0.1:1/"} {
		body := &closeNoter{Reader: strings.NewReader("x")}
		r, _ := http.NewRequestWithContext(t.Context(), "POST", url, body)
		if resp, err := client.Do(r); err == nil || !strings.Contains(err.Error(), "in the transport of service todo") {
			t.Errorf("%s: %v, %v", url, resp, err)
		}
		if !body.closed {
			t.Errorf("%s: the body is not closed", url)
		}
	}
}

type closeNoter struct {
	io.Reader
	closed bool
}

func (c *closeNoter) Close() error { c.closed = true; return nil }

func TestTransport_EndsWithTheRequestsContext(t *testing.T) {
	hanging := newBackend(t, hang)
	refusing := newBackend(t, status(503, "Retry-After", "1"))
	for _, b := range []*backend{hanging, refusing} {
		client, _ := clientOf(t, TransportConfig{}, at(hostOf(b.Server))...)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		r, _ := http.NewRequestWithContext(ctx, "GET", "http://todo/", nil)
		began := time.Now()
		resp, err := client.Do(r)
		cancel()
		if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took > time.Second {
			t.Errorf("after %s: %v, %v", took, resp, err)
		}
		transport := client.Transport.(*Transport)
		if b == hanging && transport.avoid.avoids(hostOf(b.Server)) {
			t.Error("an instance is blamed for its caller's impatience")
		}
	}
}

func TestTransport_LosesNoRequestWhileInstancesComeAndGo(t *testing.T) {
	a, b := newBackend(t, nil), newBackend(t, nil)
	client, _ := clientOf(t, TransportConfig{}, at(hostOf(a.Server), hostOf(b.Server))...)
	stop := make(chan struct{})
	var clients sync.WaitGroup
	var sent atomic.Int64
	for range 8 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if code, _, err := send(t, client, "POST", "text", "Idempotency-Key", "k"); code != 200 || err != nil {
					t.Errorf("got %d, %v", code, err)
				}
				sent.Add(1)
			}
		})
	}
	for range 20 {
		n := sent.Load()
		labtest.Eventually(t, 5*time.Second, "requests go on", func() bool { return sent.Load() > n+20 })
		a.CloseClientConnections()
		h := http.HandlerFunc(reset)
		a.handle.Store(&h)
		n = sent.Load()
		labtest.Eventually(t, 5*time.Second, "requests go on", func() bool { return sent.Load() > n+20 })
		a.handle.Store(nil)
	}
	close(stop)
	clients.Wait()
}

func TestTransport_LeavesTheCallersRequestAlone(t *testing.T) {
	bad, good := newBackend(t, reset), newBackend(t, nil)
	client, w := clientOf(t, TransportConfig{}, at(hostOf(bad.Server), hostOf(good.Server))...)
	ahead(w, bad)
	r, _ := http.NewRequestWithContext(t.Context(), "PUT", "http://todo/x", bytes.NewReader([]byte("text")))
	resp, err := client.Transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if r.URL.Host != "todo" || r.Header.Get(AttemptHeader) != "" {
		t.Errorf("the request became %v %v", r.URL, r.Header)
	}
	if resp.Request.URL.Host != "todo" || resp.Request.Header.Get(AttemptHeader) != "2" {
		t.Errorf("the answer's request is %v %v", resp.Request.URL, resp.Request.Header)
	}
}
