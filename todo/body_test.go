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

func TestDecode_SaysWhatItFound(t *testing.T) {
	for body, want := range map[string]string{
		`{"content":null}`:                      "content must be a string, not null",
		`{"content":7}`:                         "content must be a string, not a number",
		`{"content":[]}`:                        "content must be a string, not an array",
		`{"status":{}}`:                         "status must be a string, not an object",
		`{"status":false}`:                      "status must be a string, not a boolean",
		`{"due":1}`:                             "due is not a field of a todo",
		`{"a\nb":1}`:                            `"a\nb" is not a field of a todo`,
		`{"":1}`:                                `"" is not a field of a todo`,
		`{"id":1,"id":2}`:                       "id is given twice",
		`{"content":"x"`:                        "the body is not JSON: unexpected end of JSON input (byte 14)",
		`{"content":"x"} {}`:                    "the body is not JSON: invalid character '{' after top-level value (byte 17)",
		``:                                      "the body is empty: a JSON object is wanted",
		`[]`:                                    "the body must be a JSON object",
		"{\"content\":\"\xff\"}":                "the body is not valid UTF-8",
		`{"content":"\udead"}`:                  `the body has a \u escape that is half a character`,
		`{"` + strings.Repeat("x", 99) + `":1}`: strings.Repeat("x", 40) + "… is not a field of a todo",
	} {
		if _, err := decodeNew([]byte(body)); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", body, err, want)
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
