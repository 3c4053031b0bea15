package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"example.com/todo/internal/lab/wait"
	vault "github.com/hashicorp/vault/api"
)

const (
	shares    = 5
	threshold = 3

	keysFile = "vault-init.json"
	// begunFile exists from before Vault is asked for its keys until they are on the disk. If it is found and the keys
	// are not, the answer was lost on its way and nobody ever held them.
	begunFile = "vault-init-begun"
)

// Keys are what initialising Vault gave: whoever holds them holds everything. The file has the shape that
// `vault operator init -format=json` prints.
type Keys struct {
	Shares    []Secret `json:"unseal_keys_b64"`
	Number    int      `json:"unseal_shares"`
	Threshold int      `json:"unseal_threshold"`
	RootToken Secret   `json:"root_token"`
}

// KeysPath is the file that holds the keys, in the directory of an operator.
func KeysPath(dir string) string { return filepath.Join(dir, keysFile) }

// KeysPath is the file that holds this operator's keys.
func (o *Operator) KeysPath() string { return KeysPath(o.config.Dir) }

// Keys reads the operator's file. Error: ErrNotInitialised when there is none.
func (o *Operator) Keys() (Keys, error) {
	text, err := os.ReadFile(o.KeysPath())
	if errors.Is(err, fs.ErrNotExist) {
		return Keys{}, ErrNotInitialised
	}
	if err != nil {
		return Keys{}, fmt.Errorf("read the unseal keys: %w", err)
	}
	var k Keys
	if err := json.Unmarshal(text, &k); err != nil {
		return Keys{}, fmt.Errorf("read the unseal keys in %s: %w", o.KeysPath(), err)
	}
	if len(k.Shares) < k.Threshold || k.Threshold == 0 || k.RootToken == "" {
		return Keys{}, fmt.Errorf("%s does not hold the keys of a vault", o.KeysPath())
	}
	return k, nil
}

// Init initialises Vault with five key shares of which three unseal it, and keeps the answer in the operator's file. It
// reports whether there was anything to do. Error: ErrForeignKeys when somebody else did it.
func (o *Operator) Init(ctx context.Context) (changed bool, err error) {
	// Asking twice is for the initialisation that a killed run left under way: Vault may still be at it.
	const attempts = 3
	for range attempts {
		if changed, err = o.init(ctx); err == nil || ctx.Err() != nil || errors.Is(err, ErrForeignKeys) {
			return changed, err
		}
	}
	return changed, err
}

func (o *Operator) init(ctx context.Context) (changed bool, err error) {
	address, initialised, err := o.initialised(ctx)
	if err != nil {
		return false, err
	}
	_, err = o.Keys()
	haveKeys := err == nil
	if err != nil && !errors.Is(err, ErrNotInitialised) {
		return false, err
	}
	begun := exists(o.begunPath())

	switch {
	case initialised && haveKeys:
		return false, remove(o.begunPath())
	case haveKeys:
		return false, fmt.Errorf("%s holds the keys of another vault: this one was never initialised; move the file away if that vault is gone", o.KeysPath())
	case initialised && !begun:
		return false, fmt.Errorf("%w: %s does not exist; put it back, or wipe the lab and begin again", ErrForeignKeys, o.KeysPath())
	case initialised:
		if o.config.ResetStorage == nil {
			return false, fmt.Errorf("%w: the initialisation was cut off before they arrived; vault's storage must be emptied", ErrForeignKeys)
		}
		if err := o.config.ResetStorage(ctx); err != nil {
			return false, fmt.Errorf("empty vault's storage after an initialisation that was cut off: %w", err)
		}
		if address, initialised, err = o.initialised(ctx); err != nil {
			return false, err
		}
		if initialised {
			return false, errors.New("vault's storage was emptied, and it still calls itself initialised")
		}
	}
	return true, o.askForKeys(ctx, address)
}

func (o *Operator) askForKeys(ctx context.Context, address string) error {
	if err := WriteFile(o.begunPath(), nil); err != nil {
		return fmt.Errorf("note that the initialisation begins: %w", err)
	}
	c, err := o.client(address, "")
	if err != nil {
		return err
	}
	answer, err := c.Sys().InitWithContext(ctx, &vault.InitRequest{SecretShares: shares, SecretThreshold: threshold})
	if err != nil {
		return fmt.Errorf("initialise vault: %w", err)
	}
	k := Keys{Number: shares, Threshold: threshold, RootToken: Secret(answer.RootToken)}
	for _, s := range answer.KeysB64 {
		k.Shares = append(k.Shares, Secret(s))
	}
	text, err := json.MarshalIndent(k, "", "  ")
	if err != nil {
		return fmt.Errorf("keep the unseal keys: %w", err)
	}
	if err := WriteFile(o.KeysPath(), append(text, '\n')); err != nil {
		return fmt.Errorf("keep the unseal keys: %w", err)
	}
	return remove(o.begunPath())
}

// initialised asks the Vaults until one answers; they share their storage, so one answer is everybody's.
func (o *Operator) initialised(ctx context.Context) (address string, initialised bool, err error) {
	err = wait.Within(ctx, callTimeout, askEvery, func(ctx context.Context) error {
		var last error
		for _, a := range o.config.Vaults {
			h, err := askHealth(ctx, o.http, a)
			if err == nil {
				address, initialised = a, h.Initialized
				return nil
			}
			last = err
		}
		return last
	})
	return address, initialised, err
}

// Unseal gives one Vault the shares it needs. It reports whether the Vault was sealed. Error: ErrNotInitialised.
func (o *Operator) Unseal(ctx context.Context, address string) (changed bool, err error) {
	keys, err := o.Keys()
	if err != nil {
		return false, err
	}
	c, err := o.client(address, "")
	if err != nil {
		return false, err
	}
	status, err := c.Sys().SealStatusWithContext(ctx)
	if err != nil {
		return false, fmt.Errorf("ask %s whether it is sealed: %w", address, err)
	}
	if !status.Initialized {
		return false, ErrNotInitialised
	}
	if !status.Sealed {
		return false, nil
	}
	// Shares that somebody gave before may be half of another attempt: begin anew.
	if status, err = c.Sys().ResetUnsealProcessWithContext(ctx); err != nil {
		return false, fmt.Errorf("unseal %s: %w", address, err)
	}
	for _, share := range keys.Shares[:keys.Threshold] {
		if !status.Sealed {
			break
		}
		if status, err = c.Sys().UnsealWithContext(ctx, string(share)); err != nil {
			return false, fmt.Errorf("unseal %s: %w", address, err)
		}
	}
	if status.Sealed {
		return false, fmt.Errorf("unseal %s: %d shares were not enough", address, keys.Threshold)
	}
	return true, nil
}

func (o *Operator) begunPath() string { return filepath.Join(o.config.Dir, begunFile) }

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// WriteFile replaces a file whole, for its owner's eyes only, and returns when it is on the disk: a reader sees the old
// text or the new one, and a crash leaves one of them.
func WriteFile(path string, text []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, remove(f.Name()))
		}
	}()
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
