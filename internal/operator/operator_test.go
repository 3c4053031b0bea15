package operator_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/todo/internal/lab"
	"example.com/todo/internal/labtest"
	"example.com/todo/internal/operator"
	"github.com/go-sql-driver/mysql"
	vault "github.com/hashicorp/vault/api"
	"go.uber.org/goleak"
)

// shared is a lab in which every step was taken. Tests of the steps themselves have labs of their own.
var shared = labtest.NewShared(labtest.Options{Vault: 1, MySQL: 1, Times: operator.Times{Lease: time.Minute}})

func TestMain(m *testing.M) { goleak.VerifyTestMain(shared.Main(m)) }

func TestSecret_DoesNotShowItself(t *testing.T) {
	s := operator.Secret("hunter2")
	var b strings.Builder
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "secret", s)
	for name, text := range map[string]string{"%v": fmt.Sprintf("%v", s), "in an error": fmt.Errorf("it is %s", s).Error(), "%#v": fmt.Sprintf("%#v", s), "%+v of a struct": fmt.Sprintf("%+v", operator.Identity{SecretID: s}), "slog": b.String()} {
		if strings.Contains(text, "hunter2") {
			t.Errorf("%s shows it: %s", name, text)
		}
	}
}

func TestTimes_FillInWhatIsNotSetAndStayInOrder(t *testing.T) {
	got := operator.Times{Lease: 48 * time.Hour}.WithDefaults()
	want := operator.Times{Lease: 48 * time.Hour, LeaseMax: 48 * time.Hour, Token: 10 * time.Minute, TokenMax: 24 * time.Hour}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestWriteFile_ReplacesAFileWholeForItsOwnerOnly(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "secret")
	if err := os.WriteFile(path, []byte("old, and longer"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := operator.WriteFile(path, []byte("new")); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil || string(text) != "new" {
		t.Errorf("got %q, %v", text, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("it left %v (%v)", entries, err)
	}
}

// manual starts a lab whose operator is the test.
func manual(t *testing.T) (*lab.Lab, *operator.Operator) {
	t.Helper()
	l := labtest.Start(t, labtest.Options{Vault: 1, Down: true})
	if err := l.Up(t.Context(), lab.UpOptions{Manual: true}); err != nil {
		t.Fatal(err)
	}
	o, err := l.Operator()
	if err != nil {
		t.Fatal(err)
	}
	return l, o
}

func address(l *lab.Lab) string { return "http://" + l.Addr("vault0") + ":8200" }

func TestSteps_OutOfOrderSayWhichOneIsMissing(t *testing.T) {
	t.Parallel()
	l, o := manual(t)
	check := func(when string, want error, errs map[string]error) {
		t.Helper()
		for step, err := range errs {
			if !errors.Is(err, want) {
				t.Errorf("%s %s: got %v, want %v", step, when, err, want)
			}
		}
	}
	mint := func() error { _, err := o.Mint(t.Context(), "todo0"); return err }
	migration := func() error { _, err := o.MintMigration(t.Context()); return err }
	unseal := func() error { _, err := o.Unseal(t.Context(), address(l)); return err }

	check("before init", operator.ErrNotInitialised, map[string]error{"unseal": unseal(), "configure": o.Configure(t.Context()), "mint": mint()})
	if changed, err := o.Init(t.Context()); err != nil || !changed {
		t.Fatalf("init: %v, %v", changed, err)
	}
	check("before unseal", operator.ErrSealed, map[string]error{"configure": o.Configure(t.Context()), "mint": mint()})
	if err := unseal(); err != nil {
		t.Fatal(err)
	}
	check("before configure", operator.ErrNotConfigured, map[string]error{"mint": mint(), "migration": migration()})
	if changed, err := o.Init(t.Context()); err != nil || changed {
		t.Errorf("init again: %v, %v", changed, err)
	}
}

func TestInit_BeginsAgainWhenItsAnswerWasLost(t *testing.T) {
	t.Parallel()
	l, o := manual(t)
	// What a run leaves that was killed between Vault's answer and the disk: a note that it began, and no keys.
	initByHand(t, l)
	if err := os.WriteFile(filepath.Join(l.Dir(), "operator", "vault-init-begun"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if changed, err := o.Init(t.Context()); err != nil || !changed {
		t.Fatalf("init: %v, %v", changed, err)
	}
	if changed, err := o.Unseal(t.Context(), address(l)); err != nil || !changed {
		t.Fatalf("unseal with the new keys: %v, %v", changed, err)
	}
	if _, err := o.Client(t.Context()); err != nil {
		t.Errorf("the new root token: %v", err)
	}
}

func TestInit_RefusesAVaultWhoseKeysSomebodyElseHolds(t *testing.T) {
	t.Parallel()
	l, o := manual(t)
	initByHand(t, l)
	if _, err := o.Init(t.Context()); !errors.Is(err, operator.ErrForeignKeys) {
		t.Errorf("got %v, want ErrForeignKeys", err)
	}
	if _, err := os.Stat(o.KeysPath()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("there is a file of keys: %v", err)
	}
}

func TestInit_RefusesKeysOfAnotherVault(t *testing.T) {
	t.Parallel()
	_, o := manual(t)
	if err := operator.WriteFile(o.KeysPath(), []byte(`{"unseal_keys_b64":["a"],"unseal_threshold":1,"root_token":"t"}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Init(t.Context()); err == nil || !strings.Contains(err.Error(), "another vault") {
		t.Errorf("got %v, want a refusal", err)
	}
}

// initByHand does what an operator does whose answer is lost.
func initByHand(t *testing.T, l *lab.Lab) {
	t.Helper()
	c, err := vault.NewClient(&vault.Config{Address: address(l)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloneConfig().HttpClient.CloseIdleConnections()
	if _, err := c.Sys().Init(&vault.InitRequest{SecretShares: 1, SecretThreshold: 1}); err != nil {
		t.Fatal(err)
	}
}

func TestConfigure_KeepsVaultsPasswordToVault(t *testing.T) {
	l := shared.Lab(t)
	o := operatorOf(t, l)
	before := passwordHash(t, l)
	if err := o.Configure(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := passwordHash(t, l); after != before {
		t.Error("configuring again changed Vault's password in the database")
	}
}

func TestConfigure_LeavesTheOperatorWithoutVaultsPassword(t *testing.T) {
	l := shared.Lab(t)
	if _, err := root(t, l).Logical().Delete("auth/approle/role/todo"); err != nil { // as if it had never been completed
		t.Fatal(err)
	}
	given := ""
	o, err := operator.New(operator.Config{
		Dir: filepath.Join(l.Dir(), "operator"), Vaults: []string{address(l)}, MySQLAddress: l.Addr("mysql") + ":3306",
		SQL: func(_ context.Context, statements ...string) error {
			for _, s := range statements {
				if _, rest, ok := strings.Cut(s, "IDENTIFIED BY '"); ok {
					given, _, _ = strings.Cut(rest, "'")
				}
			}
			execute(t, l, statements...)
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Configure(t.Context()); err != nil {
		t.Fatal(err)
	}
	if given == "" {
		t.Fatal("Vault's account was given no password")
	}
	c := mysql.NewConfig()
	c.User, c.Passwd, c.Net, c.Addr = "vault", given, "tcp", l.Addr("mysql")+":3306"
	connector, err := mysql.NewConnector(c)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	var refused *mysql.MySQLError
	if err := db.PingContext(t.Context()); !errors.As(err, &refused) || refused.Number != 1045 {
		t.Errorf("with the password that the operator knew: %v, want to be refused", err)
	}
}

func TestConfigure_RepairsADatabaseThatWasMadeAnew(t *testing.T) {
	l := shared.Lab(t)
	o := operatorOf(t, l)
	execute(t, l, "ALTER USER 'vault'@'%' IDENTIFIED BY 'known-to-somebody'")
	known := passwordHash(t, l)
	if err := o.Configure(t.Context()); err != nil {
		t.Fatal(err)
	}
	if passwordHash(t, l) == known {
		t.Error("Vault's password is still the one that somebody knows")
	}
	table(t, l)
	lease(t, l, operator.RoleTodo)
}

func TestConfigure_FinishesWhatWasCutOff(t *testing.T) {
	l := shared.Lab(t)
	c := root(t, l)
	// Cut off after Vault was given a password and before it changed it: the last step is not done, and somebody may
	// know the password.
	if _, err := c.Logical().Delete("auth/approle/role/todo"); err != nil {
		t.Fatal(err)
	}
	execute(t, l, "ALTER USER 'vault'@'%' IDENTIFIED BY 'known-to-somebody'")
	known := passwordHash(t, l)
	o := operatorOf(t, l)
	if done, err := o.Configured(t.Context()); err != nil || done {
		t.Errorf("configured: %v, %v", done, err)
	}
	if err := o.Configure(t.Context()); err != nil {
		t.Fatal(err)
	}
	if passwordHash(t, l) == known {
		t.Error("Vault's password is still the one that somebody knows")
	}
	if done, err := o.Configured(t.Context()); err != nil || !done {
		t.Errorf("configured: %v, %v", done, err)
	}
}

func TestConfigure_SaysWhenTheDatabaseCannotBeReached(t *testing.T) {
	l := shared.Lab(t)
	gone := errors.New("no database")
	o, err := operator.New(operator.Config{
		Dir: filepath.Join(l.Dir(), "operator"), Vaults: []string{address(l)}, MySQLAddress: l.Addr("mysql") + ":3306",
		SQL: func(context.Context, ...string) error { return gone },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Configure(t.Context()); !errors.Is(err, gone) || !strings.Contains(err.Error(), "connect vault to the database") {
		t.Errorf("got %v, want the database's error and which step it was", err)
	}
}

func TestRoles_MayDoWhatTheyNeedAndNoMore(t *testing.T) {
	l := shared.Lab(t)
	table(t, l)
	for role, want := range map[string][]string{
		operator.RoleTodo: {
			"GRANT SELECT, INSERT, UPDATE, DELETE ON `todo`.`todo` TO",
			"GRANT SELECT, INSERT, DELETE ON `todo`.`todo_write` TO",
		},
		operator.RoleMigrate: {"GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, REFERENCES, INDEX, ALTER ON `todo`.* TO"},
	} {
		grants := grantsOf(t, l, lease(t, l, role))
		want = append([]string{"GRANT USAGE ON *.* TO"}, want...)
		slices.Sort(grants)
		slices.SortFunc(want, strings.Compare)
		same := slices.EqualFunc(grants, want, func(grant, want string) bool {
			return strings.HasPrefix(grant, want) && !strings.Contains(grant, "GRANT OPTION")
		})
		if !same {
			t.Errorf("%s has %q, want only %q", role, grants, want)
		}
	}
}

// TestConfigure_NoticesTheGrantsOfAnOlderVersion is what happens to a lab that goes on with a new version of the project.
func TestConfigure_NoticesTheGrantsOfAnOlderVersion(t *testing.T) {
	l := shared.Lab(t)
	o := operatorOf(t, l)
	_, err := root(t, l).Logical().Write("database/roles/"+operator.RoleTodo, map[string]any{
		"db_name":             "mysql",
		"creation_statements": []string{"CREATE USER '{{name}}'@'%' IDENTIFIED BY '{{password}}'", "GRANT SELECT ON todo.todo TO '{{name}}'@'%'"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if done, err := o.Configured(t.Context()); err != nil || done {
		t.Errorf("configured: %v, %v", done, err)
	}
	if err := o.Configure(t.Context()); err != nil {
		t.Fatal(err)
	}
	if done, err := o.Configured(t.Context()); err != nil || !done {
		t.Errorf("configured: %v, %v", done, err)
	}
}

func TestRoles_LeaveNoAccountBehindWhileATableIsMissing(t *testing.T) {
	l := shared.Lab(t)
	table(t, l)
	execute(t, l, "DROP TABLE todo.todo_write")
	before := accounts(t, l)
	if _, err := root(t, l).Logical().Read("database/creds/" + operator.RoleTodo); err == nil {
		t.Error("an instance got an account without a table to work with")
	}
	if after := accounts(t, l); after != before {
		t.Errorf("%d accounts, %d before", after, before)
	}
	table(t, l)
	lease(t, l, operator.RoleTodo)
}

// accounts counts those of the database that Vault has made.
func accounts(t *testing.T, l *lab.Lab) (n int) {
	t.Helper()
	db, err := l.MySQL()
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM mysql.user WHERE user LIKE 'v-%'").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestIdentity_LeasesItsOwnRoleOnly(t *testing.T) {
	l := shared.Lab(t)
	table(t, l)
	o := operatorOf(t, l)
	id, err := o.Mint(t.Context(), "todo7")
	if err != nil {
		t.Fatal(err)
	}
	c := logIn(t, l, id)
	s, err := c.Logical().Read("database/creds/" + operator.RoleTodo)
	if err != nil {
		t.Fatalf("its own credentials: %v", err)
	}
	if s.LeaseDuration != 60 {
		t.Errorf("the lease lasts %d s, want 60", s.LeaseDuration)
	}
	for _, may := range []struct {
		what string
		do   func() error
	}{
		{"renew its token", func() error { _, err := c.Auth().Token().RenewSelf(0); return err }},
		{"renew its lease", func() error { _, err := c.Sys().Renew(s.LeaseID, 0); return err }},
		{"revoke its lease", func() error { return c.Sys().Revoke(s.LeaseID) }},
	} {
		if err := may.do(); err != nil {
			t.Errorf("%s: %v", may.what, err)
		}
	}
	for _, path := range []string{"database/creds/" + operator.RoleMigrate, "database/config/mysql", "auth/approle/role/todo/role-id", "sys/mounts", "cubbyhole/x"} {
		if _, err := c.Logical().Read(path); err == nil {
			t.Errorf("it may read %s", path)
		}
	}
	if err := c.Auth().Token().RevokeSelf(""); err != nil {
		t.Errorf("revoke its token: %v", err)
	}
}

func TestMint_DestroysTheEarlierIdentityOfTheSameInstanceOnly(t *testing.T) {
	l := shared.Lab(t)
	o := operatorOf(t, l)
	mint := func(instance string) operator.Identity {
		t.Helper()
		id, err := o.Mint(t.Context(), instance)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	old, other, fresh := mint("todo0"), mint("todo1"), mint("todo0")
	for name, c := range map[string]struct {
		id   operator.Identity
		want bool
	}{"the earlier": {old, false}, "another instance's": {other, true}, "the new": {fresh, true}} {
		if valid, err := o.Valid(t.Context(), c.id); err != nil || valid != c.want {
			t.Errorf("%s identity is valid: %v, %v; want %v", name, valid, err, c.want)
		}
	}
}

// All instances share the first half of their identity, by which Vault would count failures and lock everybody out.
func TestIdentity_ThatIsRefusedLocksNobodyElseOut(t *testing.T) {
	l := shared.Lab(t)
	id, err := operatorOf(t, l).Mint(t.Context(), "todo0")
	if err != nil {
		t.Fatal(err)
	}
	const moreThanVaultAllows = 7 // 5, unless told otherwise
	for range moreThanVaultAllows {
		if _, err := login(t, l, operator.Identity{RoleID: id.RoleID, SecretID: "destroyed"}); err == nil {
			t.Fatal("a wrong identity was let in")
		}
	}
	logIn(t, l, id)
}

func TestMintMigration_WorksOnce(t *testing.T) {
	l := shared.Lab(t)
	id, err := operatorOf(t, l).MintMigration(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	logIn(t, l, id)
	if _, err := login(t, l, id); err == nil {
		t.Error("it worked twice")
	}
}

func TestUnseal_StartsOverAfterHalfAnAttempt(t *testing.T) {
	t.Parallel()
	l, o := manual(t)
	if _, err := o.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, err := vault.NewClient(&vault.Config{Address: address(l)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloneConfig().HttpClient.CloseIdleConnections()
	if _, err := c.Sys().Unseal("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef01"); err != nil {
		t.Fatal(err) // a wrong share is noticed only when all are there
	}
	if changed, err := o.Unseal(t.Context(), address(l)); err != nil || !changed {
		t.Errorf("unseal: %v, %v", changed, err)
	}
}

func operatorOf(t *testing.T, l *lab.Lab) *operator.Operator {
	t.Helper()
	o, err := l.Operator()
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func root(t *testing.T, l *lab.Lab) *vault.Client {
	t.Helper()
	c, err := l.VaultClient(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// logIn returns a client with the identity's token.
func logIn(t *testing.T, l *lab.Lab, id operator.Identity) *vault.Client {
	t.Helper()
	token, err := login(t, l, id)
	if err != nil {
		t.Fatal(err)
	}
	c := root(t, l)
	c.SetToken(token)
	return c
}

func login(t *testing.T, l *lab.Lab, id operator.Identity) (token string, err error) {
	t.Helper()
	s, err := root(t, l).Logical().Write("auth/approle/login", map[string]any{"role_id": string(id.RoleID), "secret_id": string(id.SecretID)})
	if err != nil {
		return "", err
	}
	return s.Auth.ClientToken, nil
}

func execute(t *testing.T, l *lab.Lab, statements ...string) {
	t.Helper()
	db, err := l.MySQL()
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, s := range statements {
		if _, err := db.ExecContext(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
}

// table makes the tables that the todos' role is granted, as a migration does.
func table(t *testing.T, l *lab.Lab) {
	t.Helper()
	execute(t, l, "CREATE TABLE IF NOT EXISTS todo.todo (id BIGINT PRIMARY KEY)",
		"CREATE TABLE IF NOT EXISTS todo.todo_write (idempotency_key VARBINARY(255) PRIMARY KEY)")
}

// lease leases an account of a role as root and returns its name.
func lease(t *testing.T, l *lab.Lab, role string) (user string) {
	t.Helper()
	s, err := root(t, l).Logical().Read("database/creds/" + role)
	if err != nil {
		t.Fatalf("lease credentials of %s: %v", role, err)
	}
	user, _ = s.Data["username"].(string)
	return user
}

func grantsOf(t *testing.T, l *lab.Lab, user string) (grants []string) {
	t.Helper()
	db, err := l.MySQL()
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.QueryContext(t.Context(), "SHOW GRANTS FOR '"+user+"'@'%'")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var g string
		if err := rows.Scan(&g); err != nil {
			t.Fatal(err)
		}
		grants = append(grants, g)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return grants
}

// passwordHash is what the database has of the password of Vault's account.
func passwordHash(t *testing.T, l *lab.Lab) (hash string) {
	t.Helper()
	db, err := l.MySQL()
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.QueryRowContext(t.Context(), "SELECT authentication_string FROM mysql.user WHERE User = 'vault'").Scan(&hash)
	if err != nil || hash == "" {
		t.Fatalf("read the hash of Vault's password: %q, %v", hash, err)
	}
	return hash
}
