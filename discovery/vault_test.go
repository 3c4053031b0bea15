package discovery

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/todo/internal/labtest"
)

const activeBody = `{"initialized":true,"sealed":false,"standby":false}`

// fakeVault answers /v1/sys/health with a status that can be changed.
type fakeVault struct {
	*httptest.Server
	status atomic.Int64 // 0: does not answer
	body   atomic.Value
	asked  atomic.Int64
	// activeAt is the question before which it becomes active; 0: never.
	activeAt, activeSince atomic.Int64
}

func newFakeVault(t *testing.T, status int) *fakeVault {
	v := &fakeVault{}
	v.status.Store(int64(status))
	v.body.Store(activeBody)
	v.Server = serve(t, func(w http.ResponseWriter, r *http.Request) {
		if n := v.asked.Add(1); n == v.activeAt.Load() {
			v.status.Store(200)
			v.activeSince.Store(time.Now().UnixNano())
		}
		if r.URL.Path != "/v1/sys/health" || r.URL.RawQuery != "" {
			t.Errorf("asked for %s", r.URL)
		}
		status := int(v.status.Load())
		if status == 0 {
			<-r.Context().Done()
			return
		}
		w.WriteHeader(status)
		fmt.Fprint(w, v.body.Load())
	})
	return v
}

func (v *fakeVault) instance(h Health, index uint64, tags ...string) Instance {
	return Instance{Addr: hostOf(v.Server), Health: h, Tags: tags, index: index}
}

func finderOf(t *testing.T, cfg VaultConfig, all ...Instance) (*VaultFinder, *Watch) {
	t.Helper()
	w := newWatch(t, Config{})
	show(w, all...)
	f, err := NewVaultFinder(w, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return f, w
}

// show makes all the catalogue.
func show(w *Watch, all ...Instance) {
	sortInstances(all)
	w.take(FromAPI, all, nil)
}

func expectVault(t *testing.T, f *VaultFinder, want *fakeVault) {
	t.Helper()
	addr, err := f.Addr(t.Context())
	if err != nil || addr != want.URL {
		t.Errorf("got %q, %v, want %s", addr, err, want.URL)
	}
}

func TestVaultFinder_AsksOnlyTheTaggedOneIfAllIsWell(t *testing.T) {
	active, standby := newFakeVault(t, 200), newFakeVault(t, 429)
	f, _ := finderOf(t, VaultConfig{Recheck: time.Hour}, standby.instance(Passing, 1, "standby"), active.instance(Passing, 2, "active"))
	for range 100 {
		expectVault(t, f, active)
	}
	if active.asked.Load() != 1 || standby.asked.Load() != 0 {
		t.Errorf("the active one was asked %d times, the standby %d times", active.asked.Load(), standby.asked.Load())
	}
}

func TestVaultFinder_TakesNoTagForProof(t *testing.T) {
	for _, status := range []int{429, 472, 473, 474, 501, 503, 500, 302, 0} {
		tagged, active := newFakeVault(t, status), newFakeVault(t, 200)
		f, _ := finderOf(t, VaultConfig{}, tagged.instance(Passing, 9, "active"), active.instance(Passing, 1, "standby"))
		began := time.Now()
		expectVault(t, f, active)
		if took := time.Since(began); took > 500*time.Millisecond {
			t.Errorf("status %d: took %s", status, took)
		}
	}
}

func TestVaultFinder_FindsAnActiveOneThatConsulThinksSick(t *testing.T) {
	active, standby := newFakeVault(t, 200), newFakeVault(t, 429)
	f, _ := finderOf(t, VaultConfig{}, active.instance(Critical, 1), standby.instance(Passing, 2, "standby"))
	expectVault(t, f, active)
}

func TestVaultFinder_IsNotTakenInByAnotherServerThatAnswers200(t *testing.T) {
	for _, body := range []string{"", "ok", "{}", "null", `{"initialized":true}`, `{"initialized":true,"sealed":true,"standby":false}`,
		`{"initialized":true,"sealed":false,"standby":true}`, strings.Repeat(" ", maxHealth) + activeBody} {
		v := newFakeVault(t, 200)
		v.body.Store(body)
		f, _ := finderOf(t, VaultConfig{}, v.instance(Passing, 1, "active"))
		if addr, err := f.Addr(t.Context()); !errors.Is(err, ErrNoActive) {
			t.Errorf("body %.50q: got %q, %v", body, addr, err)
		}
	}
}

func TestVaultFinder_SaysOfEachCandidateWhyItIsNotActive(t *testing.T) {
	sealed, standby, silent, closed := newFakeVault(t, 503), newFakeVault(t, 474), newFakeVault(t, 0), newFakeVault(t, 200)
	closed.Close()
	f, w := finderOf(t, VaultConfig{Timeout: 200 * time.Millisecond}, sealed.instance(Critical, 1), standby.instance(Passing, 1), silent.instance(Passing, 1), closed.instance(Passing, 1))
	_, err := f.Addr(t.Context())
	if !errors.Is(err, ErrNoActive) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{
		hostOf(sealed.Server) + " is sealed", hostOf(standby.Server) + " is standby and sees no active vault",
		hostOf(silent.Server) + " does not answer", hostOf(closed.Server) + " unreachable: ", "connection refused",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	show(w, Instance{Addr: hostOf(sealed.Server), Health: Maintenance}, Instance{Addr: hostOf(standby.Server), Health: Maintenance})
	w.cfg.HoldEmpty = 0
	show(w)
	if _, err := f.Addr(t.Context()); !errors.Is(err, ErrNoActive) || !strings.Contains(err.Error(), "no instance") {
		t.Errorf("without a candidate: %v", err)
	}
}

func TestVaultFinder_FollowsAFailover(t *testing.T) {
	a, b := newFakeVault(t, 200), newFakeVault(t, 429)
	f, w := finderOf(t, VaultConfig{Recheck: 50 * time.Millisecond}, a.instance(Passing, 1, "active"), b.instance(Passing, 1, "standby"))
	expectVault(t, f, a)
	a.status.Store(0) // paused: it does not even refuse
	b.status.Store(474)
	labtest.Eventually(t, 2*time.Second, "the old one is not believed any more", func() bool { _, err := f.Addr(t.Context()); return err != nil })
	b.activeAt.Store(b.asked.Load() + 3)
	addr, err := f.Await(t.Context())
	if took := time.Since(time.Unix(0, b.activeSince.Load())); err != nil || addr != b.URL || took > 2*time.Second {
		t.Errorf("after %s got %q, %v", took, addr, err)
	}
	// When the tag has followed, the new one is asked first.
	show(w, a.instance(Critical, 1, "active"), b.instance(Passing, 5, "active"))
	n := a.asked.Load()
	expectVault(t, f, b)
	if a.asked.Load() != n {
		t.Error("the old one is asked although the new one has the newer tag")
	}
}

func TestVaultFinder_AsksAgainAsSoonAsTheCatalogueChanges(t *testing.T) {
	a, b := newFakeVault(t, 200), newFakeVault(t, 429)
	f, w := finderOf(t, VaultConfig{Recheck: time.Hour}, a.instance(Passing, 1, "active"), b.instance(Passing, 1, "standby"))
	expectVault(t, f, a)
	a.status.Store(429)
	b.status.Store(200)
	expectVault(t, f, a) // believed for an hour
	show(w, a.instance(Passing, 2, "standby"), b.instance(Passing, 3, "active"))
	expectVault(t, f, b)
}

func TestVaultFinder_TurnsToAnotherClaimantWhenOneIsForgotten(t *testing.T) {
	old, young := newFakeVault(t, 200), newFakeVault(t, 200)
	f, _ := finderOf(t, VaultConfig{Recheck: time.Hour}, old.instance(Passing, 9, "active"), young.instance(Passing, 1, "standby"))
	expectVault(t, f, old)
	f.Forget(old.URL)
	expectVault(t, f, young)
	young.Close()
	f.Forget(young.URL)
	expectVault(t, f, old) // there is no other
}

func TestVaultFinder_PrefersTheNewestOfSeveralTags(t *testing.T) {
	a, b := newFakeVault(t, 200), newFakeVault(t, 200)
	for i := range 10 {
		f, _ := finderOf(t, VaultConfig{}, a.instance(Passing, uint64(10+i%2), "active"), b.instance(Passing, uint64(11-i%2), "active"))
		expectVault(t, f, []*fakeVault{b, a}[i%2])
	}
}

func TestVaultFinder_EndsWithItsContext(t *testing.T) {
	silent := newFakeVault(t, 0)
	f, _ := finderOf(t, VaultConfig{Timeout: time.Minute}, silent.instance(Passing, 1))
	unanswered, err := NewVaultFinder(newWatch(t, Config{}), VaultConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]func(context.Context) (string, error){
		"Addr": f.Addr, "Await": f.Await, "Addr before the first answer": unanswered.Addr, "Await before the first answer": unanswered.Await} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		began := time.Now()
		_, err := call(ctx)
		cancel()
		if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took > time.Second {
			t.Errorf("%s took %s: %v", name, took, err)
		}
	}
}

func TestVaultFinder_AsksOnceForAllWhoWait(t *testing.T) {
	silent := newFakeVault(t, 0)
	f, _ := finderOf(t, VaultConfig{Timeout: 200 * time.Millisecond}, silent.instance(Passing, 1))
	began := time.Now()
	var callers sync.WaitGroup
	for range 20 {
		callers.Go(func() {
			if _, err := f.Addr(t.Context()); !errors.Is(err, ErrNoActive) {
				t.Errorf("got %v", err)
			}
		})
	}
	callers.Wait()
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("20 callers took %s", took)
	}
}
