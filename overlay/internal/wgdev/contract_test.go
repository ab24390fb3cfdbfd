package wgdev

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/planetmesh/planetmesh/overlay/internal/engine"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// configs are the devices that need no privileges, as gateway 1 has them.
func configs() map[string]func() Config {
	base := func(kind Kind) Config {
		return Config{Kind: kind, Bind: newHub().bind(testID(1)), PrivateKey: testKey(1), EndpointText: endpointText}
	}
	return map[string]func() Config{
		"none":     func() Config { return Config{Kind: None} },
		"netstack": func() Config { return base(InProcess) },
		"given": func() Config {
			c := base(Given)
			c.Device = tuntest.NewChannelTUN().TUN()
			return c
		},
		"model": func() Config { return base(Given) },
	}
}

func TestContract(t *testing.T) {
	for name, config := range configs() {
		t.Run(name, func(t *testing.T) {
			contract(t, func(t *testing.T) Device {
				open := Open
				if name == "model" {
					open = openModel
				}
				d, err := open(config())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { closeDevice(t, d) })
				return d
			})
		})
	}
}

func openModel(c Config) (Device, error) { return OpenModel(c, ModelOptions{}) }

func closeDevice(t testing.TB, d Device) {
	t.Helper()
	within(t, "close", func() {
		if err := d.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
}

// contract is what every Device keeps. Its own gateway is number 1.
func contract(t *testing.T, open func(*testing.T) Device) {
	prefixes := func(s ...string) (out []netip.Prefix) {
		for _, p := range s {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	peers := func(t *testing.T, d Device, want ...Peer) {
		t.Helper()
		if diff := cmp.Diff(want, d.Peers(), cmpopts.EquateEmpty(), samePrefix); diff != "" {
			t.Errorf("peers: -want +got:\n%s", diff)
		}
	}
	two := Peer{testID(2), publicKey(2), prefixes("10.2.0.0/16", "fd00::2/128")}
	three := Peer{testID(3), publicKey(3), prefixes("10.3.0.0/16")}
	change := func(op engine.Op, n byte, p string) engine.Changes {
		c := engine.Change{Op: op, Peer: testID(n), Key: publicKey(n)}
		if p != "" {
			c.Prefix = netip.MustParsePrefix(p)
		}
		return engine.Changes{c}
	}

	t.Run("a new device has no peers", func(t *testing.T) {
		noGoroutinesLeft(t)
		d := open(t)
		peers(t, d)
		if got := d.Stats(); len(got) != 0 {
			t.Errorf("stats %v, want none", got)
		}
		if d.MTU() != DefaultMTU {
			t.Errorf("mtu %d, want %d", d.MTU(), DefaultMTU)
		}
		if d.Err() != nil {
			t.Error(d.Err())
		}
	})
	t.Run("changes are made, also a second time", func(t *testing.T) {
		noGoroutinesLeft(t)
		d := open(t)
		changes := slices.Concat(addPeer(3, "10.3.0.0/16"), addPeer(2, "fd00::2/128", "10.2.0.0/16"))
		mustApply(t, d, changes)
		peers(t, d, two, three)
		mustApply(t, d, changes, nil)
		peers(t, d, two, three)
	})
	t.Run("a prefix moves and goes alone", func(t *testing.T) {
		d := open(t)
		mustApply(t, d, addPeer(2, "fd00::2/128", "10.2.0.0/16"), addPeer(3, "10.3.0.0/16"))
		mustApply(t, d, change(engine.AddPrefix, 3, "10.2.0.0/16"))
		peers(t, d, Peer{testID(2), publicKey(2), prefixes("fd00::2/128")}, Peer{testID(3), publicKey(3), prefixes("10.2.0.0/16", "10.3.0.0/16")})
		mustApply(t, d, change(engine.RemovePrefix, 2, "10.2.0.0/16")) // no longer its own
		mustApply(t, d, change(engine.RemovePrefix, 3, "10.3.0.0/16"))
		peers(t, d, Peer{testID(2), publicKey(2), prefixes("fd00::2/128")}, Peer{testID(3), publicKey(3), prefixes("10.2.0.0/16")})
	})
	t.Run("a peer goes with its prefixes", func(t *testing.T) {
		d := open(t)
		mustApply(t, d, addPeer(2, "fd00::2/128", "10.2.0.0/16"), addPeer(3, "10.3.0.0/16"))
		mustApply(t, d, change(engine.RemovePeer, 3, ""), change(engine.RemovePeer, 4, ""))
		peers(t, d, two)
		if _, ok := d.Stats()[publicKey(3)]; ok {
			t.Error("stats of a peer that is gone")
		}
		mustApply(t, d, addPeer(3))
		peers(t, d, two, Peer{ID: testID(3), Key: publicKey(3)})
	})
	t.Run("a wrong change undoes the whole list", func(t *testing.T) {
		d := open(t)
		mustApply(t, d, addPeer(2, "fd00::2/128", "10.2.0.0/16"))
		for name, wrong := range map[string]engine.Change{
			"unknown operation":         {Op: 99, Peer: testID(2), Key: publicKey(2)},
			"zero key":                  {Op: engine.AddPeer, Peer: testID(4)},
			"key of another gateway":    {Op: engine.AddPeer, Peer: testID(4), Key: publicKey(2)},
			"removal by another":        {Op: engine.RemovePeer, Peer: testID(4), Key: publicKey(2)},
			"prefix of an unknown peer": {Op: engine.AddPrefix, Peer: testID(4), Key: publicKey(4), Prefix: two.Allowed[0]},
			"no prefix":                 {Op: engine.AddPrefix, Peer: testID(2), Key: publicKey(2)},
			"host bits":                 {Op: engine.AddPrefix, Peer: testID(2), Key: publicKey(2), Prefix: netip.MustParsePrefix("10.0.0.1/8")},
			"mapped":                    {Op: engine.RemovePrefix, Peer: testID(2), Key: publicKey(2), Prefix: netip.MustParsePrefix("::ffff:10.0.0.0/104")},
		} {
			list := append(addPeer(3, "10.3.0.0/16", "10.2.0.0/16"), wrong)
			if err := d.Apply(t.Context(), list); err == nil {
				t.Errorf("%s: no error", name)
			}
			peers(t, d, two)
		}
		err := d.Apply(t.Context(), change(engine.AddPrefix, 7, "10.0.0.0/8"))
		if !errors.Is(err, ErrNoPeer) || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("got %v, want %v", err, ErrNoPeer)
		}
	})
	t.Run("a cancelled context changes nothing", func(t *testing.T) {
		d := open(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := d.Apply(ctx, addPeer(2)); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want %v", err, context.Canceled)
		}
		peers(t, d)
	})
	t.Run("sessions are for configured peers", func(t *testing.T) {
		d := open(t)
		mustApply(t, d, addPeer(2))
		for _, begin := range []func(trust.ExchangeKey) error{d.Restart, d.Initiate} {
			if err := begin(publicKey(2)); err != nil {
				t.Error(err)
			}
			if err := begin(publicKey(3)); !errors.Is(err, ErrNoPeer) {
				t.Errorf("got %v, want %v", err, ErrNoPeer)
			}
		}
	})
	t.Run("random changes end where they should", func(t *testing.T) {
		d := open(t)
		r := rand.New(rand.NewPCG(1, 2))
		var before engine.Desired
		for range 200 {
			after := randomDesired(r)
			mustApply(t, d, engine.Diff(before, after))
			var want []Peer
			for _, p := range after.Peers {
				want = append(want, Peer{p.ID, p.WireGuard, p.Allowed})
			}
			peers(t, d, want...)
			before = after
		}
	})
	t.Run("a closed device says so", func(t *testing.T) {
		noGoroutinesLeft(t)
		d := open(t)
		mustApply(t, d, addPeer(2, "10.2.0.0/16"))
		select {
		case <-d.Done():
			t.Error("done before it is closed")
		default:
		}
		closeDevice(t, d)
		closeDevice(t, d)
		<-d.Done()
		for name, err := range map[string]error{
			"apply": d.Apply(t.Context(), addPeer(3)), "restart": d.Restart(publicKey(2)), "initiate": d.Initiate(publicKey(2)),
		} {
			if !errors.Is(err, ErrClosed) || !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s: got %v, want %v", name, err, ErrClosed)
			}
		}
		peers(t, d)
		if got := d.Stats(); len(got) != 0 {
			t.Errorf("stats %v, want none", got)
		}
		if d.Err() != nil {
			t.Errorf("%v, want no error: it was closed", d.Err())
		}
	})
	t.Run("closing does not wait for those who use it", func(t *testing.T) {
		noGoroutinesLeft(t)
		d := open(t)
		mustApply(t, d, addPeer(2))
		var users sync.WaitGroup
		for range 2 {
			users.Go(func() {
				steps := slices.Concat(addPeer(3, "10.3.0.0/16"), change(engine.RemovePeer, 3, ""))
				for err := error(nil); err == nil; {
					err = d.Apply(context.Background(), steps)
				}
			})
			users.Go(func() {
				for d.Restart(publicKey(2)) == nil && d.Initiate(publicKey(2)) == nil {
					d.Stats()
					d.Peers()
				}
			})
		}
		eventually(t, "the device is in use", func() bool { return len(d.Peers()) > 0 }, func() any { return d.Peers() })
		closeDevice(t, d)
		within(t, "use of a closed device", users.Wait)
	})
}

// randomDesired is a state with some of five peers and some of six prefixes.
func randomDesired(r *rand.Rand) engine.Desired {
	var d engine.Desired
	for n := byte(2); n < 7; n++ {
		if r.IntN(3) > 0 {
			d.Peers = append(d.Peers, engine.Peer{ID: testID(n), WireGuard: publicKey(n)})
		}
	}
	for _, p := range []string{"10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/17", "10.1.128.0/17", "fd00::/16", "fd00:1::/32"} {
		if len(d.Peers) > 0 && r.IntN(3) > 0 {
			owner := &d.Peers[r.IntN(len(d.Peers))]
			owner.Allowed = append(owner.Allowed, netip.MustParsePrefix(p))
		}
	}
	return d
}

var samePrefix = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func TestOpenRefusesWhatCannotWork(t *testing.T) {
	good := func() Config {
		return Config{Kind: InProcess, Bind: newHub().bind(testID(1)), PrivateKey: testKey(1), EndpointText: endpointText}
	}
	for name, spoil := range map[string]func(*Config){
		"no kind":              func(c *Config) { c.Kind = "" },
		"no bind":              func(c *Config) { c.Bind = nil },
		"no key":               func(c *Config) { c.PrivateKey = nil },
		"no endpoint text":     func(c *Config) { c.EndpointText = nil },
		"small mtu":            func(c *Config) { c.MTU = 1279 },
		"large mtu":            func(c *Config) { c.MTU = 65536 },
		"no name":              func(c *Config) { c.Kind = TUN },
		"long name":            func(c *Config) { c.Name = "abcdefghijklmnop" },
		"name with a slash":    func(c *Config) { c.Name = "../pm0" },
		"name that is a place": func(c *Config) { c.Name = ".." },
		"pattern":              func(c *Config) { c.Name = "pm%d" },
		"no given device":      func(c *Config) { c.Kind = Given },
		"multicast address":    func(c *Config) { c.Addresses = []netip.Addr{netip.MustParseAddr("ff02::1")} },
		"mapped address":       func(c *Config) { c.Addresses = []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.1")} },
	} {
		t.Run(name, func(t *testing.T) {
			noGoroutinesLeft(t)
			c := good()
			spoil(&c)
			d, err := Open(c)
			if err == nil {
				closeDevice(t, d)
				t.Error("no error")
			}
		})
	}
}

func TestOpenReportsThatTheBindCannotOpen(t *testing.T) {
	noGoroutinesLeft(t)
	bind := newHub().bind(testID(1))
	if _, _, err := bind.Open(0); err != nil {
		t.Fatal(err)
	}
	c := Config{Kind: InProcess, Bind: failingBind{bind}, PrivateKey: testKey(1), EndpointText: endpointText}
	if _, err := Open(c); !errors.Is(err, os.ErrPermission) {
		t.Errorf("got %v, want the error of the bind", err)
	}
}
