package overlay_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/planetmesh/planetmesh/overlay"
	"github.com/planetmesh/planetmesh/overlay/overlaytest"
)

// mustLeaveGoroutines waits until no more goroutines run than before.
func mustLeaveGoroutines(t testing.TB, before int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestClosedNetstackLeavesNoGoroutine(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 2 {
		func() {
			a, err := overlay.Open(t.Context(), overlay.Config{Store: mustInit(t, "one", "10.1.0.0/16"), LocalAddrs: loopback})
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			b, err := overlay.Open(t.Context(), overlay.Config{Store: mustJoin(t, a, "two", "10.2.0.0/16"), LocalAddrs: loopback})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			mustSee(t, a)
			mustSee(t, b)
			mustTalk(t, a, b)
		}()
	}
	mustLeaveGoroutines(t, before)
}

// mustTalk leaves a listener, a TCP connection and a UDP socket open.
func mustTalk(t testing.TB, a, b *overlay.Mesh) {
	t.Helper()
	l, err := a.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.ListenPacket("udp", ":53"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	out, err := b.DialContext(ctx, "tcp", net.JoinHostPort(a.Status().Self.Overlay.String(), "80"))
	if err != nil {
		t.Fatal(err)
	}
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(in, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

// bubble returns the stacks of the goroutines of the running synctest bubble.
// runtime.NumGoroutine would count the runtime's own as well.
func bubble() []string {
	buf := make([]byte, 4<<20)
	stacks := strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")
	return slices.DeleteFunc(stacks, func(s string) bool {
		head, _, _ := strings.Cut(s, "\n")
		return !strings.Contains(head, "synctest bubble")
	})
}

func TestClosedMeshLeavesNoGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := len(bubble())
		w := newWorld(t, 3, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 3})
		w.start(1)
		w.start(2)
		w.mustConverge(3, time.Minute)
		w.stop()
		synctest.Wait()
		if after := bubble(); len(after) > before {
			t.Errorf("%d goroutines, %d before:\n%s", len(after), before, strings.Join(after, "\n\n"))
		}
		// Close at every moment of a start.
		for i := range 30 {
			w.start(1)
			time.Sleep(time.Duration(i) * 3 * time.Millisecond) // virtual
			if err := w.meshes[1].Close(); err != nil {
				t.Errorf("close after %d ms: %v", 3*i, err)
			}
		}
		time.Sleep(10 * time.Second) // virtual: memberlist's probes have timeouts
		synctest.Wait()
		if after := bubble(); len(after) > before {
			t.Errorf("after many starts %d goroutines, %d before:\n%s", len(after), before, strings.Join(after, "\n\n"))
		}
	})
}

func TestCloseMayBeCalledByMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 2})
		defer w.stop()
		w.start(1)
		w.mustConverge(2, time.Minute)
		m := w.meshes[1]
		id := mustID(t, w.meshes[0])
		waited := make(chan error, 1)
		go func() { waited <- m.Wait() }()
		events := m.Watch(t.Context())
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if err := m.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
		}
		wg.Wait()
		if err := m.Close(); err != nil {
			t.Errorf("close once more: %v", err)
		}
		for range 2 {
			err := m.Wait()
			if !errors.Is(err, overlay.ErrClosed) || !errors.Is(err, net.ErrClosed) {
				t.Errorf("wait: got %v, want ErrClosed, which is net.ErrClosed", err)
			}
		}
		if err := <-waited; !errors.Is(err, overlay.ErrClosed) {
			t.Errorf("wait from before: got %v, want ErrClosed", err)
		}
		<-m.Done()
		for range events { // until it is closed
		}
		if _, open := <-m.Watch(t.Context()); open {
			t.Error("watch of a closed mesh gives events")
		}
		_, ticketErr := m.Ticket(overlay.TicketRequest{Site: "x"})
		_, dialErr := m.DialContext(t.Context(), "tcp", "10.0.0.1:80")
		_, listenErr := m.Listen("tcp", ":80")
		_, packetErr := m.ListenPacket("udp", ":80")
		for what, err := range map[string]error{
			"set routes": m.SetRoutes(t.Context(), nil), "set accept": m.SetAccept(nil), "ticket": ticketErr,
			"dial": dialErr, "listen": listenErr, "listen packet": packetErr,
		} {
			if !errors.Is(err, overlay.ErrClosed) {
				t.Errorf("%s: got %v, want ErrClosed", what, err)
			}
		}
		if _, err := m.Ping(t.Context(), id); err == nil {
			t.Error("ping of a closed mesh succeeded")
		}
		if s := m.Status(); s.Self.Gateway != "gw-site1" {
			t.Errorf("status of a closed mesh: %+v", s.Self)
		}
		m.Matrix(t.Context())
		w.start(1) // state and port are free again
		w.mustConverge(2, time.Minute)
	})
}

func TestContextOfOpenBoundsOpenAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newIssuer(t)
		defer w.stop()
		if err := w.meshes[0].Close(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		m, err := overlay.Open(ctx, w.config(0))
		if err != nil {
			t.Fatal(err)
		}
		w.meshes[0] = m
		cancel()
		time.Sleep(time.Minute) // virtual
		select {
		case <-m.Done():
			t.Errorf("mesh ended with the context of Open: %v", m.Wait())
		default:
		}
	})
}

// directory is a gateway's state as files, with what was in them.
type directory struct {
	t     testing.TB
	path  string
	files map[string][]byte
}

// newDirectory copies a gateway's state out of memory.
func newDirectory(t testing.TB, store overlay.Store) *directory {
	t.Helper()
	d := &directory{t: t, path: filepath.Join(t.TempDir(), "state")}
	disk := overlay.OpenDir(d.path)
	for _, name := range []string{
		"identity.key", "link.key", "wireguard.key", "authority.key", "issuer.key", "genesis", "epochs", "delegation",
		"certificate", "issuer.delegation", "issuer.ledger", "sequence", "time", "records", "revocations", "peers", "seeds", "redeemer",
	} {
		b, err := store.Load(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = disk.Save(name, b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	d.files = d.read()
	return d
}

// read returns the contents of all files but the lock.
func (d *directory) read() map[string][]byte {
	d.t.Helper()
	entries, err := os.ReadDir(d.path)
	if err != nil {
		d.t.Fatal(err)
	}
	files := make(map[string][]byte)
	for _, e := range entries {
		if e.Name() == "lock" {
			continue
		}
		b, err := os.ReadFile(filepath.Join(d.path, e.Name()))
		if err != nil {
			d.t.Fatal(err)
		}
		files[e.Name()] = b
	}
	return files
}

// restore brings back what was in the directory at first.
func (d *directory) restore() {
	d.t.Helper()
	for name := range d.read() {
		if d.files[name] == nil {
			if err := os.Remove(filepath.Join(d.path, name)); err != nil {
				d.t.Fatal(err)
			}
		}
	}
	for name, b := range d.files {
		d.write(name, b)
	}
}

func (d *directory) write(name string, b []byte) {
	d.t.Helper()
	if err := os.WriteFile(filepath.Join(d.path, name), b, 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// mustBe checks that the files are those in want.
func (d *directory) mustBe(what string, want map[string][]byte) {
	d.t.Helper()
	got := d.read()
	for name, b := range want {
		if !bytes.Equal(got[name], b) {
			d.t.Errorf("%s: %s was changed", what, name)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			d.t.Errorf("%s: %s was made", what, name)
		}
	}
}

// mustNotOpen opens a gateway, which must fail and leave nothing behind: no
// lock, no socket, no goroutine, no change.
func (w *world) mustNotOpen(what string, cfg overlay.Config) error {
	w.t.Helper()
	goroutines := len(bubble())
	m, err := overlay.Open(w.t.Context(), cfg)
	if err == nil {
		_ = m.Close()
		w.t.Errorf("%s: the gateway was opened", what)
		return nil
	}
	synctest.Wait()
	if after := bubble(); len(after) > goroutines {
		w.t.Errorf("%s: %d goroutines, %d before:\n%s", what, len(after), goroutines, strings.Join(after, "\n\n"))
	}
	if cfg.Store != nil {
		unlock, err := cfg.Store.Lock()
		if err != nil {
			w.t.Errorf("%s: state is still locked: %v", what, err)
		} else if err := unlock(); err != nil {
			w.t.Error(err)
		}
	}
	if cfg.ListenPacket != nil {
		conn, err := cfg.ListenPacket(w.t.Context(), cfg.Port)
		if err != nil {
			w.t.Errorf("%s: port is still open: %v", what, err)
		} else {
			_ = conn.Close()
		}
	}
	return err
}

func TestDamagedStateIsNamedAndLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 2})
		w.start(1)
		w.mustConverge(2, time.Minute)
		w.stop()
		// What is not needed to run is looked at when it is used; a damaged ledger
		// begins anew, which voids its tickets.
		tolerated := []string{"authority.key", "issuer.ledger", "redeemer"}
		seen := 0
		for i, store := range w.stores {
			d := newDirectory(t, store)
			cfg := w.config(i)
			cfg.Store = overlay.OpenDir(d.path)
			for name, content := range d.files {
				seen++
				for damage, b := range map[string][]byte{
					"flipped bit": flipped(content), "cut in half": content[:len(content)/2],
					"empty": nil, "other file's": d.files[otherThan(name)],
				} {
					what := fmt.Sprintf("gateway %d, %s, %s", i, name, damage)
					d.write(name, b)
					if slices.Contains(tolerated, name) {
						m, err := overlay.Open(t.Context(), cfg)
						if err != nil {
							t.Errorf("%s: %v", what, err)
						} else if err := m.Close(); err != nil {
							t.Errorf("%s: close: %v", what, err)
						}
						d.restore()
						continue
					}
					damaged := d.read()
					err := w.mustNotOpen(what, cfg)
					if !errors.Is(err, overlay.ErrStateCorrupt) || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "\n") {
						t.Errorf("%s: got %v, want ErrStateCorrupt with the name, in one line", what, err)
					}
					d.mustBe(what, damaged)
					d.write(name, content)
				}
			}
			m, err := overlay.Open(t.Context(), cfg)
			if err != nil {
				t.Fatalf("repaired state: %v", err)
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		}
		if seen < 20 {
			t.Errorf("%d files damaged, want those of an issuer and of a member", seen)
		}
	})
}

func flipped(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)*3/4] ^= 1
	return b
}

// otherThan names a file that every gateway has.
func otherThan(name string) string {
	if name == "genesis" {
		return "delegation"
	}
	return "genesis"
}

// Contents that the checksum covers, and that mean nothing: written by a newer
// or broken program.
func TestMeaninglessStateIsNamedAndLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 2})
		w.start(1)
		w.mustConverge(2, time.Minute)
		w.stop()
		foreign := mustInit(t, "site1", "10.1.0.0/16")
		d := newDirectory(t, w.stores[1])
		disk := overlay.OpenDir(d.path)
		cfg := w.config(1)
		cfg.Store = disk
		for _, c := range []struct {
			name string
			b    []byte
		}{
			{"identity.key", []byte("AAAA\n")},
			{"link.key", nil},
			{"wireguard.key", []byte("%%%\n")},
			{"genesis", []byte("planetmesh")},
			{"genesis", mustLoad(t, foreign, "genesis")},
			{"epochs", []byte{0, 0, 0, 9, 1}},
			{"delegation", []byte{3, 1, 0, 0, 0, 0}},
			{"certificate", nil},
			{"certificate", mustLoad(t, w.stores[0], "certificate")},
			{"sequence", []byte(`"many"`)},
			{"sequence", []byte(`{"generation": 1, "reserved": 9223372036854775807}`)},
			{"time", []byte(`"yesterday"`)},
			{"records", []byte{0, 0, 1}},
			{"records", []byte{255, 255, 255, 255}},
			{"revocations", []byte{0, 0, 0, 2, 9, 9}},
			{"peers", []byte(`[]`)},
			{"seeds", []byte(`{}`)},
		} {
			if err := disk.Save(c.name, c.b); err != nil {
				t.Fatal(err)
			}
			what, damaged := fmt.Sprintf("%s = %.20q", c.name, c.b), d.read()
			if err := w.mustNotOpen(what, cfg); err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: error in many lines: %v", what, err)
			}
			d.mustBe(what, damaged)
			d.restore()
		}
	})
}

func TestMissingStateFilesAreNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 2})
		w.start(1)
		w.mustConverge(2, time.Minute)
		w.stop()
		needed := []string{"identity.key", "link.key", "wireguard.key", "genesis", "delegation"}
		d := newDirectory(t, w.stores[1])
		cfg := w.config(1)
		cfg.Store = overlay.OpenDir(d.path)
		for name := range d.files {
			d.restore()
			if err := os.Remove(filepath.Join(d.path, name)); err != nil {
				t.Fatal(err)
			}
			without := d.read()
			switch {
			case name == "certificate":
				if err := w.mustNotOpen(name, cfg); !errors.Is(err, overlay.ErrNoState) {
					t.Errorf("without %s: got %v, want ErrNoState", name, err)
				}
				d.mustBe(name, without)
			case slices.Contains(needed, name):
				if err := w.mustNotOpen(name, cfg); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), name) {
					t.Errorf("without %s: got %v, want os.ErrNotExist with the name", name, err)
				}
				d.mustBe(name, without)
			default:
				m, err := overlay.Open(t.Context(), cfg)
				if err != nil {
					t.Errorf("without %s: %v", name, err)
					continue
				}
				if err := m.Close(); err != nil {
					t.Errorf("without %s: close: %v", name, err)
				}
			}
		}
	})
}

func TestExposedKeyFilesAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newIssuer(t)
		w.stop()
		d := newDirectory(t, w.stores[0])
		cfg := w.config(0)
		cfg.Store = overlay.OpenDir(d.path)
		for _, name := range []string{"identity.key", "link.key", "wireguard.key", "issuer.key"} {
			for _, mode := range []os.FileMode{0o644, 0o640, 0o604, 0o620} {
				path := filepath.Join(d.path, name)
				if err := os.Chmod(path, mode); err != nil {
					t.Fatal(err)
				}
				err := w.mustNotOpen(name, cfg)
				if !errors.Is(err, overlay.ErrStateExposed) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), fmt.Sprintf("%04o", mode)) {
					t.Errorf("%s with mode %o: got %v, want ErrStateExposed with path and mode", name, mode, err)
				}
				if err := os.Chmod(path, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		d.mustBe("exposed keys", d.files)
	})
}

func TestOpenThatCannotWorkLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newIssuer(t)
		w.stop()
		d := newDirectory(t, w.stores[0])
		good := w.config(0)
		good.Store = overlay.OpenDir(d.path)
		full := good
		full.Store = &powerCut{MemStore: w.stores[0].Clone(), name: "sequence"}
		with := func(change func(*overlay.Config)) overlay.Config {
			c := good
			change(&c)
			return c
		}
		var grant *overlay.GrantError
		for _, c := range []struct {
			name string
			cfg  overlay.Config
			ok   func(error) bool
		}{
			{"no state", with(func(c *overlay.Config) { c.Store = new(overlay.MemStore) }), is(overlay.ErrNoState)},
			{"no directory", with(func(c *overlay.Config) { c.Store = overlay.OpenDir(filepath.Join(t.TempDir(), "new")) }), is(overlay.ErrNoState)},
			{"route that is not granted", with(func(c *overlay.Config) {
				c.Routes = []overlay.Route{{Prefix: netip.MustParsePrefix("10.0.1.0/24")}, {Prefix: netip.MustParsePrefix("10.1.0.0/24")}}
			}), func(err error) bool {
				return errors.As(err, &grant) && grant.Prefix.String() == "10.1.0.0/24" && strings.Contains(err.Error(), "10.0.0.0/16")
			}},
			{"all faults at once", with(func(c *overlay.Config) {
				c.MTU, c.Device, c.Interface = 100, "tap", "a-name-that-is-too-long"
			}), func(err error) bool {
				return strings.Contains(err.Error(), "mtu 100") && strings.Contains(err.Error(), `"tap"`) && strings.Contains(err.Error(), "15 bytes")
			}},
			{"tun device without a directory", with(func(c *overlay.Config) {
				c.Device, c.Store = overlay.DeviceTUN, w.stores[0].Clone()
			}), func(err error) bool { return strings.Contains(err.Error(), "directory") }},
			{"full disk", full, is(syscall.ENOSPC)},
		} {
			if err := w.mustNotOpen(c.name, c.cfg); err != nil && !c.ok(err) {
				t.Errorf("%s: got %v", c.name, err)
			}
			d.mustBe(c.name, d.files)
		}
		if _, err := overlay.Open(t.Context(), overlay.Config{}); err == nil || !strings.Contains(err.Error(), "store") {
			t.Errorf("zero configuration: got %v, want an error about the store", err)
		}
	})
}

func is(want error) func(error) bool {
	return func(err error) bool { return errors.Is(err, want) }
}

func TestPortInUseIsNamed(t *testing.T) {
	taken, err := net.ListenUDP("udp", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	store := mustInit(t, "one")
	before := runtime.NumGoroutine()
	m, err := overlay.Open(t.Context(), overlay.Config{Store: store, Port: port})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(fmt.Sprint(err), fmt.Sprint(port)) {
		t.Errorf("got %v, want EADDRINUSE with port %d", err, port)
	}
	if m != nil {
		_ = m.Close()
	}
	mustLeaveGoroutines(t, before)
	if _, err := store.Load("sequence"); err == nil {
		t.Error("a sequence number was reserved")
	}
	m, err = overlay.Open(t.Context(), overlay.Config{Store: store})
	if err != nil {
		t.Fatalf("with another port: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

func TestStateInUseIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newIssuer(t)
		defer w.stop()
		d := newDirectory(t, w.stores[0])
		cfg := w.config(0)
		if _, err := overlay.Open(t.Context(), cfg); !errors.Is(err, overlay.ErrStateInUse) {
			t.Errorf("in memory: got %v, want ErrStateInUse", err)
		}
		host := w.network.Host(underlay(5))
		cfg.Store, cfg.ListenPacket, cfg.LocalAddrs = overlay.OpenDir(d.path), host.ListenPacket, host.Addrs
		m, err := overlay.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		cfg.Store = overlay.OpenDir(d.path)
		if _, err := overlay.Open(t.Context(), cfg); !errors.Is(err, overlay.ErrStateInUse) || !strings.Contains(fmt.Sprint(err), d.path) {
			t.Errorf("directory: got %v, want ErrStateInUse with its path", err)
		}
		if _, err := overlay.NewTicket(cfg.Store, siteTwo(t), []netip.AddrPort{endpoint(0)}); !errors.Is(err, overlay.ErrStateInUse) {
			t.Errorf("ticket from the directory: got %v, want ErrStateInUse", err)
		}
		if got := len(m.Status().Warnings); got != 0 {
			t.Errorf("warnings of the running gateway: %q", m.Status().Warnings)
		}
	})
}

func TestStateThatCannotBeWrittenIsNamed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	store := overlay.OpenDir(filepath.Join(file, "state"))
	_, initErr := overlay.Init(store, overlay.InitRequest{Mesh: "m", Site: "s"})
	_, openErr := overlay.Open(t.Context(), overlay.Config{Store: store})
	for what, err := range map[string]error{"init": initErr, "open": openErr} {
		if !errors.Is(err, syscall.ENOTDIR) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: got %v, want ENOTDIR with the path", what, err)
		}
	}
	for _, name := range []string{"identity.key", "issuer.key", "issuer.ledger", "genesis", "certificate"} {
		disk := &powerCut{MemStore: new(overlay.MemStore), name: name}
		if _, err := overlay.Init(disk, overlay.InitRequest{Mesh: "m", Site: "s"}); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("init with a disk full at %s: got %v, want ENOSPC", name, err)
		}
		mustHoldNoGateway(t, disk.MemStore)
		if _, err := overlay.Init(disk.MemStore, overlay.InitRequest{Mesh: "m", Site: "s"}); err != nil {
			t.Errorf("init after the disk was full at %s: %v", name, err)
		}
	}
}

func TestDiskThatFillsUpIsWarnedOfAndDoesNotStopTheMesh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 3})
		defer w.stop()
		cfg := w.config(1)
		cfg.Store = &powerCut{MemStore: w.stores[1], name: "records"}
		m, err := overlay.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		w.meshes[1] = m
		w.start(2)
		w.mustConverge(3, time.Minute)
		w.until(time.Minute, "a warning", func() bool {
			return slices.ContainsFunc(m.Status().Warnings, func(s string) bool { return strings.Contains(s, "records are not stored") })
		})
		w.meshes[1] = nil
		if err := m.Close(); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("close: got %v, want ENOSPC", err)
		}
		if err := m.Wait(); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("wait: got %v, want ENOSPC", err)
		}
		w.start(1) // the disk has room again
		w.mustConverge(3, time.Minute)
	})
}

func TestSetRoutesIsAllOrNothingAndReachesTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 3})
		defer w.stop()
		w.start(1)
		w.start(2)
		w.mustConverge(3, time.Minute)
		time.Sleep(10 * time.Second) // virtual
		before, sequence := w.pictures(), w.meshes[1].Status().Self.Sequence
		route := func(texts ...string) []overlay.Route {
			var out []overlay.Route
			for _, text := range texts {
				out = append(out, overlay.Route{Prefix: netip.MustParsePrefix(text)})
			}
			return out
		}
		for _, bad := range [][]overlay.Route{
			route("10.1.1.0/24", "10.2.0.0/24"), // another site's
			route("10.1.1.0/24", "10.0.0.0/8"),  // wider than the grant
			route("0.0.0.0/0"),
			route("fd00::/16"),
			route("10.1.0.0/16", "10.1.1.0/24"), // one within the other
			route("10.1.1.0/24", "10.1.1.0/24"),
			route("10.1.1.7/24"), // host bits
			{{}},
			make([]overlay.Route, 65),
		} {
			err := w.meshes[1].SetRoutes(t.Context(), bad)
			if err == nil {
				t.Errorf("%v was taken", bad)
			}
			if last := bad[len(bad)-1].Prefix; last == netip.MustParsePrefix("10.2.0.0/24") {
				grant, ok := errors.AsType[*overlay.GrantError](err)
				if !ok || grant.Prefix != last || !slices.Equal(grant.Granted, mustPrefixes(t, "10.1.0.0/16")) {
					t.Errorf("%v: got %v, want a *GrantError with the prefix and what is granted", bad, err)
				}
			}
		}
		time.Sleep(20 * time.Second) // virtual
		w.mustLookLike(before)
		if got := w.meshes[1].Status().Self.Sequence; got != sequence {
			t.Errorf("a record was published: sequence %d, was %d", got, sequence)
		}

		seen := func(want ...string) func() bool {
			return func() bool {
				for _, i := range []int{0, 2} {
					var got []string
					for _, r := range w.meshes[i].Status().Routes {
						if r.Gateway == "gw-site1" {
							got = append(got, r.Prefix.String())
						}
					}
					if !slices.Equal(got, want) {
						return false
					}
				}
				return true
			}
		}
		events := w.meshes[0].Watch(t.Context())
		for _, step := range [][]string{{"10.1.1.0/24", "10.1.2.0/24"}, {"10.1.2.0/24"}, nil, {"10.1.0.0/16"}} {
			if err := w.meshes[1].SetRoutes(t.Context(), route(step...)); err != nil {
				t.Fatal(err)
			}
			w.until(10*time.Second, fmt.Sprintf("others follow to %v", step), seen(step...))
		}
		kinds := make(map[overlay.EventKind]int)
		for len(events) > 0 {
			kinds[(<-events).Kind]++
		}
		if kinds[overlay.EventRouteAdded] != 3 || kinds[overlay.EventRouteRemoved] != 3 {
			t.Errorf("events: got %v, want 3 routes added and 3 removed", kinds)
		}
		// A route set before a restart is the configuration's business, not the state's.
		w.restart(1)
		w.until(20*time.Second, "all granted prefixes again", seen("10.1.0.0/16"))
	})
}

func TestWatchEndsWithItsContextOrTheMesh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 2})
		ctx, cancel := context.WithCancel(t.Context())
		short, long := w.meshes[0].Watch(ctx), w.meshes[0].Watch(t.Context())
		cancel()
		synctest.Wait()
		if _, open := <-short; open {
			t.Error("an event instead of the end")
		}
		w.start(1)
		w.mustConverge(2, time.Minute)
		w.stop()
		kinds := make(map[overlay.EventKind]int)
		for e := range long { // ends: the mesh has
			kinds[e.Kind]++
			if e.Time.IsZero() {
				t.Errorf("event without time: %+v", e)
			}
		}
		if kinds[overlay.EventPeerUp] != 1 || kinds[overlay.EventRouteAdded] != 1 {
			t.Errorf("events: got %v, want one peer up and one route added", kinds)
		}
	})
}

func TestUnreachablePeerKeepsItsRoutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 3})
		defer w.stop()
		w.start(1)
		w.start(2)
		w.mustConverge(3, time.Minute)
		events := w.meshes[0].Watch(t.Context())
		for i := range 3 {
			w.network.Cut(underlay(1), underlay(i))
			w.network.Cut(underlay(i), underlay(1))
		}
		w.until(15*time.Second, "peer is noticed to be away", func() bool {
			return peerStatus(w.meshes[0], "gw-site1").State == overlay.PeerUnreachable
		})
		for range 10 {
			if got := carrier(w.meshes[0], "10.1.0.0/16"); got != "gw-site1" {
				t.Fatalf("route of an unreachable site goes to %q", got)
			}
			time.Sleep(time.Minute) // virtual: memberlist has forgotten it long ago
		}
		for i := range 3 {
			w.network.Mend(underlay(1), underlay(i))
			w.network.Mend(underlay(i), underlay(1))
		}
		w.mustConverge(3, time.Minute)
		kinds := make(map[overlay.EventKind]int)
		for len(events) > 0 {
			if e := <-events; e.Gateway == "gw-site1" {
				kinds[e.Kind]++
			}
		}
		if kinds[overlay.EventPeerDown] != 1 || kinds[overlay.EventPeerUp] != 1 || len(kinds) != 2 {
			t.Errorf("events about the peer: got %v, want down and up", kinds)
		}
	})
}

// day is a day of virtual time.
const day = 24 * time.Hour

// sleepUntil lets virtual time pass while nobody runs.
func (w *world) sleepUntil(at time.Time) {
	w.stop()
	clear(w.meshes)
	time.Sleep(time.Until(at)) // virtual
}

func TestCertificatesAreRenewedAtHalfTheirLifeWhileTheMeshIsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		birth := time.Now()
		w := newWorld(t, 3, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 3})
		defer w.stop()
		w.sleepUntil(birth.Add(15*day - 5*time.Minute))
		for i := range 3 {
			w.start(i)
		}
		w.mustConverge(3, time.Minute)
		var events []<-chan overlay.Event
		for i := range 3 {
			events = append(events, w.meshes[i].Watch(t.Context()))
			if got := w.meshes[i].Status().Self.NotAfter; !got.Equal(birth.Add(30 * day).Truncate(time.Second)) {
				t.Errorf("gateway %d is certified until %v", i, got)
			}
		}
		renewed := func() bool {
			for i := range 3 {
				for j := range 3 {
					if p := peerStatus(w.meshes[i], fmt.Sprint("gw-site", j)); i != j && p.Generation != 2 {
						return false
					}
				}
			}
			return true
		}
		if time.Sleep(4 * time.Minute); renewed() { // virtual
			t.Error("certificates were renewed before half of their life")
		}
		w.until(10*time.Minute, "all are of generation 2 everywhere", renewed)
		time.Sleep(5 * time.Minute) // virtual
		w.mustConverge(3, time.Second)
		for i, c := range events {
			for len(c) > 0 {
				t.Errorf("gateway %d reports %+v during the renewal", i, <-c)
			}
			s := w.meshes[i].Status()
			if left := s.Self.NotAfter.Sub(birth); left < 44*day {
				t.Errorf("gateway %d is certified for %v after the beginning, want 45 days", i, left)
			}
			for _, warning := range s.Warnings {
				t.Errorf("gateway %d warns: %s", i, warning)
			}
		}
		// Once: not again at every look. And it is on disk.
		if !renewed() {
			t.Error("generations rose again")
		}
		w.restart(1)
		w.mustConverge(3, time.Minute)
		if got := peerStatus(w.meshes[0], "gw-site1").Generation; got != 2 {
			t.Errorf("generation after a restart: %d, want 2", got)
		}
	})
}

func TestRenewalWaitsForTheIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		birth := time.Now()
		w := newWorld(t, 3, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 3})
		defer w.stop()
		for i := 1; i < 3; i++ {
			w.start(i)
		}
		w.mustConverge(3, time.Minute) // so that the two know each other
		w.sleepUntil(birth.Add(16 * day))
		w.start(1)
		w.start(2)
		w.mustConverge(2, time.Minute)
		warned := func() bool {
			return slices.ContainsFunc(w.meshes[1].Status().Warnings, func(s string) bool { return strings.Contains(s, "could not be renewed yet") })
		}
		w.until(5*time.Minute, "a warning", warned)
		w.start(0)
		w.until(5*time.Minute, "renewal and the end of the warning", func() bool {
			return !warned() && peerStatus(w.meshes[0], "gw-site1").Generation == 2 && peerStatus(w.meshes[0], "gw-site2").Generation == 2
		})
	})
}

func TestExpiredPeerLosesItsRoutesWhateverItSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		birth := time.Now()
		w := newWorld(t, 3, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 3})
		defer w.stop()
		// The others renew in time; gateway 2 is away.
		w.sleepUntil(birth.Add(15 * day))
		w.start(0)
		w.start(1)
		w.until(5*time.Minute, "renewal", func() bool { return peerStatus(w.meshes[0], "gw-site1").Generation == 2 })
		// It comes back within the tolerance for clocks, with a clock that says that
		// it is not yet time to renew.
		const late = 30*day + 110*time.Minute
		w.sleepUntil(birth.Add(late))
		w.start(0)
		w.start(1)
		cfg := w.config(2)
		cfg.Now = func() time.Time { return time.Now().Add(15*day - time.Hour - late) }
		slow, err := overlay.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		w.meshes[2] = slow
		w.mustConverge(3, time.Minute)
		events := w.meshes[0].Watch(t.Context())
		gone := func() bool {
			for i := range 2 {
				if carrier(w.meshes[i], "10.2.0.0/16") != "" || peerStatus(w.meshes[i], "gw-site2").State == overlay.PeerUp {
					return false
				}
			}
			return true
		}
		w.until(20*time.Minute, "routes of the expired gateway are gone", gone)
		if since := time.Since(birth); since < 30*day+2*time.Hour {
			t.Errorf("gone after %v, which is within the tolerance", since)
		}
		removed := false
		for len(events) > 0 {
			e := <-events
			removed = removed || e.Kind == overlay.EventRouteRemoved && e.Gateway == "gw-site2"
		}
		if !removed {
			t.Error("no event says that the route went away")
		}
		// It goes on speaking, and is not believed again.
		for range 10 {
			time.Sleep(30 * time.Second) // virtual
			if !gone() {
				t.Fatalf("the expired gateway is back:\n%s", picture(w.meshes[0]))
			}
		}
		if got := count(w.meshes[0], "introduction.record") + count(w.meshes[0], "record.refused"); got == 0 {
			t.Error("nothing that the expired gateway said was counted as refused")
		}
		if got := carrier(w.meshes[0], "10.1.0.0/16"); got != "gw-site1" {
			t.Errorf("the other site's prefix goes to %q", got)
		}
	})
}

func TestGatewayWithAnExpiredCertificateDoesNotOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		birth := time.Now()
		w := newIssuer(t)
		w.sleepUntil(birth.Add(30*day + 3*time.Hour))
		d := newDirectory(t, w.stores[0])
		cfg := w.config(0)
		cfg.Store = overlay.OpenDir(d.path)
		err := w.mustNotOpen("expired", cfg)
		if err != nil && (!strings.Contains(err.Error(), "own certificate") || !strings.Contains(err.Error(), "ended 2000-01-31")) {
			t.Errorf("got %v, want an error about the own certificate with its end", err)
		}
		d.mustBe("expired", d.files)
		// A clock that was set back does not bring it to life again: what it showed
		// before is on disk.
		before := w.stores[0].Clone()
		if err := before.Save("time", []byte(fmt.Sprintf("%q\n", time.Now().Format(time.RFC3339)))); err != nil {
			t.Fatal(err)
		}
		cfg.Store, cfg.Now = before, func() time.Time { return birth }
		if err := w.mustNotOpen("clock set back", cfg); err != nil && !strings.Contains(err.Error(), "ended 2000-01-31") {
			t.Errorf("clock set back: got %v", err)
		}
	})
}
