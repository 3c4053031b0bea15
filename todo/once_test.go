package todo_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"example.com/todo/todo"
)

func TestStore_WritesOncePerKey(t *testing.T) {
	d, _ := newMigrated(t)
	db, _ := d.as(t, grants)
	s := todo.NewStore(db, nil)
	ctx := t.Context()
	made, err := s.Create(ctx, todo.Draft{Status: "new", Content: "x"}, "c")
	if err != nil {
		t.Fatal(err)
	}
	first, second := todo.Draft{Status: "1", Content: "x"}, todo.Draft{Status: "2", Content: "x"}
	for key, draft := range map[string]todo.Draft{"p1": first, "p2": second} {
		if saved, err := s.Update(ctx, made.ID, draft, key); err != nil || saved.Status != draft.Status {
			t.Errorf("update: %v, %v", saved, err)
		}
	}
	if _, err := s.Update(ctx, made.ID, second, ""); err != nil {
		t.Fatal(err)
	}
	if saved, err := s.Update(ctx, made.ID, first, "p1"); err != nil || saved != (todo.Todo{ID: made.ID, Status: "1", Content: "x"}) {
		t.Errorf("again: %v, %v; want the first answer", saved, err)
	}
	if now, err := s.Get(ctx, made.ID); err != nil || now.Status != "2" {
		t.Errorf("a later update was undone: %v, %v", now, err)
	}
	for range 2 {
		if err := s.Delete(ctx, made.ID, "d"); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if saved, err := s.Update(ctx, made.ID, first, "p1"); err != nil || saved.Status != "1" {
		t.Errorf("again, of a todo that is gone: %v, %v", saved, err)
	}
	if again, err := s.Create(ctx, todo.Draft{Status: "new", Content: "x"}, "c"); err != nil || again != made {
		t.Errorf("create again what is gone: %v, %v; want the first answer", again, err)
	}
	if page, err := s.List(ctx, 0, 1); err != nil || len(page) != 0 {
		t.Errorf("a deletion was undone: %v, %v", page, err)
	}
}

func TestStore_RefusesAKeyForAnotherWrite(t *testing.T) {
	_, s := newMigrated(t)
	ctx := t.Context()
	draft := todo.Draft{Status: "new", Content: "x"}
	var ids [2]int64
	for i := range ids {
		made, err := s.Create(ctx, draft, fmt.Sprint("c", i))
		if err != nil {
			t.Fatal(err)
		}
		ids[i] = made.ID
	}
	if _, err := s.Update(ctx, ids[0], draft, "p"); err != nil {
		t.Fatal(err)
	}
	for name, write := range map[string]func() error{
		"update of another todo": func() error { _, err := s.Update(ctx, ids[1], draft, "p"); return err },
		"another update": func() error {
			_, err := s.Update(ctx, ids[0], todo.Draft{Status: "ne", Content: "wx"}, "p")
			return err
		},
		"delete":                         func() error { return s.Delete(ctx, ids[0], "p") },
		"create":                         func() error { _, err := s.Create(ctx, draft, "p"); return err },
		"update with a creation's key":   func() error { _, err := s.Update(ctx, ids[0], draft, "c0"); return err },
		"deletion with a creation's key": func() error { return s.Delete(ctx, ids[0], "c0") },
	} {
		if err := write(); !errors.Is(err, todo.ErrKeyReused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if page, err := s.List(ctx, 0, 10); err != nil || len(page) != 2 {
		t.Errorf("todos %v, %v", page, err)
	}
}

// TestStore_LeavesTheKeyFreeOfAWriteThatFoundNothing: nothing was done, so there is nothing to remember.
func TestStore_LeavesTheKeyFreeOfAWriteThatFoundNothing(t *testing.T) {
	d, s := newMigrated(t)
	for range 2 {
		if _, err := s.Update(t.Context(), 1, todo.Draft{Status: "1", Content: "x"}, "k"); !errors.Is(err, todo.ErrNotFound) {
			t.Errorf("update: %v", err)
		}
		if err := s.Delete(t.Context(), 1, "k"); !errors.Is(err, todo.ErrNotFound) {
			t.Errorf("delete: %v", err)
		}
	}
	if n := scalar[int](t, d.DB, "SELECT COUNT(*) FROM todo_write"); n != 0 {
		t.Errorf("%d keys are remembered", n)
	}
}

func TestStore_WritesOncePerKeyHoweverManySendItAtOnce(t *testing.T) {
	d, s := newMigrated(t)
	const senders, rounds = 16, 10
	for n := range rounds {
		made, err := s.Create(t.Context(), todo.Draft{Status: "new", Content: "x"}, "")
		if err != nil {
			t.Fatal(err)
		}
		key := fmt.Sprint("key ", n)
		var all sync.WaitGroup
		for i := range senders {
			all.Go(func() {
				// Half of them send another request at the same time, for the same row.
				if _, err := s.Update(t.Context(), made.ID, todo.Draft{Status: fmt.Sprint(i % 2), Content: "x"}, fmt.Sprint(key, i%2)); err != nil {
					t.Errorf("update: %v", err)
				}
			})
		}
		all.Wait()
		for range senders {
			all.Go(func() {
				if err := s.Delete(t.Context(), made.ID, key); err != nil {
					t.Errorf("delete: %v", err)
				}
			})
		}
		all.Wait()
	}
	if n := scalar[int](t, d.DB, "SELECT COUNT(*) FROM todo_write"); n != 3*rounds {
		t.Errorf("%d keys are remembered, of %d", n, 3*rounds)
	}
}

// TestStore_AnswersAKeyOfAnOlderVersion: that one remembers the key of a creation in the todo alone.
func TestStore_AnswersAKeyOfAnOlderVersion(t *testing.T) {
	d, s := newMigrated(t)
	draft := todo.Draft{Status: "new", Content: "x"}
	made, err := s.Create(t.Context(), draft, "k")
	if err != nil {
		t.Fatal(err)
	}
	must(t, d.DB, "DELETE FROM todo_write")
	if again, err := s.Create(t.Context(), draft, "k"); err != nil || again != made {
		t.Errorf("again: %v, %v", again, err)
	}
	if again, err := s.Create(t.Context(), todo.Draft{Content: "x"}, "k"); err != nil || again != made {
		t.Errorf("again, without a status, which is the same: %v, %v", again, err)
	}
	if _, err := s.Create(t.Context(), todo.Draft{Status: "new", Content: "y"}, "k"); !errors.Is(err, todo.ErrKeyReused) {
		t.Errorf("another draft: %v", err)
	}
}

func TestStore_ForgetsKeysAfterADayAndNotBefore(t *testing.T) {
	d, _ := newMigrated(t)
	db, _ := d.as(t, grants)
	s := todo.NewStore(db, nil)
	age := func(low, high int, seconds float64) {
		must(t, d.DB, fmt.Sprintf(`INSERT INTO todo_write SELECT CONCAT('k', seq), '', 1, UTC_TIMESTAMP() - INTERVAL %f SECOND FROM seq_%d_to_%d`, seconds, low, high))
	}
	age(1, 10, todo.KeyMemory.Seconds()-30)
	age(11, 1510, todo.KeyMemory.Seconds()+30)
	for round, want := range []int{510, 10, 10} {
		more, err := s.Forget(t.Context())
		if err != nil || more != (round == 0) {
			t.Errorf("forget: more %v, %v", more, err)
		}
		if n := scalar[int](t, d.DB, "SELECT COUNT(*) FROM todo_write"); n != want {
			t.Errorf("%d keys are left, want %d", n, want)
		}
	}
}
