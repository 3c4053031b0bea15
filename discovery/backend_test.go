package discovery

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
)

// backend is an instance that answers as told and counts.
type backend struct {
	*httptest.Server
	served  atomic.Int64
	attempt atomic.Value
	handle  atomic.Pointer[http.HandlerFunc] // nil: 200 with the body it got
}

func newBackend(t testing.TB, h http.HandlerFunc) *backend {
	b := &backend{}
	if h != nil {
		b.handle.Store(&h)
	}
	b.Server = serve(t, func(w http.ResponseWriter, r *http.Request) {
		b.served.Add(1)
		b.attempt.Store(r.Header.Get(AttemptHeader))
		if h := b.handle.Load(); h != nil {
			(*h)(w, r)
			return
		}
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", r.Host, r.URL, body)
	})
	return b
}

func clientOf(t testing.TB, cfg TransportConfig, all ...Instance) (*http.Client, *Watch) {
	t.Helper()
	w := newWatch(t, Config{}, all...)
	transport, err := NewTransport(w, cfg)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: transport}
	t.Cleanup(client.CloseIdleConnections)
	return client, w
}

// ahead makes b the next that is picked.
func ahead(w *Watch, b *backend) {
	s := w.current.Load()
	at := slices.IndexFunc(s.usable, func(i Instance) bool { return i.Addr == hostOf(b.Server) })
	w.turn.Store(uint64(at+len(s.usable)) - 1)
}

func send(t testing.TB, c *http.Client, method, body string, header ...string) (int, string, error) {
	t.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, "http://todo/path?x=1", reader)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(got), err
}

func reset(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// hang takes the whole request, so that the server notices when its client goes, and does not answer.
func hang(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

func status(code int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
		fmt.Fprint(w, code)
	}
}
