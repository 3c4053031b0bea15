package todo_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/todo/todo"

	"github.com/go-sql-driver/mysql"

	"example.com/todo/internal/labtest"
)

// grants are what the role of `todo serve` has, and no more.
const grants = "SELECT, INSERT, UPDATE, DELETE ON todo; SELECT, INSERT, DELETE ON todo_write"

func TestStore_KeepsTodosUnderTheGrantsOfItsRole(t *testing.T) {
	d, _ := newMigrated(t)
	db, _ := d.as(t, grants)
	s := todo.NewStore(db, nil)
	ctx := t.Context()

	if err := s.Check(ctx); err != nil {
		t.Errorf("check: %v", err)
	}
	if page, err := s.List(ctx, 0, 10); err != nil || len(page) != 0 {
		t.Errorf("list of none: %v, %v", page, err)
	}
	first, err := s.Create(ctx, todo.Draft{Status: "new", Content: "a"}, "")
	if err != nil || first.ID < 1 {
		t.Fatalf("create: %v, %v", first, err)
	}
	second, err := s.Create(ctx, todo.Draft{Status: "new", Content: "a"}, "")
	if err != nil || second.ID <= first.ID {
		t.Errorf("create: %v, %v", second, err)
	}
	if found, err := s.Get(ctx, first.ID); err != nil || found != first {
		t.Errorf("get: %v, %v", found, err)
	}
	saved, err := s.Update(ctx, first.ID, todo.Draft{Status: "done", Content: "b"}, "")
	if err != nil || saved != (todo.Todo{ID: first.ID, Status: "done", Content: "b"}) {
		t.Errorf("update: %v, %v", saved, err)
	}
	if page, err := s.List(ctx, 0, 10); err != nil || !reflect.DeepEqual(page, []todo.Todo{saved, second}) {
		t.Errorf("list: %v, %v", page, err)
	}
	if page, err := s.List(ctx, first.ID, 1); err != nil || !reflect.DeepEqual(page, []todo.Todo{second}) {
		t.Errorf("second page: %v, %v", page, err)
	}
	if err := s.Delete(ctx, first.ID, ""); err != nil {
		t.Errorf("delete: %v", err)
	}
	if err := s.Delete(ctx, first.ID, ""); !errors.Is(err, todo.ErrNotFound) {
		t.Errorf("delete again: %v", err)
	}
	if _, err := s.Get(ctx, first.ID); !errors.Is(err, todo.ErrNotFound) {
		t.Errorf("get what is gone: %v", err)
	}
	if _, err := s.Update(ctx, first.ID, todo.Draft{Status: "x", Content: "y"}, ""); !errors.Is(err, todo.ErrNotFound) {
		t.Errorf("update what is gone: %v", err)
	}
}

func TestStore_TellsUnchangedFromUnknown(t *testing.T) {
	d, _ := newMigrated(t)
	for _, foundRows := range []bool{true, false} {
		s := todo.NewStore(d.with(t, func(c *mysql.Config) { c.ClientFoundRows = foundRows }), nil)
		draft := todo.Draft{Status: "new", Content: "same"}
		created, err := s.Create(t.Context(), draft, "")
		if err != nil {
			t.Fatal(err)
		}
		if saved, err := s.Update(t.Context(), created.ID, draft, ""); err != nil || saved != created {
			t.Errorf("clientFoundRows=%v: unchanged: %v, %v", foundRows, saved, err)
		}
		if _, err := s.Update(t.Context(), created.ID+1000, draft, ""); !errors.Is(err, todo.ErrNotFound) {
			t.Errorf("clientFoundRows=%v: unknown: %v", foundRows, err)
		}
	}
}

func TestStore_ReturnsEveryTextAsItWasGiven(t *testing.T) {
	d, _ := newMigrated(t)
	for _, interpolate := range []bool{true, false} {
		s := todo.NewStore(d.with(t, func(c *mysql.Config) { c.InterpolateParams = interpolate }), nil)
		for _, text := range []string{
			"x", "日本語 🙂 é e\u0301", `'; DROP TABLE todo; -- \' " ? %s`, "line\nbreak\ttab\x00nul", " spaces around ", "\u00a0\u200b!", "\uFFFD",
			strings.Repeat("🙂", todo.MaxContentLength),
		} {
			status := string([]rune(strings.Map(printableOnly, text+"s"))[:1])
			created, err := s.Create(t.Context(), todo.Draft{Status: status, Content: text}, "")
			if err != nil {
				t.Errorf("create %.40q: %v", text, err)
				continue
			}
			if found, err := s.Get(t.Context(), created.ID); err != nil || found != created || found.Content != text {
				t.Errorf("get %.40q: %.40q, %v", text, found.Content, err)
			}
		}
		longest := strings.Repeat("🙂", todo.MaxStatusLength)
		created, err := s.Create(t.Context(), todo.Draft{Status: longest, Content: "x"}, "")
		if found, getErr := s.Get(t.Context(), created.ID); err != nil || getErr != nil || found.Status != longest {
			t.Errorf("longest status: %v, %v, %v", found, err, getErr)
		}
	}
}

func printableOnly(r rune) rune {
	if r <= ' ' || r == '\u00a0' {
		return -1
	}
	return r
}

func TestStore_CreatesOncePerKey(t *testing.T) {
	_, s := newMigrated(t)
	ctx := t.Context()
	draft := todo.Draft{Status: "new", Content: "x"}
	first, err := s.Create(ctx, draft, "key")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.Create(ctx, draft, "key"); err != nil || again != first {
		t.Errorf("again: %v, %v", again, err)
	}
	for _, other := range []todo.Draft{{Status: "new", Content: "y"}, {Status: "newx", Content: "x"}, {Status: "ne", Content: "wx"}} {
		if _, err := s.Create(ctx, other, "key"); !errors.Is(err, todo.ErrKeyReused) {
			t.Errorf("another draft %v: %v", other, err)
		}
	}
	for _, key := range []string{"KEY", "key ", " key", "ke", strings.Repeat("k", todo.MaxKeyLength)} {
		if another, err := s.Create(ctx, draft, key); err != nil || another.ID == first.ID {
			t.Errorf("key %.20q: %v, %v", key, another, err)
		}
	}
	if _, err := s.Update(ctx, first.ID, todo.Draft{Status: "done", Content: "changed since"}, ""); err != nil {
		t.Fatal(err)
	}
	if again, err := s.Create(ctx, draft, "key"); err != nil || again != first {
		t.Errorf("again after an update: %v, %v; want the first answer %v", again, err, first)
	}
	if now, err := s.Get(ctx, first.ID); err != nil || now.Content != "changed since" {
		t.Errorf("the update was undone: %v, %v", now, err)
	}
	if err := s.Delete(ctx, first.ID, ""); err != nil {
		t.Fatal(err)
	}
	if again, err := s.Create(ctx, draft, "key"); err != nil || again != first {
		t.Errorf("again after the deletion: %v, %v; want the first answer %v", again, err, first)
	}
	if _, err := s.Get(ctx, first.ID); !errors.Is(err, todo.ErrNotFound) {
		t.Errorf("the deletion was undone: %v", err)
	}
}

func TestStore_CreatesOncePerKeyHoweverManySendItAtOnce(t *testing.T) {
	d, s := newMigrated(t)
	const senders, keys = 16, 20
	for n := range keys {
		var all sync.WaitGroup
		ids := make([]int64, senders)
		for i := range senders {
			all.Go(func() {
				created, err := s.Create(t.Context(), todo.Draft{Status: "new", Content: "x"}, fmt.Sprint("key ", n))
				if err != nil {
					t.Error(err)
				}
				ids[i] = created.ID
			})
		}
		all.Wait()
		for _, id := range ids {
			if id != ids[0] {
				t.Fatalf("key %d has ids %v", n, ids)
			}
		}
	}
	if rows := scalar[int](t, d.DB, "SELECT COUNT(*) FROM todo"); rows != keys {
		t.Errorf("%d rows of %d keys", rows, keys)
	}
}

func TestStore_ListsEveryTodoOnceThatExistsThroughout(t *testing.T) {
	_, s := newMigrated(t)
	var stay []int64
	var goes []int64
	for i := range 60 {
		created, err := s.Create(t.Context(), todo.Draft{Status: "new", Content: fmt.Sprint(i)}, "")
		if err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			goes = append(goes, created.ID)
		} else {
			stay = append(stay, created.ID)
		}
	}
	seen := map[int64]int{}
	for after, turn := int64(0), 0; ; turn++ {
		page, err := s.List(t.Context(), after, 7)
		if err != nil {
			t.Fatal(err)
		}
		for _, got := range page {
			seen[got.ID]++
			after = got.ID
		}
		if len(page) < 7 {
			break
		}
		if err := s.Delete(t.Context(), goes[turn], ""); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Create(t.Context(), todo.Draft{Status: "new", Content: "meanwhile"}, ""); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range stay {
		if seen[id] != 1 {
			t.Errorf("todo %d was listed %d times", id, seen[id])
		}
	}
}

func TestCheck_SeesWhatAPingDoesNot(t *testing.T) {
	d, _ := newMigrated(t)
	db, user := d.as(t, grants)
	s := todo.NewStore(db, nil)
	if err := s.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	must(t, d.DB, fmt.Sprintf("REVOKE SELECT ON %s.todo FROM '%s'@'%%'", d.name, user))
	if err := db.PingContext(t.Context()); err != nil {
		t.Errorf("ping: %v", err)
	}
	if err := s.Check(t.Context()); !errors.Is(err, todo.ErrUnavailable) {
		t.Errorf("check without the privilege: %v", err)
	}

	must(t, d.DB, fmt.Sprintf("GRANT SELECT ON %s.todo TO '%s'@'%%'", d.name, user))
	must(t, d.DB, fmt.Sprintf("REVOKE SELECT ON %s.todo_write FROM '%s'@'%%'", d.name, user))
	if err := s.Check(t.Context()); !errors.Is(err, todo.ErrUnavailable) {
		t.Errorf("check without the privilege on keys: %v", err)
	}

	empty := newDatabase(t)
	if err := todo.NewStore(empty.DB, nil).Check(t.Context()); !errors.Is(err, todo.ErrUnavailable) {
		t.Errorf("check without a table: %v", err)
	}
	statements, err := todo.MigrationStatements()
	if err != nil {
		t.Fatal(err)
	}
	for _, statement := range statements[0] {
		must(t, empty.DB, statement)
	}
	if err := todo.NewStore(empty.DB, nil).Check(t.Context()); !errors.Is(err, todo.ErrUnavailable) {
		t.Errorf("check on half a schema: %v", err)
	}
}

// TestStore_LeavesTheOutcomeOpenOfAWriteThatIsCutOff holds a write at a lock and takes its connection or its time away.
func TestStore_LeavesTheOutcomeOpenOfAWriteThatIsCutOff(t *testing.T) {
	d, admin := newMigrated(t)
	created, err := admin.Create(t.Context(), todo.Draft{Status: "new", Content: "x"}, "")
	if err != nil {
		t.Fatal(err)
	}
	db, user := d.as(t, grants)
	s := todo.NewStore(db, nil)
	for name, cut := range map[string]func(context.CancelFunc){
		"connection killed": func(context.CancelFunc) {
			must(t, d.DB, fmt.Sprint("KILL ", scalar[int](t, d.DB, "SELECT id FROM information_schema.processlist WHERE user = ? AND info LIKE 'UPDATE%'", user)))
		},
		"deadline": func(end context.CancelFunc) { end() },
	} {
		holder := lockTodo(t, d.DB, created.ID)
		ctx, end := context.WithCancel(t.Context())
		outcome := make(chan error, 1)
		go func() {
			_, err := s.Update(ctx, created.ID, todo.Draft{Status: "done", Content: "y"}, "")
			outcome <- err
		}()
		labtest.Eventually(t, 10*time.Second, "the update waits for the lock", func() bool {
			return scalar[int](t, d.DB, "SELECT COUNT(*) FROM information_schema.processlist WHERE user = ? AND info LIKE 'UPDATE%'", user) == 1
		})
		cut(end)
		if err := <-outcome; !errors.Is(err, todo.ErrOutcomeUnknown) {
			t.Errorf("%s: %v", name, err)
		}
		end()
		if err := holder.Rollback(); err != nil {
			t.Fatal(err)
		}
	}
}

// lockTodo returns a transaction that keeps others from changing the todo.
func lockTodo(t *testing.T, db *sql.DB, id int64) *sql.Tx {
	t.Helper()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("UPDATE todo SET content = 'locked' WHERE id = ?", id); err != nil {
		t.Fatal(err)
	}
	return tx
}

func TestStore_WorksForManyAtOnce(t *testing.T) {
	_, s := newMigrated(t)
	var all sync.WaitGroup
	var failures atomic.Int32
	for worker := range 8 {
		all.Go(func() {
			for i := range 25 {
				draft := todo.Draft{Status: "new", Content: fmt.Sprint(worker, " ", i)}
				created, err := s.Create(t.Context(), draft, fmt.Sprint(worker, "-", i))
				if err != nil {
					t.Error(err)
					failures.Add(1)
					return
				}
				found, err := s.Get(t.Context(), created.ID)
				if err != nil || found != created {
					t.Errorf("%v, %v", found, err)
				}
				if err := s.Delete(t.Context(), created.ID, ""); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if page, err := s.List(t.Context(), 0, 10); err != nil || len(page) != 0 || failures.Load() != 0 {
		t.Errorf("left over: %v, %v", page, err)
	}
}
