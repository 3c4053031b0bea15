package todo

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestDecode_TellsTodosFromEverythingElse(t *testing.T) {
	for _, test := range []struct {
		body    string
		post    string // What a POST's draft is, or which field is wrong, or "not JSON".
		put     string // Likewise, "=" for the same.
		comment string
	}{
		{`{"status":"new","content":"milk"}`, "{new milk}", "=", ""},
		{`{"id":7,"status":"new","content":"milk"}`, "{new milk}", "=", "the original client sent the whole todo"},
		{" {\"content\":\"milk\",\n\"status\":\"a b\"} \n", "{a b milk}", "=", ""},
		{`{"content":"milk"}`, "{new milk}", "status", "only a POST has a default"},
		{`{"status":"new"}`, "content", "=", ""},
		{`{}`, "content", "status", ""},
		{`{"status":"","content":"milk"}`, "status", "=", "empty is not missing"},
		{`{"status":null,"content":"milk"}`, "status", "=", "null is not missing"},
		{`{"status":"new","content":""}`, "content", "=", ""},
		{`{"status":"new","content":null}`, "content", "=", ""},
		{`{"status":"new","content":7}`, "content", "=", ""},
		{`{"status":"new","content":["milk"]}`, "content", "=", ""},
		{`{"status":true,"content":"milk"}`, "status", "=", ""},
		{`{"status":{},"content":"milk"}`, "status", "=", ""},
		{`{"id":"7","status":"new","content":"milk"}`, "id", "=", ""},
		{`{"id":7.5,"status":"new","content":"milk"}`, "id", "=", ""},
		{`{"id":null,"status":"new","content":"milk"}`, "id", "=", ""},
		{`{"id":99999999999999999999,"status":"new","content":"milk"}`, "id", "=", ""},
		{`{"status":"new","content":"milk","due":"today"}`, "due", "=", ""},
		{`{"Status":"new","content":"milk"}`, "Status", "=", "names are exact"},
		{`{"status":"new","content":"a","content":"b"}`, "content", "=", "which one counts?"},
		{`{"status":"new","content":"` + strings.Repeat("x", MaxContentLength+1) + `"}`, "content", "=", ""},
		{`{"status":"new","content":"\ud83d\ude42 \\ud800 \\"}`, `{new 🙂 \ud800 \}`, "=", "an escaped backslash begins no escape"},
		{`{"status":"new","content":"\ud800"}`, "not JSON", "=", "half a character"},
		{`{"status":"new","content":"\udc00\ud800"}`, "not JSON", "=", "halves in the wrong order"},
		{`{"status":"new","content":"\ud800\u0041"}`, "not JSON", "=", "half a character"},
		{"{\"status\":\"new\",\"content\":\"\xff\"}", "not JSON", "=", "not UTF-8"},
		{"\xef\xbb\xbf{}", "not JSON", "=", "byte order mark"},
		{``, "not JSON", "=", ""},
		{" \n", "not JSON", "=", ""},
		{`milk`, "not JSON", "=", ""},
		{`status=new&content=milk`, "not JSON", "=", "a real form"},
		{`{"status":"new","content":"milk"`, "not JSON", "=", "cut"},
		{`{"status":"new","content":"milk"}{}`, "not JSON", "=", "trailing data"},
		{`{"status":"new","content":"milk"} x`, "not JSON", "=", "trailing data"},
		{`[{"status":"new","content":"milk"}]`, "not JSON", "=", "not an object"},
		{`"milk"`, "not JSON", "=", "not an object"},
		{`null`, "not JSON", "=", "not an object"},
		{strings.Repeat("[", 100_000), "not JSON", "=", "deep"},
		{`{"content":` + strings.Repeat(`{"a":`, 100_000), "not JSON", "=", "deep"},
	} {
		if test.put == "=" {
			test.put = test.post
		}
		if got := verdict(decodeNew([]byte(test.body))); got != test.post {
			t.Errorf("POST %.80q: %s, want %s %s", test.body, got, test.post, test.comment)
		}
		if got := verdict(decodeReplacement([]byte(test.body))); got != test.put {
			t.Errorf("PUT %.80q: %s, want %s %s", test.body, got, test.put, test.comment)
		}
	}
}

func verdict(draft Draft, err error) string {
	var invalid *InvalidError
	var notJSON *notJSONError
	switch {
	case err == nil:
		return fmt.Sprint(draft)
	case errors.As(err, &invalid):
		return invalid.Field
	case errors.As(err, &notJSON):
		return "not JSON"
	}
	return "unexpected error " + err.Error()
}

// FuzzDecode checks that whatever comes in is either refused in one of the two ways, or taken unaltered.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		`{"status":"new","content":"milk"}`, `{"id":1,"content":"\ud83d\ude42"}`, `{"content":"\ud800"}`, `{"content":"a","content":"b"}`,
		`[]`, `{`, ``, "\xff", `{"content":1e999}`, `{"content":"\\ud800\ufffd"}`, `{"\u0063ontent":"x"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, decode := range []func([]byte) (Draft, error){decodeNew, decodeReplacement} {
			draft, err := decode(body)
			if err != nil {
				if v := verdict(draft, err); strings.HasPrefix(v, "unexpected") || draft != (Draft{}) {
					t.Fatalf("%q: %s, %v", body, v, draft)
				}
				continue
			}
			if err := draft.Validate(); err != nil {
				t.Fatalf("%q was taken: %v", body, err)
			}
			var loose map[string]any
			if err := json.Unmarshal(body, &loose); err != nil {
				t.Fatalf("%q was taken, but is not JSON: %v", body, err)
			}
			if loose["content"] != draft.Content {
				t.Fatalf("%q became %q", body, draft.Content)
			}
			if strings.ContainsRune(draft.Content, '\uFFFD') && !strings.Contains(string(body), "\uFFFD") &&
				!strings.Contains(strings.ToLower(string(body)), `\ufffd`) {
				t.Fatalf("%q was altered to %q", body, draft.Content)
			}
		}
	})
}
