package todo

import (
	"errors"
	"strconv"
	"strings"
	"testing"
)

func TestParseID_TakesDecimalIDsAndNothingElse(t *testing.T) {
	for text, want := range map[string]int64{
		"1": 1, "42": 42, "007": 7, "9223372036854775807": 1<<63 - 1,
		"": 0, "0": 0, "-1": 0, "+1": 0, "1.0": 0, "1e3": 0, "0x1": 0, "1_000": 0, " 1": 0, "١": 0, "abc": 0,
		"9223372036854775808": 0, "99999999999999999999999999": 0,
	} {
		got, err := ParseID(text)
		var invalid *InvalidError
		switch {
		case want != 0 && (err != nil || got != want):
			t.Errorf("ParseID(%q) = %d, %v; want %d", text, got, err, want)
		case want == 0 && (!errors.As(err, &invalid) || invalid.Field != "id"):
			t.Errorf("ParseID(%q) = %d, %v; want an *InvalidError of id", text, got, err)
		}
	}
}

func TestDraft_LimitsCountCharactersNotBytes(t *testing.T) {
	for _, test := range []struct {
		name  string
		draft Draft
		field string
	}{
		{"shortest", Draft{"x", "y"}, ""},
		{"longest", Draft{strings.Repeat("日", MaxStatusLength), strings.Repeat("🙂", MaxContentLength)}, ""},
		{"status too long", Draft{strings.Repeat("x", MaxStatusLength+1), "y"}, "status"},
		{"content too long", Draft{"new", strings.Repeat("🙂", MaxContentLength+1)}, "content"},
		{"no status", Draft{"", "y"}, "status"},
		{"no content", Draft{"new", ""}, "content"},
		{"blank status", Draft{" \u00a0", "y"}, "status"},
		{"blank content", Draft{"new", "\t\n"}, "content"},
		{"control character in the status", Draft{"ne\x00w", "y"}, "status"},
		{"control characters in the content", Draft{"new", "a\nb\x00"}, ""},
		{"status not UTF-8", Draft{"\xff", "y"}, "status"},
		{"content not UTF-8", Draft{"new", "a\xc3"}, "content"},
	} {
		err := test.draft.Validate()
		var invalid *InvalidError
		if test.field == "" && err != nil || test.field != "" && (!errors.As(err, &invalid) || invalid.Field != test.field) {
			t.Errorf("%s: %v, want a complaint about %q", test.name, err, test.field)
		}
	}
}

func TestValidateKey_TakesPrintableASCII(t *testing.T) {
	for key, valid := range map[string]bool{
		"a": true, "a b~!": true, strings.Repeat("k", MaxKeyLength): true,
		"": false, strings.Repeat("k", MaxKeyLength+1): false, "a\tb": false, "é": false, "a\x7f": false,
	} {
		if err := ValidateKey(key); (err == nil) != valid {
			t.Errorf("ValidateKey(%q) = %v", key, err)
		}
	}
}

func FuzzParseID(f *testing.F) {
	for _, seed := range []string{"1", "0", "-1", "+5", "9223372036854775807", "9223372036854775808", "", "1e9", "٣"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		id, err := ParseID(text)
		if err != nil {
			var invalid *InvalidError
			if !errors.As(err, &invalid) || id != 0 {
				t.Fatalf("ParseID(%q) = %d, %v", text, id, err)
			}
			return
		}
		if id < 1 || strconv.FormatInt(id, 10) != strings.TrimLeft(text, "0") {
			t.Fatalf("ParseID(%q) = %d", text, id)
		}
	})
}
