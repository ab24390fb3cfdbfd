package overlay_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/planetmesh/planetmesh/overlay"
	"github.com/planetmesh/planetmesh/overlay/overlaytest"
)

// world is a mesh of many gateways in one process, in virtual time.
type world struct {
	t       testing.TB
	network *overlaytest.Network
	stores  []*overlay.MemStore
	meshes  []*overlay.Mesh
}

// Addresses of the documentation prefix for the underlay, so that nothing
// takes them for private ones.
func underlay(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)}) }

func (w *world) config(i int) overlay.Config {
	host := w.network.Host(underlay(i))
	return overlay.Config{
		Store: w.stores[i], Device: overlay.DeviceNone, Port: overlay.DefaultPort,
		ListenPacket: host.ListenPacket, LocalAddrs: host.Addrs,
	}
}

func (w *world) start(i int) {
	w.t.Helper()
	m, err := overlay.Open(w.t.Context(), w.config(i))
	if err != nil {
		w.t.Fatal(err)
	}
	w.meshes[i] = m
}

func (w *world) stop() {
	for _, m := range w.meshes {
		if m != nil {
			if err := m.Close(); err != nil {
				w.t.Errorf("close: %v", err)
			}
		}
	}
	// A probe that memberlist had under way ends with its own timeout, and a
	// bubble must not end before its goroutines.
	time.Sleep(10 * time.Second) // virtual
}

// newWorld founds a mesh of n gateways, each of a site of its own, and starts
// the first. The others have joined, and are not started.
func newWorld(t testing.TB, n int, o overlaytest.Options) *world {
	t.Helper()
	w := &world{t: t, network: overlaytest.NewNetwork(o), stores: make([]*overlay.MemStore, n), meshes: make([]*overlay.Mesh, n)}
	w.stores[0] = mustInit(t, "site0", "10.0.0.0/16")
	w.start(0)
	for i := 1; i < n; i++ {
		ticket, err := w.meshes[0].Ticket(overlay.TicketRequest{
			Site: fmt.Sprint("site", i), Prefixes: mustPrefixes(t, fmt.Sprintf("10.%d.0.0/16", i)),
		})
		if err != nil {
			t.Fatal(err)
		}
		w.stores[i] = new(overlay.MemStore)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		_, err = overlay.Join(ctx, w.stores[i], ticket, overlay.JoinOptions{ListenPacket: w.network.Host(underlay(i)).ListenPacket})
		cancel()
		if err != nil {
			t.Fatalf("join %d: %v", i, err)
		}
	}
	return w
}

// view is what a gateway knows of all others, as text to compare.
func view(m *overlay.Mesh) string {
	s := m.Status()
	lines := []string{fmt.Sprint(s.Self.Gateway, " ", s.Self.Sequence, " ", s.Self.Routes[0].Prefix)}
	routes := make(map[string]netip.Prefix)
	for _, r := range s.Routes {
		routes[r.Gateway] = r.Prefix
	}
	for _, p := range s.Peers {
		if p.State == overlay.PeerUp {
			lines = append(lines, fmt.Sprint(p.Gateway, " ", p.Sequence, " ", routes[p.Gateway]))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// converged reports whether all running gateways have the same view of all n.
func (w *world) converged(n int) (fault string) {
	first := ""
	for i, m := range w.meshes {
		if m == nil {
			continue
		}
		v := view(m)
		if got := strings.Count(v, "\n") + 1; got != n {
			return fmt.Sprintf("gateway %d sees %d of %d", i, got, n)
		}
		if first == "" {
			first = v
		}
		if v != first {
			return fmt.Sprintf("gateway %d has another view:\n%s\nwant:\n%s", i, v, first)
		}
	}
	return ""
}

// mustConverge lets virtual time pass until all views are complete and equal.
func (w *world) mustConverge(n int, limit time.Duration) {
	w.t.Helper()
	start := time.Now()
	for {
		synctest.Wait()
		fault := w.converged(n)
		if fault == "" {
			break
		}
		if time.Since(start) > limit {
			w.t.Fatalf("after %v of virtual time: %s", time.Since(start), fault)
		}
		time.Sleep(100 * time.Millisecond) // virtual
	}
	w.t.Logf("%d gateways have identical, complete views after %v of virtual time", n, time.Since(start))
}

func TestFiftyGatewaysReachIdenticalCompleteViews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 50
		w := newWorld(t, n, overlaytest.Options{Link: overlaytest.Link{Delay: 25 * time.Millisecond, Jitter: 10 * time.Millisecond}, Seed: 1})
		defer w.stop()
		for i := 1; i < n; i++ {
			w.start(i)
		}
		w.mustConverge(n, 2*time.Minute)
	})
}

func TestMeshInMemoryReformsWithoutItsSeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 6
		w := newWorld(t, n, overlaytest.Options{Link: overlaytest.Link{Delay: 25 * time.Millisecond, Loss: 0.02}, Seed: 2})
		defer w.stop()
		for i := 1; i < n; i++ {
			w.start(i)
		}
		w.mustConverge(n, time.Minute)
		time.Sleep(5 * time.Second) // virtual: records reach the stores
		w.stop()
		clear(w.meshes)
		for i := 1; i < n; i++ {
			w.start(i)
		}
		w.mustConverge(n-1, time.Minute)
	})
}
