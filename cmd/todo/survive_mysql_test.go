package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/todo/internal/lab"
	"example.com/todo/internal/labtest"
)

// testMySQLMoves does what an operator does to move the database under load: most is copied to the new server beforehand; then the
// old one takes no more writes, the rest is copied, the catalogue points to the new one, and who still waits at the old one is
// sent away. Requests in that moment are refused, and sent again by the clients' transport.
func testMySQLMoves(t *testing.T, l *lab.Lab) {
	from := openRoot(t, l)
	other := labtest.Start(t, labtest.Options{Consul: 1, MySQL: 1}) // for its database only
	to := openRoot(t, other)
	addr := other.Addr("mysql")
	tr := startTraffic(t, l, clients{})
	fillPools(t, l, from)
	var swapped time.Time
	tr.during(t, "move", func() {
		makeTables(t, from, to)
		copied := copyKeys(t, from, to, time.Time{})
		copyUsers(t, from, to, "vault")
		pointVault(t, l, addr)
		copyUsers(t, from, to, "v-approle-todo-%")
		began := time.Now()
		execute(t, from, "SET GLOBAL read_only = ON") // waits for the statements and commits that have begun
		unlock := copyRest(t, from, to, copied)
		announce(t, l, addr)
		swapped = time.Now()
		labtest.Eventually(t, time.Second, "new connections go to the new server", func() bool {
			sendAway(t, from)
			return !slices.ContainsFunc(instances, func(machine string) bool { return !reads(t, url(l, machine, "/todo?limit=1")) })
		})
		t.Logf("nobody was served for %v, and new connections followed within %v", swapped.Sub(began).Round(time.Millisecond), time.Since(swapped).Round(time.Millisecond))
		tr.goOn(t, 500)
		sendAway(t, from) // those too that were on their way when the catalogue changed
		tr.goOn(t, 500)
		fillPools(t, l, to) // with all sessions that were idle when the database moved
		if n := sessions(t, from, "Query"); n > 0 {
			t.Errorf("%d statements still go to the old server", n)
		}
		t.Logf("%d idle sessions are left at the old server", sessions(t, from, ""))
		unlock()
	})
	tr.goOn(t, 500)
	tr.settleIn(t, to)
}

func openRoot(t *testing.T, l *lab.Lab) *sql.DB {
	t.Helper()
	root, err := l.MySQL()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root
}

func execute(t *testing.T, db interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
}, statement string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// queryer is a pool, or one session of it.
type queryer interface {
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
}

// query gives all rows, whatever they hold.
func query(t *testing.T, db queryer, statement string, args ...any) (columns []string, all [][]any) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), statement, args...)
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	defer rows.Close() //nolint:errcheck // read to the end
	if columns, err = rows.Columns(); err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		row, into := make([]any, len(columns)), make([]any, len(columns))
		for i := range row {
			into[i] = &row[i]
		}
		if err := rows.Scan(into...); err != nil {
			t.Fatal(err)
		}
		all = append(all, row)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return columns, all
}

func str(v any) string {
	if b, ok := v.([]byte); ok {
		return string(b)
	}
	return fmt.Sprint(v)
}

// copyUsers gives the new server the same accounts with the same passwords.
func copyUsers(t *testing.T, from, to *sql.DB, like string) {
	t.Helper()
	_, users := query(t, from, "SELECT user FROM mysql.user WHERE user LIKE ? AND host = '%'", like)
	if len(users) == 0 {
		t.Fatalf("no user is like %s", like)
	}
	for _, u := range users {
		who := "'" + str(u[0]) + "'@'%'"
		for _, show := range []string{"SHOW CREATE USER " + who, "SHOW GRANTS FOR " + who} {
			_, statements := query(t, from, show)
			for _, s := range statements {
				execute(t, to, str(s[0]))
			}
		}
	}
}

// pointVault has new credentials made at the new server.
func pointVault(t *testing.T, l *lab.Lab, addr string) {
	t.Helper()
	c, err := l.VaultClient(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	settings, err := c.Logical().ReadWithContext(t.Context(), "database/config/mysql")
	if err != nil || settings == nil {
		t.Fatalf("read Vault's connection: %v", err)
	}
	details, _ := settings.Data["connection_details"].(map[string]any)
	_, err = c.Logical().WriteWithContext(t.Context(), "database/config/mysql", map[string]any{
		"plugin_name": settings.Data["plugin_name"], "allowed_roles": settings.Data["allowed_roles"], "username": details["username"],
		"connection_url": "{{username}}:{{password}}@tcp(" + addr + ":3306)/", "verify_connection": true,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// fillPools has every instance open all sessions that it may have: idle ones to a place that is left are what must not be used again.
func fillPools(t *testing.T, l *lab.Lab, root *sql.DB) {
	t.Helper()
	const each = 16 // the default of TODO_DB_CONNS
	session, err := root.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close() //nolint:errcheck // it only held a lock
	execute(t, session, "LOCK TABLES todo.todo WRITE")
	var waiting sync.WaitGroup
	for _, machine := range instances {
		for range each {
			waiting.Go(func() { _ = getJSON(t.Context(), url(l, machine, "/todo?limit=1"), nil, nil) })
		}
	}
	labtest.Eventually(t, 5*time.Second, "the pools are full", func() bool { return sessions(t, root, "Query") >= each*len(instances) })
	execute(t, session, "UNLOCK TABLES")
	waiting.Wait()
}

// tables are what the instances may use.
var tables = []string{"todo.todo", "todo.todo_write"}

// makeTables makes the same tables at the new server, without rows.
func makeTables(t *testing.T, from, to *sql.DB) {
	t.Helper()
	_, create := query(t, from, "SHOW CREATE DATABASE todo")
	execute(t, to, str(create[0][1]))
	for _, table := range tables {
		_, create := query(t, from, "SHOW CREATE TABLE "+table)
		execute(t, to, strings.Replace(str(create[0][1]), "CREATE TABLE `", "CREATE TABLE todo.`", 1))
	}
}

// copyRest copies what is not there yet while nobody else can use the tables: from here on the old server answers no question about
// todos, so none can get an answer that is out of date. Unlocking lets those who wait go on.
func copyRest(t *testing.T, from, to *sql.DB, keysUntil time.Time) (unlock func()) {
	t.Helper()
	session, err := from.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = session.Close() })
	execute(t, session, "LOCK TABLES "+strings.Join(tables, " WRITE, ")+" WRITE")
	copyRows(t, session, to, "todo.todo", "TRUE")
	copyKeys(t, session, to, keysUntil)
	return func() { execute(t, session, "UNLOCK TABLES") }
}

// copyKeys copies the idempotency keys since a time, which are by far the most rows and never change. It returns a time before which
// none is missing: a transaction that had begun may have committed its key since.
func copyKeys(t *testing.T, from queryer, to *sql.DB, since time.Time) (until time.Time) {
	t.Helper()
	const longestTransaction = 30 * time.Second
	_, now := query(t, from, "SELECT UTC_TIMESTAMP()")
	copyRows(t, from, to, "todo.todo_write", "created_at >= '"+since.Format(time.DateTime)+"'")
	return now[0][0].(time.Time).Add(-longestTransaction)
}

// copyRows copies the rows of a table that are not there yet, many with each statement: those who wait do not wait for ever.
func copyRows(t *testing.T, from queryer, to *sql.DB, table, where string) {
	t.Helper()
	columns, rows := query(t, from, "SELECT * FROM "+table+" WHERE "+where)
	row := "(?" + strings.Repeat(", ?", len(columns)-1) + ")"
	for some := range slices.Chunk(rows, 1000) {
		execute(t, to, "INSERT IGNORE INTO "+table+" ("+strings.Join(columns, ", ")+") VALUES "+row+strings.Repeat(", "+row, len(some)-1), slices.Concat(some...)...)
	}
}

// announce puts the new server in the old one's place in the catalogue.
func announce(t *testing.T, l *lab.Lab, addr string) {
	t.Helper()
	service, err := json.Marshal(map[string]any{
		"ID": "mysql-new", "Name": "mysql", "Address": addr, "Port": 3306,
		"Check": map[string]any{"TCP": addr + ":3306", "Interval": "2s", "Status": "passing"},
	})
	if err != nil {
		t.Fatal(err)
	}
	agent := "http://" + l.Consul("mysql") + "/v1/agent/service/"
	for _, step := range [][2]string{{"register", string(service)}, {"deregister/mysql", ""}} {
		if resp, body := call(t, http.MethodPut, agent+step[0], step[1]); resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s %s", step[0], resp.Status, body)
		}
	}
}

// sendAway ends the sessions of the todos that wait for the old server.
func sendAway(t *testing.T, root *sql.DB) {
	t.Helper()
	for _, id := range processes(t, root, "Query") {
		_, _ = root.ExecContext(t.Context(), fmt.Sprintf("KILL %d", id)) // which may have ended by itself
	}
}

// reads asks an instance for todos. Only the new server answers: the old one is locked.
func reads(t *testing.T, url string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	return getJSON(ctx, url, nil, nil) == nil
}

// processes are the sessions of the todos in a state, or in any if it is "".
func processes(t *testing.T, root *sql.DB, command string) (ids []int64) {
	t.Helper()
	_, rows := query(t, root, "SELECT id FROM information_schema.processlist WHERE user LIKE 'v-approle-todo-%' AND command LIKE ?", command+"%")
	for _, r := range rows {
		id, err := strconv.ParseInt(str(r[0]), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	return ids
}

func sessions(t *testing.T, root *sql.DB, command string) int {
	t.Helper()
	return len(processes(t, root, command))
}
