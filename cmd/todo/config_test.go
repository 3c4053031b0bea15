package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
)

// valid is the least that serves.
func valid(more ...string) []string {
	return append([]string{"VAULT_ROLE_ID=role", "VAULT_SECRET_ID=hunter2"}, more...)
}

func TestParse_TellsAllProblemsAtOnce(t *testing.T) {
	_, err := parse("serve", []string{
		"TODO_LISTEN=8080", "TODO_LOG_LEVEL=loud", "DISCOVERY=guess", "TODO_DB_CONNS=none", "TODO_CHECK_INTERVAL=5",
		"TODO_DB_NAEM=x", "TODO_COLOUR=red", "CONSUL_HTTP_ADDR=127.0.0.1:port",
	})
	for _, want := range []string{
		"TODO_LISTEN", "TODO_LOG_LEVEL", "DISCOVERY", "TODO_DB_CONNS", "TODO_CHECK_INTERVAL", "CONSUL_HTTP_ADDR",
		"VAULT_ROLE_ID is not set", "VAULT_SECRET_ID or VAULT_SECRET_ID_FILE is not set",
		"is TODO_DB_NAME meant?", `TODO_COLOUR is no setting`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
}

func TestParse_WrongValues(t *testing.T) {
	for _, setting := range []string{
		"TODO_LISTEN=:99999", "TODO_LISTEN=nonsense", "TODO_INSTANCE=a b", "TODO_SERVICE=" + strings.Repeat("x", 64),
		"TODO_DB_NAME=todo`; DROP", "TODO_DB_CONNS=0", "TODO_DB_CONNS=1001", "TODO_CHECK_INTERVAL=100ms",
		"TODO_DRAIN_TIMEOUT=-1s", "TODO_LEAVE_DELAY=2h", "VAULT_SECRET_ID_FILE=/x", "VAULT_ADDR=nope", "VAULT_ADDR=ftp://x",
	} {
		name, _, _ := strings.Cut(setting, "=")
		if _, err := parse("serve", valid(setting)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("parse(%s) = %v, want an error that names it", setting, err)
		}
	}
}

func TestParse_TheDefaultsServe(t *testing.T) {
	c, err := parse("serve", valid("TODO_LISTEN=", "UNRELATED=1"))
	if err != nil {
		t.Fatal(err)
	}
	if c.listen != ":8080" || c.consulAddr != "127.0.0.1:8500" || c.vaultPath != "database/creds/todo" || c.dbConns != 16 {
		t.Errorf("got %+v", c)
	}
	if c, err = parse("migrate", valid()); err != nil || c.vaultPath != "database/creds/todo-migrate" {
		t.Errorf("migrate leases from %q, %v", c.vaultPath, err)
	}
}

func TestParse_NoSecretInAnError(t *testing.T) {
	_, err := parse("serve", valid("VAULT_SECRET_ID_FILE=/x", "CONSUL_HTTP_TOKEN=hunter3"))
	if strings.Contains(err.Error(), "hunter") {
		t.Errorf("a secret stands in %q", err)
	}
}

func TestRun_WrongUseIsAUsageError(t *testing.T) {
	for _, args := range [][]string{{"srve"}, {"serve", "--port=1"}, {"migrate", "now"}, {}} {
		var bad usageError
		if err := run(context.Background(), args, nil, io.Discard, io.Discard); !errors.As(err, &bad) {
			t.Errorf("run(%q) = %v, want a usage error", args, err)
		}
	}
}

func TestHelp_AndREADMEHoldEverySetting(t *testing.T) {
	var help bytes.Buffer
	if err := run(context.Background(), []string{"help"}, nil, &help, io.Discard); err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range settings("serve") {
		if !strings.Contains(help.String(), s.name) {
			t.Errorf("todo help lacks %s", s.name)
		}
		def := "`" + s.def + "`"
		switch {
		case s.name == "TODO_INSTANCE":
			def = "the host's name"
		case s.missing != "":
			def = "required"
		case s.def == "":
			def = ""
		}
		if row := fmt.Sprintf("| `%s` | %s | %s |", s.name, def, s.help); !strings.Contains(string(readme), row) {
			t.Errorf("the README's table lacks the row\n%s", row)
		}
	}
}
