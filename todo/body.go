package todo

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// notJSONError says why a body is not a single JSON object in UTF-8.
type notJSONError struct {
	reason string
}

func (e *notJSONError) Error() string { return "the body " + e.reason }

// fields are the members of a todo as a body names them; nil where it does not.
type fields struct {
	status, content *string
}

// decodeNew reads the body of a POST. A missing status is StatusNew. Errors: *notJSONError, *InvalidError.
func decodeNew(body []byte) (Draft, error) {
	given, err := decodeFields(body)
	if err != nil {
		return Draft{}, err
	}
	if given.status == nil {
		fresh := StatusNew
		given.status = &fresh
	}
	return given.draft()
}

// decodeReplacement reads the body of a PUT, which replaces the whole todo: a missing status would silently undo the one
// that is saved. Errors: *notJSONError, *InvalidError.
func decodeReplacement(body []byte) (Draft, error) {
	given, err := decodeFields(body)
	if err != nil {
		return Draft{}, err
	}
	if given.status == nil {
		return Draft{}, &InvalidError{"status", "is missing"}
	}
	return given.draft()
}

func (f fields) draft() (Draft, error) {
	if f.content == nil {
		return Draft{}, &InvalidError{"content", "is missing"}
	}
	draft := Draft{Status: *f.status, Content: *f.content}
	if err := draft.Validate(); err != nil {
		return Draft{}, err
	}
	return draft, nil
}

// decodeFields reads an object member by member, because decoding into a struct lets too much pass: names in another case,
// names given twice, null, and text that had to be altered to become UTF-8.
func decodeFields(body []byte) (fields, error) {
	if err := checkJSON(body); err != nil {
		return fields{}, err
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	if open, err := decoder.Token(); err != nil || open != json.Delim('{') {
		return fields{}, &notJSONError{"must be a JSON object"}
	}
	var given fields
	seen := make(map[string]bool)
	for decoder.More() {
		token, err := decoder.Token()
		name, isName := token.(string)
		if err != nil || !isName {
			return fields{}, &notJSONError{"must be a JSON object"}
		}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return fields{}, &notJSONError{"must be a JSON object"}
		}
		if seen[name] {
			return fields{}, &InvalidError{printable(name), "is given twice"}
		}
		seen[name] = true
		if err := given.set(name, value); err != nil {
			return fields{}, err
		}
	}
	return given, nil
}

// set takes one member. An id is checked but not kept: clients send the whole todo, and the path's id is what counts.
func (f *fields) set(name string, value json.RawMessage) error {
	switch name {
	case "id":
		var id int64
		if value[0] == 'n' || json.Unmarshal(value, &id) != nil {
			return &InvalidError{"id", "must be a whole number of 64 bits (its value is ignored)"}
		}
		return nil
	case "status", "content":
		if value[0] != '"' {
			return &InvalidError{name, "must be a string, not " + kindOf(value)}
		}
		var text string
		if err := json.Unmarshal(value, &text); err != nil {
			return &InvalidError{name, "must be a string"}
		}
		if name == "status" {
			f.status = &text
		} else {
			f.content = &text
		}
		return nil
	default:
		return &InvalidError{printable(name), "is not a field of a todo"}
	}
}

// checkJSON returns a *notJSONError unless body is one JSON value whose strings can be read as they are.
func checkJSON(body []byte) error {
	if len(bytes.TrimSpace(body)) == 0 {
		return &notJSONError{"is empty: a JSON object is wanted"}
	}
	if !utf8.Valid(body) {
		return &notJSONError{"is not valid UTF-8"}
	}
	var value json.RawMessage
	if err := json.Unmarshal(body, &value); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return &notJSONError{fmt.Sprintf("is not JSON: %v (byte %d)", syntax, syntax.Offset)}
		}
		return &notJSONError{"is not JSON"}
	}
	if hasLoneSurrogate(body) {
		return &notJSONError{`has a \u escape that is half a character`}
	}
	return nil
}

// hasLoneSurrogate looks for a \uD800–\uDFFF escape without its partner, which encoding/json replaces without a word. The
// text must be valid JSON.
func hasLoneSurrogate(text []byte) bool {
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			continue
		}
		unit, isUnit := escapedUnit(text[i:])
		if !isUnit {
			i++ // The escaped character, which may be a backslash.
			continue
		}
		i += 5
		switch {
		case unit >= 0xDC00 && unit <= 0xDFFF:
			return true
		case unit >= 0xD800 && unit <= 0xDBFF:
			low, isUnit := escapedUnit(text[i+1:])
			if !isUnit || low < 0xDC00 || low > 0xDFFF {
				return true
			}
			i += 6
		}
	}
	return false
}

// escapedUnit reads the UTF-16 code unit of a \uXXXX escape at the start of text.
func escapedUnit(text []byte) (unit uint32, ok bool) {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' {
		return 0, false
	}
	for _, digit := range text[2:6] {
		switch {
		case digit >= '0' && digit <= '9':
			unit = unit<<4 | uint32(digit-'0')
		case digit|0x20 >= 'a' && digit|0x20 <= 'f':
			unit = unit<<4 | uint32(digit|0x20-'a'+10)
		default:
			return 0, false
		}
	}
	return unit, true
}

func kindOf(value json.RawMessage) string {
	switch value[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	}
	return "a number"
}

// printable quotes a name from outside where it could not be shown as it is, and cuts it where it is long.
func printable(name string) string {
	const limit = 40
	cut := []rune(name)
	if len(cut) > limit {
		cut = append(cut[:limit], '…')
	}
	for _, r := range cut {
		if r <= ' ' || r == '"' || r == 0x7F {
			return fmt.Sprintf("%q", string(cut))
		}
	}
	if len(cut) == 0 {
		return `""`
	}
	return string(cut)
}
