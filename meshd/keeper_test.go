package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/planetmesh/planetmesh/meshd/internal/attach"
	"github.com/planetmesh/planetmesh/meshd/internal/conf"
	"github.com/planetmesh/planetmesh/meshd/internal/routeset"
	"github.com/planetmesh/planetmesh/overlay"
)

// fragileStore refuses to store route sets while it is full.
type fragileStore struct {
	*overlay.MemStore
	full atomic.Bool
}

func (s *fragileStore) Save(name string, b []byte) error {
	if name == routeset.File && s.full.Load() {
		return syscall.ENOSPC
	}
	return s.MemStore.Save(name, b)
}

// newKeeper is that of a gateway without a device, which is granted
// 192.168.10.0/24 and 10.128.0.0/16 and announces the first.
func newKeeper(t *testing.T) (keeper, *fragileStore) {
	t.Helper()
	store := &fragileStore{MemStore: new(overlay.MemStore)}
	_, err := overlay.Init(store, overlay.InitRequest{Mesh: "planet", Site: "10", Prefixes: []netip.Prefix{
		netip.MustParsePrefix("192.168.10.0/24"), netip.MustParsePrefix("10.128.0.0/16"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	c := conf.Default()
	c.Announce = []overlay.Route{{Prefix: netip.MustParsePrefix("192.168.10.0/24")}}
	d := newDaemon(new(places), logFlags{}, c, t.Output())
	d.log = slog.New(slog.DiscardHandler)
	d.device, d.store = overlay.DeviceNone, store
	loopback := func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("127.0.0.1")} }
	if d.mesh, err = overlay.Open(t.Context(), overlay.Config{Store: store, Device: overlay.DeviceNone, LocalAddrs: loopback}); err != nil {
		t.Fatal(err)
	}
	d.attach = attach.New(attach.Config{Mesh: d.mesh, Dir: t.TempDir()})
	t.Cleanup(func() {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	})
	first := d.plan(c, nil, "")
	if err := d.attach.Apply(t.Context(), first.desired()); err != nil {
		t.Fatal(err)
	}
	d.now.Store(first)
	return keeper{d}, store
}

func parseSet(t *testing.T, name, body string) routeset.Set {
	t.Helper()
	s, err := routeset.Parse(name, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// announced are the prefixes that the mesh was told, in order.
func (k keeper) announced() string {
	var out []netip.Prefix
	for _, r := range k.d.mesh.Routes() {
		out = append(out, r.Prefix)
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return fmt.Sprint(out)
}

func TestSetThatCannotBeStoredIsNotInEffect(t *testing.T) {
	k, store := newKeeper(t)
	pods, more := parseSet(t, "pods", `{"announce": ["10.128.0.0/18"]}`), parseSet(t, "pods", `{"announce": ["10.128.64.0/18"]}`)
	if changed, err := k.Put(t.Context(), pods); err != nil || !changed {
		t.Fatalf("put: %v, %v", changed, err)
	}
	const before = "[10.128.0.0/18 192.168.10.0/24]"
	store.full.Store(true)
	if _, err := k.Put(t.Context(), more); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("put on a full disk: %v", err)
	}
	if err := k.Delete(t.Context(), "pods"); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("delete on a full disk: %v", err)
	}
	if got := k.announced(); got != before || len(k.List()) != 1 || !k.List()[0].Equal(pods) {
		t.Errorf("announced %s, sets %v, want all as before", got, k.List())
	}
	store.full.Store(false)
	if changed, err := k.Put(t.Context(), more); err != nil || !changed || k.announced() != "[10.128.64.0/18 192.168.10.0/24]" {
		t.Errorf("put with room again: %v, %v, announced %s", changed, err, k.announced())
	}
}

func TestSetsThatCountOnAnotherKeepIt(t *testing.T) {
	k, _ := newKeeper(t)
	k.d.device = overlay.DeviceTUN // so that routes are planned; the mesh itself refuses them
	d := k.d
	sets := []routeset.Set{
		parseSet(t, "block", `{"announce": ["10.128.0.0/18"]}`),
		parseSet(t, "nodes", `{"lan": [{"prefix": "10.128.1.0/24", "via": "192.168.10.101"}]}`),
	}
	now := d.plan(d.conf, sets, "")
	if len(now.problems) != 0 {
		t.Fatalf("problems %v", now.problems)
	}
	d.now.Store(now)
	err := k.Delete(t.Context(), "block")
	if e, ok := errors.AsType[*routeset.Error](err); !ok || e.Name != "nodes" {
		t.Errorf("delete what another set counts on: %v, want the other set named", err)
	}
	// A new set gives way to those that are there, whatever their names.
	other := parseSet(t, "a", `{"lan": [{"prefix": "10.128.1.0/24", "via": "192.168.10.102"}]}`)
	_, err = k.Put(t.Context(), other)
	if e, ok := errors.AsType[*routeset.Error](err); !ok || e.Name != "a" {
		t.Errorf("put what another set has: %v, want the new set named", err)
	}
	// Without a device nothing is routed, and nothing of the set stays.
	if _, err := k.Put(t.Context(), parseSet(t, "c", `{"announce": ["10.128.64.0/18"], "lan": [{"prefix": "10.128.64.0/24", "via": "192.168.10.101"}]}`)); !errors.Is(err, overlay.ErrUnsupported) {
		t.Errorf("put: %v, want ErrUnsupported", err)
	}
	if got := k.announced(); got != "[192.168.10.0/24]" || len(k.List()) != 2 {
		t.Errorf("announced %s, sets %v", got, k.List())
	}
}

func TestManyMayChangeSetsAtOnce(t *testing.T) {
	k, store := newKeeper(t)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			name := fmt.Sprint("s", i)
			body := fmt.Sprintf(`{"announce": ["10.128.%d.0/24"]}`, i)
			set, err := routeset.Parse(name, []byte(body))
			if err != nil {
				t.Error(err)
				return
			}
			for range 5 {
				if _, err := k.Put(t.Context(), set); err != nil {
					t.Error(err)
				}
				if i%2 == 1 {
					if err := k.Delete(t.Context(), name); err != nil {
						t.Error(err)
					}
				}
				k.List()
				k.d.origin(set.Announce[0])
			}
		})
	}
	wg.Wait()
	const want = "[10.128.0.0/24 10.128.2.0/24 10.128.4.0/24 192.168.10.0/24]"
	stored, err := routeset.Load(store)
	if got := k.announced(); err != nil || got != want || len(stored) != 3 || len(k.List()) != 3 {
		t.Errorf("announced %s, %d stored, %v; want %s and 3", got, len(stored), err, want)
	}
}
