package lab

import (
	"context"
	"errors"
	"fmt"
	"time"

	"example.com/todo/internal/operator"
	"example.com/todo/provision"
)

// VaultURL is where the Vault of a machine answers.
func VaultURL(m Machine) string { return "http://" + m.Addr + ":8200" }

// vaultServer is a Vault with its storage in Consul. It starts sealed, and what it is ready for depends on a person.
func (l *Lab) vaultServer(m Machine) *unit {
	u := &unit{lab: l, machine: m, name: RoleVault, stopWithin: 15 * time.Second}
	u.ports = tcp(m, 8200, 8201)
	u.prepare = func(context.Context) error {
		return render(u.file("vault.hcl"), "vault.hcl", provision.Vault{Address: m.Addr})
	}
	u.command = func() (command, error) {
		return command{path: l.binaries.Vault, args: []string{"server", "-config", u.file("vault.hcl")}}, nil
	}
	u.answers = func(ctx context.Context) error { return Answers(ctx, m, RoleVault) }
	u.ready = func(ctx context.Context) error {
		h, err := operator.AskHealth(ctx, VaultURL(m))
		switch {
		case err != nil:
			return err
		case !h.Initialized:
			return errors.New("not initialised")
		case h.Sealed:
			return errors.New("sealed")
		}
		return passing(m)(ctx)
	}
	return u
}

// resetVaultStorage stops the Vaults, deletes what they stored, and starts them as they were started before.
func (l *Lab) resetVaultStorage(ctx context.Context) error {
	by := map[string]string{}
	for _, m := range l.role(RoleVault) {
		u := l.service(m)
		p, running, err := u.find()
		if err != nil {
			return err
		}
		if running {
			by[u.id()] = p.by
			if _, err := u.stop(ctx, p); err != nil {
				return err
			}
		}
	}
	if err := l.deleteVaultStorage(ctx); err != nil {
		return fmt.Errorf("delete vault's storage: %w", err)
	}
	for _, m := range l.role(RoleVault) {
		u := l.service(m)
		if by[u.id()] == "" {
			continue
		}
		p, err := u.launch(ctx, by[u.id()])
		if err != nil {
			return err
		}
		if err := u.await(ctx, p, u.answers); err != nil {
			return err
		}
	}
	return nil
}
