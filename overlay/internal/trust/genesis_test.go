package trust

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/planetmesh/planetmesh/overlay/internal/wire"
)

func TestGenesisComesBackAndNamesTheMesh(t *testing.T) {
	w := newWorld(t)
	raw := w.root.Genesis.Raw()
	g, err := DecodeGenesis(raw)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(w.root.Genesis, g, cmpopts.IgnoreUnexported(Genesis{})); diff != "" {
		t.Error(diff)
	}
	if want := MeshID(Hash("genesis", raw)); w.root.ID() != want {
		t.Errorf("mesh ID %v, want %v", w.root.ID(), want)
	}
	for name, change := range map[string]func(*Genesis){
		"name":      func(g *Genesis) { g.Name = "demo2" },
		"authority": func(g *Genesis) { g.Authority[0]++ },
		"recovery":  func(g *Genesis) { g.RecoveryHash[0]++ },
	} {
		changed := *g
		change(&changed)
		raw, err := changed.Encode()
		if err != nil {
			t.Fatal(err)
		}
		root, err := NewRoot(raw, nil)
		if err != nil {
			t.Fatal(err)
		}
		if root.ID() == w.root.ID() {
			t.Errorf("another %s, the same mesh", name)
		}
	}
}

func TestGenesisIsRefused(t *testing.T) {
	w := newWorld(t)
	good := fieldsOf(w.root.Genesis.Raw())
	for name, fields := range map[string][]field{
		"unknown critical field": with(good, 0x8000|4, []byte{1}),
		"no name":                with(good, 0x8001, nil),
		"no authority":           with(good, 0x8002, nil),
		"no recovery hash":       with(good, 0x8003, nil),
		"a short authority":      with(good, 0x8002, []byte{1}),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := NewRoot(object(t, wire.Genesis, MeshID{}, fields), nil); !errors.Is(err, ErrFormat) {
				t.Errorf("got %v, want %v", err, ErrFormat)
			}
		})
	}
}

func TestEpochsReplaceTheAuthority(t *testing.T) {
	w := newWorld(t)
	epochs := [][]byte{w.epoch(t, 1), w.epoch(t, 2)}
	root, err := NewRoot(w.root.Genesis.Raw(), epochs)
	if err != nil {
		t.Fatal(err)
	}
	if root.ID() != w.root.ID() {
		t.Error("an epoch changed the mesh ID")
	}
	if diff := cmp.Diff(epochs, root.Epochs()); diff != "" {
		t.Error(diff)
	}
	// Overlaps end 10 and 20 days after day 0 (world.epoch).
	for epoch, key := range []ed25519.PrivateKey{w.authority, newKey("authority1"), newKey("authority2")} {
		d := *w.org
		d.Epoch = uint32(epoch)
		signed, err := d.Sign(root.id, key)
		if err != nil {
			t.Fatal(err)
		}
		c := w.certificate()
		ch := w.chainBy(t, c, signed, newKey("org"))
		overlap := c.NotAfter
		if epoch < 2 {
			overlap = day0.Add([]time.Duration{10 * day, 20 * day}[epoch])
		}
		if err := root.VerifyChain(ch, overlap.Add(Tolerance)); err != nil {
			t.Errorf("epoch %d: %v", epoch, err)
		}
		if err := root.VerifyChain(ch, overlap.Add(Tolerance+1)); !errors.Is(err, ErrExpired) {
			t.Errorf("epoch %d after its overlap: got %v, want %v", epoch, err, ErrExpired)
		}
		// The key of one epoch does not sign for another.
		d.Epoch = uint32(epoch+1) % 3
		if signed, err = d.Sign(root.id, key); err != nil {
			t.Fatal(err)
		}
		if err := root.VerifyDelegation(signed); !errors.Is(err, ErrSignature) {
			t.Errorf("key of epoch %d signs for epoch %d: %v", epoch, d.Epoch, err)
		}
	}
	// A gateway that has not heard of an epoch believes nothing under it.
	d := *w.org
	d.Epoch = 1
	signed, err := d.Sign(root.id, newKey("authority1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.root.VerifyDelegation(signed); !errors.Is(err, ErrSignature) {
		t.Errorf("unknown epoch: got %v, want %v", err, ErrSignature)
	}
	d.Epoch = 1<<32 - 1
	if signed, err = d.Sign(root.id, newKey("authority1")); err != nil {
		t.Fatal(err)
	}
	if err := root.VerifyDelegation(signed); !errors.Is(err, ErrSignature) {
		t.Errorf("last epoch of all: got %v, want %v", err, ErrSignature)
	}
}

func TestEpochsAreRefused(t *testing.T) {
	w, foreign := newWorld(t), newNamedWorld(t, "foreign")
	first, second := w.epoch(t, 1), w.epoch(t, 2)
	sign := func(recovery, authority ed25519.PrivateKey, change func(*Epoch)) []byte {
		e := Epoch{
			Number: 1, Key: public(newKey("authority1")), OverlapUntil: day0, Recovery: public(w.recovery),
			NextRecovery: RecoveryHash(newKey("recovery1").Public().(ed25519.PublicKey)),
		}
		change(&e)
		raw, err := e.Sign(w.root.id, recovery, authority)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	none := func(*Epoch) {}
	flipped := bytes.Clone(first)
	flipped[len(flipped)-1] ^= 1
	for name, row := range map[string]struct {
		epochs [][]byte
		want   error
	}{
		"a gap":                          {[][]byte{second}, ErrFormat},
		"out of order":                   {[][]byte{second, first}, ErrFormat},
		"twice":                          {[][]byte{first, first}, ErrFormat},
		"of another mesh":                {[][]byte{foreign.epoch(t, 1)}, ErrSignature},
		"by the old authority":           {[][]byte{sign(w.authority, newKey("authority1"), func(e *Epoch) { e.Recovery = public(w.authority) })}, ErrSignature},
		"in the name of recovery":        {[][]byte{sign(w.authority, newKey("authority1"), none)}, ErrSignature},
		"not signed by the new key":      {[][]byte{sign(w.recovery, w.authority, none)}, ErrSignature},
		"by a recovery of nobody":        {[][]byte{sign(newKey("mallory"), newKey("authority1"), func(e *Epoch) { e.Recovery = public(newKey("mallory")) })}, ErrSignature},
		"recovery used a second time":    {[][]byte{first, sign(w.recovery, newKey("authority1"), func(e *Epoch) { e.Number = 2 })}, ErrSignature},
		"signature flipped":              {[][]byte{flipped}, ErrSignature},
		"cut short":                      {[][]byte{first[:len(first)-1]}, ErrFormat},
		"a delegation where an epoch is": {[][]byte{w.org.Raw()}, ErrFormat},
		"without overlap":                {[][]byte{object(t, wire.Epoch, w.root.id, with(fieldsOf(first), 0x8003, nil), w.recovery, newKey("authority1"))}, ErrFormat},
	} {
		t.Run(name, func(t *testing.T) {
			if root, err := NewRoot(w.root.Genesis.Raw(), row.epochs); !errors.Is(err, row.want) || root != nil {
				t.Errorf("got %v, want %v", err, row.want)
			}
		})
	}
}

func TestCheckGrant(t *testing.T) {
	block := OverlayBlock(newWorld(t).root.id)
	for p, ok := range map[string]bool{
		"10.0.0.0/8": true, "192.168.10.0/24": true, "1.2.3.4/32": true, "100.64.0.0/10": true, "128.0.0.0/8": true,
		"2001:db8::/32": true, "fd10::/16": true, "fd10::1/128": true, "64:ff9b::/96": true, "2000::/16": true,
		"0.0.0.0/0": false, "10.0.0.0/7": false, "::/0": false, "2000::/15": false, "fc00::/7": false,
		"0.0.0.0/8": false, "0.1.0.0/16": false, "127.0.0.0/8": false, "127.1.2.3/32": false, "126.0.0.0/7": false,
		"169.254.0.0/16": false, "169.254.9.0/24": false, "169.0.0.0/8": false, "224.0.0.0/4": false, "239.1.0.0/16": false,
		"240.0.0.0/8": false, "255.255.255.255/32": false,
		"::1/128": false, "::/128": false, "::/96": false, "::ffff:10.0.0.0/104": false, "0::/16": false,
		"fe80::/16": false, "fe80::/64": false, "febf::/16": false, "ff02::/16": false, "ff00::/16": false,
	} {
		err := CheckGrant(netip.MustParsePrefix(p), block)
		if (err == nil) != ok || err != nil && !errors.Is(err, ErrGrant) {
			t.Errorf("%s: got %v, want ok %t", p, err, ok)
		}
	}
	for name, p := range map[string]netip.Prefix{
		"no prefix":                   {},
		"host bits":                   netip.MustParsePrefix("10.0.0.1/8"),
		"the overlay block":           block,
		"a part of the overlay block": netip.PrefixFrom(block.Addr(), 128),
		"around the overlay block":    netip.PrefixFrom(block.Addr(), 16).Masked(),
	} {
		if err := CheckGrant(p, block); !errors.Is(err, ErrGrant) {
			t.Errorf("%s (%v): got %v, want %v", name, p, err, ErrGrant)
		}
	}
}

func TestOverlayAddressesLieInTheBlockOfTheMesh(t *testing.T) {
	w, foreign := newWorld(t), newNamedWorld(t, "foreign")
	block := OverlayBlock(w.root.id)
	if block.Bits() != 48 || block.Masked() != block || block.Addr().As16()[0] != 0xfd {
		t.Errorf("block %v", block)
	}
	seen := map[netip.Addr]bool{}
	for _, organisation := range []string{"", "uni-a", "uni-b"} {
		for _, label := range []string{"x", "y"} {
			a := OverlayAddr(w.root.id, organisation, public(newKey(label)))
			if !block.Contains(a) || seen[a] {
				t.Errorf("%s of %q: %v", label, organisation, a)
			}
			seen[a] = true
			if b := OverlayAddr(foreign.root.id, organisation, public(newKey(label))); block.Contains(b) {
				t.Errorf("%v of another mesh lies in %v", b, block)
			}
		}
	}
	// Gateways of one organisation share the /64.
	a, b := OverlayAddr(w.root.id, "uni-a", public(newKey("x"))), OverlayAddr(w.root.id, "uni-a", public(newKey("y")))
	if netip.PrefixFrom(a, 64).Masked() != netip.PrefixFrom(b, 64).Masked() {
		t.Errorf("%v and %v", a, b)
	}
}

func TestGatewayIDsReadBack(t *testing.T) {
	id := IDOf(newWorld(t).root.id, public(newKey("x")))
	got, err := ParseGatewayID(id.String())
	if err != nil || got != id {
		t.Errorf("got %v, %v, want %v", got, err, id)
	}
	if id.Short() != id.String()[:10] || id.IsZero() || !(GatewayID{}).IsZero() {
		t.Errorf("short %s of %s", id.Short(), id)
	}
	for _, s := range []string{"", id.String()[1:], id.String() + "0", "ABCDEF0123456789abcdef0123456789", "zz" + id.String()[2:]} {
		if got, err := ParseGatewayID(s); err == nil || !got.IsZero() {
			t.Errorf("%q: got %v, %v", s, got, err)
		}
	}
	if IDOf(newNamedWorld(t, "foreign").root.id, public(newKey("x"))) == id {
		t.Error("the same ID in two meshes")
	}
}

func FuzzDecodeGenesis(f *testing.F) {
	w := newWorld(f)
	f.Add(w.root.Genesis.Raw())
	f.Add(w.root.Genesis.Raw()[:20])
	f.Fuzz(func(t *testing.T, raw []byte) {
		g, err := DecodeGenesis(raw)
		if err != nil {
			return
		}
		again, err := g.Encode()
		if err != nil {
			t.Fatal(err)
		}
		mustBeCanonical(t, raw, again)
	})
}

// FuzzNewRoot gives a root epochs; nobody but the recovery key adds one.
func FuzzNewRoot(f *testing.F) {
	w := newWorld(f)
	f.Add(bytes.Join([][]byte{w.epoch(f, 1), w.epoch(f, 2)}, nil))
	f.Add(w.epoch(f, 1))
	f.Add(w.epoch(f, 2))
	f.Fuzz(func(t *testing.T, b []byte) {
		epochs, err := wire.SplitObjects(b)
		if err != nil {
			return
		}
		root, err := NewRoot(w.root.Genesis.Raw(), epochs)
		if err != nil {
			return
		}
		good := bytes.Join([][]byte{w.epoch(t, 1), w.epoch(t, 2)}, nil)
		if !bytes.HasPrefix(good, bytes.Join(root.Epochs(), nil)) {
			t.Fatalf("epochs by somebody else: %x", b)
		}
	})
}

func FuzzDecodeEpoch(f *testing.F) {
	w := newWorld(f)
	f.Add(w.epoch(f, 1))
	f.Add(w.epoch(f, 2)[:50])
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := decodeEpoch(raw)
		if err != nil {
			return
		}
		again, err := e.Sign(w.root.id, w.recovery, newKey("authority1"))
		if err != nil {
			t.Fatal(err)
		}
		mustBeCanonical(t, raw, again)
	})
}
