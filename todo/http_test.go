package todo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// TestAPI_KeepsTheContractOf2015 walks the table in the order in which a client would.
func TestAPI_KeepsTheContractOf2015(t *testing.T) {
	s := newService(t, newFakeStore())
	const form = "application/x-www-form-urlencoded"
	for _, step := range []struct {
		method, target, body string
		status               int
		answer               string
		location             string
	}{
		{"GET", "/todo", "", 200, "[]\n", ""},
		{"POST", "/todo", `{"status":"new","content":"buy <milk> & 日本"}`, 201, `{"id":1,"status":"new","content":"buy <milk> & 日本"}` + "\n", "todo/1"},
		{"POST", "/todo", `{"id":77,"status":"old","content":"x"}`, 201, `{"id":2,"status":"old","content":"x"}` + "\n", "todo/2"},
		{"POST", "/todo", `{"content":"no status"}`, 201, `{"id":3,"status":"new","content":"no status"}` + "\n", "todo/3"},
		{"GET", "/todo/1", "", 200, `{"id":1,"status":"new","content":"buy <milk> & 日本"}` + "\n", ""},
		{"PUT", "/todo/2", `{"id":99,"status":"done","content":"y"}`, 200, `{"id":2,"status":"done","content":"y"}` + "\n", ""},
		{"PUT", "/todo/2", `{"id":99,"status":"done","content":"y"}`, 200, `{"id":2,"status":"done","content":"y"}` + "\n", ""},
		{"DELETE", "/todo/1", "", 204, "", ""},
		{"GET", "/todo", "", 200, `[{"id":2,"status":"done","content":"y"},{"id":3,"status":"new","content":"no status"}]` + "\n", ""},
		{"GET", "/todo/", "", 200, `[{"id":2,"status":"done","content":"y"},{"id":3,"status":"new","content":"no status"}]` + "\n", ""},
		{"GET", "/todo?after=2", "", 200, `[{"id":3,"status":"new","content":"no status"}]` + "\n", ""},
		{"GET", "/todo?limit=1", "", 200, `[{"id":2,"status":"done","content":"y"}]` + "\n", ""},
		{"POST", "/todo/", `{"content":"slash"}`, 201, `{"id":4,"status":"new","content":"slash"}` + "\n", "todo/4"},
		{"GET", "/todo/4/", "", 200, `{"id":4,"status":"new","content":"slash"}` + "\n", ""},
	} {
		w := s.ask(t, step.method, step.target, step.body, "Content-Type", form)
		if w.Code != step.status || w.Body.String() != step.answer || w.Header().Get("Location") != step.location {
			t.Errorf("%s %s %s: %d %q %s, want %d %q %s", step.method, step.target, step.body,
				w.Code, w.Header().Get("Location"), w.Body, step.status, step.location, step.answer)
		}
	}
}

func TestAPI_AnswersBadInputWithWhatWasWrong(t *testing.T) {
	const good = `{"status":"new","content":"x"}`
	long := func(n int) string { return strings.Repeat("x", n) }
	for _, test := range []struct {
		name, method, target, body string
		status                     int
		code, field                string
		headers                    []string
	}{
		{"empty body", "POST", "/todo", "", 400, "not_json", "", nil},
		{"not JSON", "POST", "/todo", "milk", 400, "not_json", "", nil},
		{"a form", "POST", "/todo", "status=new&content=x", 400, "not_json", "", []string{"Content-Type", "application/x-www-form-urlencoded"}},
		{"not an object", "POST", "/todo", "[]", 400, "not_json", "", nil},
		{"trailing data", "POST", "/todo", good + good, 400, "not_json", "", nil},
		{"not UTF-8", "POST", "/todo", "{\"content\":\"\xff\"}", 400, "not_json", "", nil},
		{"wrong type", "POST", "/todo", `{"status":"new","content":1}`, 400, "invalid", "content", nil},
		{"null", "POST", "/todo", `{"status":null,"content":"x"}`, 400, "invalid", "status", nil},
		{"unknown field", "POST", "/todo", `{"content":"x","due":"now"}`, 400, "invalid", "due", nil},
		{"field twice", "POST", "/todo", `{"content":"x","content":"y"}`, 400, "invalid", "content", nil},
		{"no content", "POST", "/todo", `{"status":"new"}`, 400, "invalid", "content", nil},
		{"empty content", "POST", "/todo", `{"status":"new","content":""}`, 400, "invalid", "content", nil},
		{"blank content", "POST", "/todo", `{"status":"new","content":"  "}`, 400, "invalid", "content", nil},
		{"over-long content", "POST", "/todo", `{"content":"` + long(MaxContentLength+1) + `"}`, 400, "invalid", "content", nil},
		{"over-long status", "POST", "/todo", `{"status":"` + long(MaxStatusLength+1) + `","content":"x"}`, 400, "invalid", "status", nil},
		{"id of a wrong type", "POST", "/todo", `{"id":"1","content":"x"}`, 400, "invalid", "id", nil},
		{"PUT without status", "PUT", "/todo/1", `{"content":"x"}`, 400, "invalid", "status", nil},
		{"PUT not JSON", "PUT", "/todo/1", `{`, 400, "not_json", "", nil},
		{"id no number, GET", "GET", "/todo/one", "", 400, "invalid", "id", nil},
		{"id no number, PUT", "PUT", "/todo/one", good, 400, "invalid", "id", nil},
		{"id no number, DELETE", "DELETE", "/todo/one", "", 400, "invalid", "id", nil},
		{"id zero", "GET", "/todo/0", "", 400, "invalid", "id", nil},
		{"id negative", "GET", "/todo/-1", "", 400, "invalid", "id", nil},
		{"id out of range", "GET", "/todo/9223372036854775808", "", 400, "invalid", "id", nil},
		{"unknown id, GET", "GET", "/todo/99", "", 404, "not_found", "", nil},
		{"unknown id, PUT", "PUT", "/todo/99", good, 404, "not_found", "", nil},
		{"unknown id, DELETE", "DELETE", "/todo/99", "", 404, "not_found", "", nil},
		{"unknown path", "GET", "/todos", "", 404, "no_such_path", "", nil},
		{"path below a todo", "GET", "/todo/1/x", "", 404, "no_such_path", "", nil},
		{"root", "GET", "/", "", 404, "no_such_path", "", nil},
		{"double slash", "POST", "//todo", good, 404, "no_such_path", "", nil},
		{"dots in the path", "GET", "/x/../todo", "", 404, "no_such_path", "", nil},
		{"body over 1 MiB", "POST", "/todo", `{"content":"` + long(1<<20) + `"}`, 413, "body_too_large", "", nil},
		{"body over 1 MiB, PUT", "PUT", "/todo/1", long(1<<20 + 1), 413, "body_too_large", "", nil},
		{"XML", "POST", "/todo", good, 415, "unsupported_media_type", "", []string{"Content-Type", "application/xml"}},
		{"plain text", "PUT", "/todo/1", good, 415, "unsupported_media_type", "", []string{"Content-Type", "text/plain; charset=utf-8"}},
		{"multipart", "POST", "/todo", good, 415, "unsupported_media_type", "", []string{"Content-Type", "multipart/form-data; boundary=x"}},
		{"garbled content type", "POST", "/todo", good, 415, "unsupported_media_type", "", []string{"Content-Type", "json;;="}},
		{"another charset", "POST", "/todo", good, 415, "unsupported_media_type", "", []string{"Content-Type", "application/json; charset=latin1"}},
		{"compressed", "POST", "/todo", good, 415, "unsupported_media_type", "", []string{"Content-Encoding", "gzip"}},
		{"empty key", "POST", "/todo", good, 400, "invalid", "Idempotency-Key", []string{"Idempotency-Key", ""}},
		{"long key", "POST", "/todo", good, 400, "invalid", "Idempotency-Key", []string{"Idempotency-Key", long(256)}},
		{"key not ASCII", "POST", "/todo", good, 400, "invalid", "Idempotency-Key", []string{"Idempotency-Key", "é"}},
		{"two keys", "POST", "/todo", good, 400, "invalid", "Idempotency-Key", []string{"Idempotency-Key", "a", "Idempotency-Key", "b"}},
		{"key not ASCII, PUT", "PUT", "/todo/1", good, 400, "invalid", "Idempotency-Key", []string{"Idempotency-Key", "é"}},
		{"long key, DELETE", "DELETE", "/todo/1", "", 400, "invalid", "Idempotency-Key", []string{"Idempotency-Key", long(256)}},
		{"after no number", "GET", "/todo?after=x", "", 400, "invalid", "after", nil},
		{"after negative", "GET", "/todo?after=-1", "", 400, "invalid", "after", nil},
		{"limit zero", "GET", "/todo?limit=0", "", 400, "invalid", "limit", nil},
		{"limit too high", "GET", "/todo?limit=1001", "", 400, "invalid", "limit", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			store := newFakeStore("first")
			s := newService(t, store)
			r := newRequest(test.method, test.target, test.body, test.headers...)
			switch test.name {
			case "field twice", "trailing data", "not UTF-8", "two keys", "empty key":
				r = beyondSchema(r)
			}
			w := s.send(r)
			detail := wantError(t, w, test.status, test.code)
			if detail.Field != test.field || detail.Retryable {
				t.Errorf("field %q, want %q: %s", detail.Field, test.field, w.Body)
			}
			if test.code != "not_found" && store.calls != 0 {
				t.Error("the store was called")
			}
			if len(store.todos) != 1 || store.todos[1].Content != "first" {
				t.Errorf("todos were touched: %v", store.todos)
			}
		})
	}
}

func TestAPI_TakesEveryContentTypeThatIsNotPlainlyWrong(t *testing.T) {
	for _, contentType := range []string{
		"", "application/json", "application/json; charset=UTF-8", "Application/JSON", "text/json", "application/vnd.todo+json",
		"application/x-www-form-urlencoded", "application/x-www-form-urlencoded; charset=utf-8",
	} {
		headers := []string{"Content-Type", contentType}
		if contentType == "" {
			headers = nil
		}
		if w := newService(t, newFakeStore()).ask(t, "POST", "/todo", `{"content":"x"}`, headers...); w.Code != http.StatusCreated {
			t.Errorf("%q: %d %s", contentType, w.Code, w.Body)
		}
	}
}

func TestAPI_TakesABodyOfExactlyOneMiB(t *testing.T) {
	body := `{"content":"x"}`
	body += strings.Repeat(" ", 1<<20-len(body))
	s := newService(t, newFakeStore())
	if w := s.ask(t, "POST", "/todo", body); w.Code != http.StatusCreated {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	wantError(t, s.ask(t, "POST", "/todo", body+" "), http.StatusRequestEntityTooLarge, codeBodyTooLarge)

	undeclared := newRequest("POST", "/todo", "")
	undeclared.Body, undeclared.ContentLength = io.NopCloser(strings.NewReader(body+" ")), -1
	wantError(t, s.send(undeclared), http.StatusRequestEntityTooLarge, codeBodyTooLarge)
}

func TestAPI_StoresNothingOfABodyThatBreaksOff(t *testing.T) {
	store := newFakeStore()
	r := newRequest("POST", "/todo", "")
	r.Body = io.NopCloser(io.MultiReader(strings.NewReader(`{"content":"x"}`), iotest.ErrReader(io.ErrUnexpectedEOF)))
	h := newBareHandler(t, store)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	wantError(t, w, http.StatusBadRequest, codeBodyIncomplete)
	if len(store.todos) != 0 {
		t.Errorf("stored %v", store.todos)
	}
}

func TestAPI_NamesTheMethodsThatAPathHas(t *testing.T) {
	s := newService(t, newFakeStore())
	for path, allow := range map[string]string{
		"/todo":    "GET, HEAD, POST",
		"/todo/":   "GET, HEAD, POST",
		"/todo/1":  "GET, HEAD, PUT, DELETE",
		"/health":  "GET, HEAD",
		"/livez":   "GET, HEAD",
		"/readyz":  "GET, HEAD",
		"/metrics": "GET, HEAD",
	} {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"} {
			if strings.Contains(allow, method) {
				continue
			}
			w := s.ask(t, method, path, "")
			wantError(t, w, http.StatusMethodNotAllowed, codeMethodNotAllowed)
			if got := w.Header().Get("Allow"); got != allow {
				t.Errorf("%s %s: Allow %q, want %q", method, path, got, allow)
			}
		}
	}
}

func TestAPI_HeadIsGetWithoutABody(t *testing.T) {
	server := httptest.NewServer(newService(t, newFakeStore("x")))
	defer server.Close()
	for path, status := range map[string]int{"/todo": 200, "/todo/1": 200, "/todo/9": 404, "/todo/x": 400, "/health": 200, "/openapi.yaml": 200} {
		answer, err := server.Client().Head(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		if err != nil || answer.Body.Close() != nil {
			t.Fatal(err)
		}
		if answer.StatusCode != status || len(body) != 0 || answer.ContentLength <= 0 {
			t.Errorf("HEAD %s: %d, %d bytes of body, length %d", path, answer.StatusCode, len(body), answer.ContentLength)
		}
	}
}

func TestAPI_CreatesOncePerIdempotencyKey(t *testing.T) {
	store := newFakeStore()
	s := newService(t, store)
	first := s.ask(t, "POST", "/todo", `{"content":"x"}`, "Idempotency-Key", "k")
	again := s.ask(t, "POST", "/todo", `{"status":"new","content":"x"}`, "Idempotency-Key", "k")
	if first.Code != 201 || again.Code != 201 || again.Body.String() != first.Body.String() || again.Header().Get("Location") != "todo/1" {
		t.Errorf("%d %s, then %d %s", first.Code, first.Body, again.Code, again.Body)
	}
	wantError(t, s.ask(t, "POST", "/todo", `{"content":"y"}`, "Idempotency-Key", "k"), http.StatusUnprocessableEntity, codeKeyReused)
	if len(store.todos) != 1 {
		t.Errorf("todos %v", store.todos)
	}
}

func TestAPI_ReplacesAndDeletesOncePerIdempotencyKey(t *testing.T) {
	store := newFakeStore("a", "b")
	s := newService(t, store)
	ask := func(method, target, body, key string) *httptest.ResponseRecorder {
		return s.ask(t, method, target, body, "Idempotency-Key", key)
	}
	const first, second = `{"status":"1","content":"x"}`, `{"status":"2","content":"x"}`
	one := ask("PUT", "/todo/1", first, "p")
	two := ask("PUT", "/todo/1", second, "q")
	again := ask("PUT", "/todo/1", first, "p")
	if one.Code != 200 || two.Code != 200 || again.Code != 200 || again.Body.String() != one.Body.String() || store.todos[1].Status != "2" {
		t.Errorf("%d, %d, %d %s; saved: %v", one.Code, two.Code, again.Code, again.Body, store.todos[1])
	}
	for range 2 {
		if w := ask("DELETE", "/todo/1", "", "d"); w.Code != http.StatusNoContent {
			t.Errorf("delete: %d %s", w.Code, w.Body)
		}
	}
	for _, other := range []*httptest.ResponseRecorder{
		ask("PUT", "/todo/2", first, "p"), ask("PUT", "/todo/1", second, "p"), ask("POST", "/todo", first, "p"),
		ask("DELETE", "/todo/1", "", "p"), ask("DELETE", "/todo/2", "", "d"),
	} {
		wantError(t, other, http.StatusUnprocessableEntity, codeKeyReused)
	}
	wantError(t, ask("DELETE", "/todo/1", "", "e"), http.StatusNotFound, codeNotFound)
}

func TestAPI_SaysWhetherAFailedRequestMayBeSentAgain(t *testing.T) {
	const body = `{"status":"new","content":"x"}`
	key := []string{"Idempotency-Key", "k"}
	for _, test := range []struct {
		name, method, target, body string
		headers                    []string
		err                        error
		status                     int
		code                       string
		retryable                  bool
	}{
		{"read", "GET", "/todo/1", "", nil, ErrUnavailable, 503, codeUnavailable, true},
		{"list", "GET", "/todo", "", nil, ErrUnavailable, 503, codeUnavailable, true},
		{"refused create", "POST", "/todo", body, nil, ErrUnavailable, 503, codeUnavailable, true},
		{"lost create", "POST", "/todo", body, nil, ErrOutcomeUnknown, 503, codeOutcomeUnknown, false},
		{"lost create with a key", "POST", "/todo", body, key, ErrOutcomeUnknown, 503, codeOutcomeUnknown, true},
		{"lost update", "PUT", "/todo/1", body, nil, ErrOutcomeUnknown, 503, codeOutcomeUnknown, true},
		{"lost delete", "DELETE", "/todo/1", "", nil, ErrOutcomeUnknown, 503, codeOutcomeUnknown, true},
		{"defect", "GET", "/todo/1", "", nil, errors.New("secret detail"), 500, codeInternal, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			store := newFakeStore("x")
			store.fail = func(context.Context) error { return fmt.Errorf("secret detail: %w", test.err) }
			s := newService(t, store)
			w := s.ask(t, test.method, test.target, test.body, test.headers...)
			if detail := wantError(t, w, test.status, test.code); detail.Retryable != test.retryable {
				t.Errorf("retryable %v: %s", detail.Retryable, w.Body)
			}
			if got := w.Header().Get("Retry-After"); (got != "") != (test.status == 503) {
				t.Errorf("Retry-After %q", got)
			}
			if strings.Contains(w.Body.String(), "secret detail") {
				t.Errorf("the cause is shown: %s", w.Body)
			}
			if record := s.records(t)[0]; record["level"] != "ERROR" || !strings.Contains(fmt.Sprint(record["error"]), "secret detail") {
				t.Errorf("the cause is not logged: %v", record)
			}
		})
	}
}

func TestAPI_WaitsForTheStoreOnlyUntilItsDeadline(t *testing.T) {
	store := newFakeStore("x")
	store.fail = func(ctx context.Context) error {
		<-ctx.Done()
		return fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	}
	s := newService(t, store, func(c *HandlerConfig) { c.StoreTimeout = time.Millisecond })
	for _, r := range []*http.Request{
		newRequest("GET", "/todo", ""), newRequest("GET", "/todo/1", ""), newRequest("DELETE", "/todo/1", ""),
		newRequest("POST", "/todo", `{"content":"x"}`), newRequest("PUT", "/todo/1", `{"status":"s","content":"x"}`),
	} {
		wantError(t, s.send(r), http.StatusServiceUnavailable, codeUnavailable)
	}
}

func TestList_IsWholeAndInOrderAtAnySize(t *testing.T) {
	for _, n := range []int{pageSize - 1, pageSize, pageSize + 1, 3*pageSize + 7} {
		store := newFakeStore()
		for range n {
			store.add(Draft{"new", strings.Repeat("x", MaxContentLength)}) // So that the longest one is streamed.
		}
		w := newService(t, store).ask(t, "GET", "/todo", "")
		var todos []Todo
		if err := json.Unmarshal(w.Body.Bytes(), &todos); err != nil || len(todos) != n {
			t.Fatalf("%d todos: got %d, %v", n, len(todos), err)
		}
		for i, todo := range todos {
			if todo.ID != int64(i+1) {
				t.Fatalf("todo %d at place %d", todo.ID, i)
			}
		}
	}
}

func TestList_AsksForNoMoreThanItsLimit(t *testing.T) {
	store := newFakeStore()
	for range 2 * pageSize {
		store.add(Draft{"new", "x"})
	}
	for _, limit := range []int{1, pageSize, pageSize + 1} {
		w := newService(t, store).ask(t, "GET", fmt.Sprintf("/todo?after=5&limit=%d", limit), "")
		var todos []Todo
		if err := json.Unmarshal(w.Body.Bytes(), &todos); err != nil || len(todos) != limit || todos[0].ID != 6 {
			t.Errorf("limit %d: got %d, %v", limit, len(todos), err)
		}
	}
}

// brokenList fails on the page after which id.
type brokenList struct {
	*fakeStore
	at int64
}

func (b brokenList) List(ctx context.Context, after int64, limit int) ([]Todo, error) {
	if after >= b.at {
		return nil, ErrUnavailable
	}
	return b.fakeStore.List(ctx, after, limit)
}

func TestList_ThatBreaksOffBeforeAnythingWasSentIsAnError(t *testing.T) {
	store := newFakeStore(make([]string, 2*pageSize)...)
	wantError(t, newService(t, brokenList{store, pageSize}).ask(t, "GET", "/todo", ""), http.StatusServiceUnavailable, codeUnavailable)
}

func TestList_ThatBreaksOffLaterIsNeverTakenForAWhole(t *testing.T) {
	store := newFakeStore()
	for range 4 * pageSize {
		store.add(Draft{"new", strings.Repeat("x", MaxContentLength)})
	}
	h := newBareHandler(t, brokenList{store, 3 * pageSize})
	server := httptest.NewServer(h)
	defer server.Close()
	answer, err := server.Client().Get(server.URL + "/todo")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil || json.Valid(body) || len(body) == 0 {
		t.Errorf("read %d bytes, error %v, valid %v", len(body), err, json.Valid(body))
	}
}

func TestNewHandler_SaysWhatIsMissing(t *testing.T) {
	for name, config := range map[string]HandlerConfig{
		"Store":  {Health: passing, Logger: discard()},
		"Health": {Store: newFakeStore(), Logger: discard()},
		"Logger": {Store: newFakeStore(), Health: passing},
	} {
		if _, err := NewHandler(config); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: %v", name, err)
		}
	}
}
