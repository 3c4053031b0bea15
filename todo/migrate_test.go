package todo

import (
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
)

func TestLoadMigrations_RefusesAGapInTheNumbers(t *testing.T) {
	file := &fstest.MapFile{Data: []byte("SELECT 1;")}
	for _, test := range []struct {
		names []string
		want  string
	}{
		{[]string{"0001_a.sql", "0002_b.sql"}, ""},
		{[]string{"0001_a.sql", "0003_b.sql"}, "0002"},
		{[]string{"0001_a.sql", "0001_b.sql"}, "0002"},
		{[]string{"0002_a.sql"}, "0001"},
		{[]string{"first.sql"}, "0001"},
		{nil, "none"},
	} {
		files := fstest.MapFS{}
		for _, name := range test.names {
			files["migrations/"+name] = file
		}
		_, err := loadMigrations(files)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%v: %v, want %q", test.names, err, test.want)
		}
	}
}

func TestSplitStatements_EndsThemAtSemicolonsThatEndALine(t *testing.T) {
	got := splitStatements("-- A comment;\nSET @a = 'b;c';\n\nCREATE TABLE t (\n  -- inside;\n  a INT\n);\nDO 0")
	want := []string{"SET @a = 'b;c'", "CREATE TABLE t (\n  a INT\n)", "DO 0"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
}
