package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	vault "github.com/hashicorp/vault/api"
)

// migrationTTL is how long a migration's identity, its token and its database account live at most.
const migrationTTL = 10 * time.Minute

// Identity is what one process logs in to Vault with. Neither part is of use without the other.
type Identity struct {
	RoleID   Secret
	SecretID Secret
}

// Mint makes an identity for one instance of the todo service and destroys the earlier ones of the same instance. Errors:
// ErrNotInitialised, ErrSealed, ErrNotConfigured.
func (o *Operator) Mint(ctx context.Context, instance string) (Identity, error) {
	c, err := o.Client(ctx)
	if err != nil {
		return Identity{}, err
	}
	earlier, err := accessors(ctx, c, RoleTodo, instance)
	if err != nil {
		return Identity{}, err
	}
	id, err := mint(ctx, c, RoleTodo, instance)
	if err != nil {
		return Identity{}, err
	}
	for _, a := range earlier {
		_, err := c.Logical().WriteWithContext(ctx, secretIDs(RoleTodo)+"-accessor/destroy", map[string]any{"secret_id_accessor": a})
		if err != nil {
			return Identity{}, fmt.Errorf("destroy an earlier identity of %s: %w", instance, err)
		}
	}
	return id, nil
}

// MintMigration makes an identity that can be used once, within minutes, by a process that changes the schema. Errors: as
// Mint.
func (o *Operator) MintMigration(ctx context.Context) (Identity, error) {
	c, err := o.Client(ctx)
	if err != nil {
		return Identity{}, err
	}
	return mint(ctx, c, RoleMigrate, "migration")
}

// Valid reports whether Vault still knows the identity of a todo instance.
func (o *Operator) Valid(ctx context.Context, id Identity) (bool, error) {
	c, err := o.Client(ctx)
	if err != nil {
		return false, err
	}
	s, err := c.Logical().WriteWithContext(ctx, secretIDs(RoleTodo)+"/lookup", map[string]any{"secret_id": string(id.SecretID)})
	if notFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up an identity: %w", err)
	}
	return s != nil && s.Data["secret_id_accessor"] != nil, nil
}

func mint(ctx context.Context, c *vault.Client, role, instance string) (Identity, error) {
	r, err := c.Logical().ReadWithContext(ctx, "auth/approle/role/"+role+"/role-id")
	if err != nil {
		return Identity{}, fmt.Errorf("read the role id of %s: %w", role, err)
	}
	if r == nil {
		return Identity{}, ErrNotConfigured
	}
	metadata, err := json.Marshal(map[string]string{"instance": instance})
	if err != nil {
		return Identity{}, fmt.Errorf("describe the identity of %s: %w", instance, err)
	}
	s, err := c.Logical().WriteWithContext(ctx, secretIDs(role), map[string]any{"metadata": string(metadata)})
	if err != nil {
		return Identity{}, fmt.Errorf("mint an identity for %s: %w", instance, err)
	}
	roleID, _ := r.Data["role_id"].(string)
	secretID, _ := s.Data["secret_id"].(string)
	if roleID == "" || secretID == "" {
		return Identity{}, fmt.Errorf("mint an identity for %s: vault's answer has none", instance)
	}
	return Identity{RoleID: Secret(roleID), SecretID: Secret(secretID)}, nil
}

// accessors lists the identities of one instance: by their accessors, since nobody can read them again.
func accessors(ctx context.Context, c *vault.Client, role, instance string) ([]string, error) {
	list, err := c.Logical().ListWithContext(ctx, secretIDs(role))
	if err != nil {
		return nil, fmt.Errorf("list the identities: %w", err)
	}
	if list == nil {
		return nil, nil
	}
	var mine []string
	all, _ := list.Data["keys"].([]any)
	for _, k := range all {
		accessor, _ := k.(string)
		s, err := c.Logical().WriteWithContext(ctx, secretIDs(role)+"-accessor/lookup", map[string]any{"secret_id_accessor": accessor})
		if notFound(err) {
			continue // gone since it was listed
		}
		if err != nil {
			return nil, fmt.Errorf("look up an identity: %w", err)
		}
		if m, _ := s.Data["metadata"].(map[string]any); m["instance"] == instance {
			mine = append(mine, accessor)
		}
	}
	return mine, nil
}

func secretIDs(role string) string { return "auth/approle/role/" + role + "/secret-id" }

func notFound(err error) bool {
	var r *vault.ResponseError
	return errors.As(err, &r) && r.StatusCode == http.StatusNotFound
}

func seconds(d time.Duration) string { return fmt.Sprintf("%ds", max(1, int64(d/time.Second))) }
