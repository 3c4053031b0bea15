package todo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"example.com/todo/todo"

	"github.com/go-sql-driver/mysql"

	"example.com/todo/internal/labtest"
)

// These tests hold back one statement on its way to the server, as a busy machine or network does, until everything is done that the
// client did instead of waiting for it.

// heldBack is the way to the server of one instance. The first statement with a certain text stays on the way until it is delivered,
// also if the instance has closed its connection by then.
type heldBack struct {
	text      string
	taken     chan struct{} // closed when the statement is on its way
	delivered chan struct{} // closed to let it go on
	taking    sync.Once
}

func (h *heldBack) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	return &heldConn{Conn: conn, way: h}, err
}

type heldConn struct {
	net.Conn
	way *heldBack

	mu   sync.Mutex
	held bool // a statement is on its way, and nothing is sent after it
	gone bool
}

func (c *heldConn) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(c.way.text)) {
		c.way.taking.Do(func() {
			c.mu.Lock()
			c.held = true
			c.mu.Unlock()
			close(c.way.taken)
			p := slices.Clone(p)
			go func() {
				<-c.way.delivered
				c.mu.Lock()
				defer c.mu.Unlock()
				_, _ = c.Conn.Write(p)
				c.held = false
				if c.gone {
					_ = c.Conn.Close()
				}
			}()
		})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// Close is the end of the instance: what it has sent still arrives.
func (c *heldConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
	if c.held {
		return c.Conn.SetReadDeadline(time.Now())
	}
	return c.Conn.Close()
}

// instance is a store with a user of its own, as every instance has one.
type instance struct {
	*todo.Store
	user string
}

func newInstance(t *testing.T, d *database, way *heldBack) instance {
	t.Helper()
	_, user := d.as(t, grants)
	db := d.with(t, func(c *mysql.Config) {
		c.Net, c.Addr, c.User, c.Passwd = "tcp", d.address, user, "pw"
		c.InterpolateParams = true
		if way != nil {
			c.DialFunc = way.dial
		}
	})
	return instance{todo.NewStore(db, nil), user}
}

// sessions counts the sessions of an instance whose statement is like that; "%" is any, idle ones included.
func (d *database) sessions(t *testing.T, i instance, statement string) int {
	t.Helper()
	return scalar[int](t, d.DB, "SELECT COUNT(*) FROM information_schema.processlist WHERE user = ? AND COALESCE(info, '') LIKE ?", i.user, statement)
}

// lateWrite is a write, what the client does when it is done, and what must be the case for ever after.
type lateWrite struct {
	name, statement string
	do              func(s *todo.Store, ctx context.Context, key string) error
	later           func(t *testing.T, s *todo.Store)
	check           func(t *testing.T, s *todo.Store)
}

func lateWrites(t *testing.T, d *database) []lateWrite {
	t.Helper()
	made, err := todo.NewStore(d.DB, nil).Create(t.Context(), todo.Draft{Status: "new", Content: "x"}, "")
	if err != nil {
		t.Fatal(err)
	}
	fresh := todo.Draft{Status: "new", Content: "fresh"}
	find := func(t *testing.T, s *todo.Store, content string) *todo.Todo {
		t.Helper()
		all, err := s.List(t.Context(), 0, 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range all {
			if found.Content == content {
				return &found
			}
		}
		return nil
	}
	return []lateWrite{
		{
			name: "update", statement: "UPDATE todo SET",
			do: func(s *todo.Store, ctx context.Context, key string) error {
				_, err := s.Update(ctx, made.ID, todo.Draft{Status: "first", Content: "x"}, key)
				return err
			},
			later: func(t *testing.T, s *todo.Store) {
				if _, err := s.Update(t.Context(), made.ID, todo.Draft{Status: "second", Content: "x"}, "later"); err != nil {
					t.Error(err)
				}
			},
			check: func(t *testing.T, s *todo.Store) {
				if found := find(t, s, "x"); found == nil || found.Status != "second" {
					t.Errorf("an acknowledged update was undone: %v", found)
				}
			},
		},
		{
			name: "create", statement: "INSERT INTO todo (",
			do: func(s *todo.Store, ctx context.Context, key string) error {
				_, err := s.Create(ctx, fresh, key)
				return err
			},
			later: func(t *testing.T, s *todo.Store) {
				if err := s.Delete(t.Context(), find(t, s, "fresh").ID, "later"); err != nil {
					t.Error(err)
				}
			},
			check: func(t *testing.T, s *todo.Store) {
				if found := find(t, s, "fresh"); found != nil {
					t.Errorf("an acknowledged deletion was undone: %v", found)
				}
			},
		},
		{
			name: "delete", statement: "DELETE FROM todo WHERE",
			do:    func(s *todo.Store, ctx context.Context, key string) error { return s.Delete(ctx, made.ID, key) },
			later: func(*testing.T, *todo.Store) {},
			check: func(t *testing.T, s *todo.Store) {
				if found := find(t, s, "x"); found != nil {
					t.Errorf("an acknowledged deletion was undone: %v", found)
				}
			},
		},
	}
}

func TestStore_DoesNothingLateThatWasSentWithAKey(t *testing.T) {
	for _, lives := range []bool{false, true} {
		for n := range 3 {
			for _, step := range []string{"SET TRANSACTION", "START TRANSACTION", "INSERT INTO todo_write", "the write", "COMMIT"} {
				d, _ := newMigrated(t)
				write := lateWrites(t, d)[n]
				statement := step
				if step == "the write" {
					statement = write.statement
				}
				t.Run(fmt.Sprintf("%s, %s, the instance lives: %v", write.name, step, lives), func(t *testing.T) {
					testLate(t, d, write, statement, lives)
				})
			}
		}
	}
}

func testLate(t *testing.T, d *database, write lateWrite, statement string, lives bool) {
	way := &heldBack{text: statement, taken: make(chan struct{}), delivered: make(chan struct{})}
	slow, good := newInstance(t, d, way), newInstance(t, d, nil)
	ctx, kill := context.WithCancel(t.Context())
	defer kill()
	first := make(chan error, 1)
	go func() { first <- write.do(slow.Store, ctx, "key") }()
	awaitTaken(t, way, first)
	if !lives {
		kill()
		if err := <-first; err == nil {
			t.Error("the first try was answered")
		}
	}

	again := make(chan error, 1)
	go func() { again <- write.do(good.Store, t.Context(), "key") }()
	var err error
	var answered bool
	labtest.Eventually(t, 10*time.Second, "the second try is answered or waits", func() bool {
		select {
		case err = <-again:
			answered = true
		default:
		}
		return answered || d.waits(t, good)
	})
	if !answered { // for the transaction of the slow instance, which has claimed the key
		close(way.delivered)
		err = <-again
	}
	if err != nil {
		t.Errorf("the second try: %v", err)
	}
	write.later(t, good.Store)
	if answered {
		close(way.delivered)
	}
	if lives {
		if err := <-first; err != nil {
			t.Errorf("the first try, which was late: %v", err)
		}
	} else {
		labtest.Eventually(t, 10*time.Second, "the slow session has ended", func() bool { return d.sessions(t, slow, "%") == 0 })
	}
	write.check(t, good.Store)
}

// awaitTaken waits until the statement is on its way.
func awaitTaken(t *testing.T, way *heldBack, first <-chan error) {
	t.Helper()
	select {
	case <-way.taken:
	case err := <-first:
		t.Fatalf("there was no %s: %v", way.text, err)
	}
}

// waits tells whether a statement of an instance waits for a lock. The server looks anew only when nobody asked it for 0.1 s.
func (d *database) waits(t *testing.T, i instance) bool {
	t.Helper()
	<-time.After(110 * time.Millisecond)
	return scalar[int](t, d.DB, `SELECT COUNT(*) FROM information_schema.innodb_trx JOIN information_schema.processlist ON id = trx_mysql_thread_id
		WHERE trx_state = 'LOCK WAIT' AND user = ?`, i.user) > 0
}

// TestStore_MayDoLateWhatWasSentWithoutAKey shows that the test above would see it.
func TestStore_MayDoLateWhatWasSentWithoutAKey(t *testing.T) {
	d, _ := newMigrated(t)
	write := lateWrites(t, d)[0]
	way := &heldBack{text: write.statement, taken: make(chan struct{}), delivered: make(chan struct{})}
	slow, good := newInstance(t, d, way), newInstance(t, d, nil)
	ctx, kill := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { first <- write.do(slow.Store, ctx, "") }()
	awaitTaken(t, way, first)
	kill()
	if err := <-first; !errors.Is(err, todo.ErrOutcomeUnknown) {
		t.Errorf("the first try: %v", err)
	}
	if err := write.do(good.Store, t.Context(), ""); err != nil {
		t.Errorf("the second try: %v", err)
	}
	write.later(t, good.Store)
	close(way.delivered)
	labtest.Eventually(t, 10*time.Second, "the slow session has ended", func() bool { return d.sessions(t, slow, "%") == 0 })
	if now := scalar[string](t, d.DB, "SELECT status FROM todo"); now != "first" {
		t.Errorf("status %q: the late statement changed nothing", now)
	}
}
