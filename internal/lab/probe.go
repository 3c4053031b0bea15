package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"example.com/todo/internal/operator"
)

// Answers asks one unit of a machine, once, over the network, whether it is there. That is less than being able to work: a
// sealed Vault answers too.
func Answers(ctx context.Context, m Machine, unit string) error {
	switch unit {
	case RoleVault:
		_, err := operator.AskHealth(ctx, VaultURL(m))
		return err
	case RoleMySQL:
		_, err := greeting(ctx, m.Addr+":3306")
		return err
	case RoleTodo:
		return getJSON(ctx, todoURL(m)+"/livez", nil)
	}
	return getJSON(ctx, "http://"+m.Addr+":8500/v1/agent/self", nil)
}

// greeting reads what a MySQL server says first, and returns its version. No account is needed for that, and a server
// that hangs does not say it, though its kernel still accepts the connection.
func greeting(ctx context.Context, address string) (version string, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return "", err
		}
	}
	// Three bytes of length, one of sequence, one of protocol version (10), then the server's version up to a zero byte. Or
	// an error: 255, two bytes of number, and a text.
	const header, protocol, failure, notAllowed = 4, 10, 255, 1130
	head := make([]byte, header)
	if _, err := io.ReadFull(conn, head); err != nil {
		return "", timedOut(err)
	}
	body := make([]byte, int(head[0])|int(head[1])<<8|int(head[2])<<16)
	if _, err := io.ReadFull(conn, body); err != nil {
		return "", timedOut(err)
	}
	if len(body) > 3 && body[0] == failure {
		if number := int(body[1]) | int(body[2])<<8; number != notAllowed {
			return "", fmt.Errorf("answers with error %d: %s", number, bytes.ToValidUTF8(body[3:], []byte{'?'}))
		}
		return "", nil // it is there, and has no account for anybody yet: Vault is not configured
	}
	if len(body) == 0 || body[0] != protocol {
		return "", errors.New("answers in another protocol")
	}
	text, _, _ := bytes.Cut(body[1:], []byte{0})
	// MariaDB puts this before its version, so that old replicas take it for a MySQL they know.
	return strings.TrimPrefix(string(text), "5.5.5-"), nil
}

// timedOut makes one error of the two in which a passed deadline shows itself.
func timedOut(err error) error {
	var t net.Error
	if errors.As(err, &t) && t.Timeout() {
		return context.DeadlineExceeded
	}
	return err
}

// askHealth reads what an instance says of itself. Its state is in the body whatever the status code; an instance that
// says nothing is noticed by tryOut.
func (r *TodoRow) askHealth(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, probeWithin)
	defer cancel()
	var h struct {
		Version     string
		Reason      string
		Credentials struct {
			State       string
			User        string
			SecondsLeft float64 `json:"seconds_left"`
		}
	}
	_ = getJSON(ctx, "http://"+r.Address+":8080/health", &h)
	r.Version, r.Reason = h.Version, h.Reason
	r.State, r.User, r.SecondsLeft = h.Credentials.State, h.Credentials.User, h.Credentials.SecondsLeft
}

// tryOut creates a todo through the instance and deletes it again.
func (r *TodoRow) tryOut(ctx context.Context) error {
	begun := time.Now()
	todos := "http://" + r.Address + ":8080/todo"
	var made struct{ ID int64 }
	draft := `{"status":"new","content":"written by the board to see whether writing works"}`
	if err := call(ctx, http.MethodPost, todos, draft, &made); err != nil {
		return fmt.Errorf("create a todo: %w", err)
	}
	if err := call(ctx, http.MethodDelete, fmt.Sprintf("%s/%d", todos, made.ID), "", nil); err != nil {
		return fmt.Errorf("delete todo %d, which stays: %w", made.ID, err)
	}
	r.Live, r.Milliseconds = true, milliseconds(begun)
	return nil
}

// call does one request of the todo API. An answer other than 2xx is an error that holds the reason the service gives.
func call(ctx context.Context, method, url, body string, v any) error {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader([]byte(body)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		var why struct{ Error struct{ Message string } }
		_ = json.Unmarshal(text, &why) // without a reason the status has to do
		return errors.New(orElse(why.Error.Message, resp.Status))
	}
	if v == nil {
		return nil
	}
	return json.Unmarshal(text, v)
}
