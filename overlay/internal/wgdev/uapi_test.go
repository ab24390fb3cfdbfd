package wgdev

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/overlay/internal/engine"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

func TestRenderSaysNoMoreThanTheChanges(t *testing.T) {
	a, b := trust.ExchangeKey{0xaa}, trust.ExchangeKey{0xbb}
	p, q := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00::1/128")
	got := render(engine.Changes{
		{Op: engine.AddPeer, Peer: testID(1), Key: a},
		{Op: engine.AddPrefix, Peer: testID(1), Key: a, Prefix: p},
		{Op: engine.AddPrefix, Peer: testID(1), Key: a, Prefix: q},
		{Op: engine.AddPrefix, Peer: testID(2), Key: b, Prefix: p},
		{Op: engine.RemovePrefix, Peer: testID(2), Key: b, Prefix: q},
		{Op: engine.RemovePeer, Peer: testID(2), Key: b},
		{Op: engine.RemovePrefix, Peer: testID(1), Key: a, Prefix: q},
	}, func(id trust.GatewayID) string { return fmt.Sprintf("peer:%x", id[:1]) })
	// The endpoint is there twice: see render.
	want := strings.NewReplacer("A", fmt.Sprintf("%x", a[:]), "B", fmt.Sprintf("%x", b[:])).Replace(`public_key=A
endpoint=peer:01
public_key=A
endpoint=peer:01
allowed_ip=10.1.0.0/16
allowed_ip=fd00::1/128
public_key=B
update_only=true
allowed_ip=10.1.0.0/16
allowed_ip=-fd00::1/128
remove=true
public_key=A
update_only=true
allowed_ip=-fd00::1/128
`)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got := render(nil, nil); got != "" {
		t.Errorf("no changes: got %q", got)
	}
}

const answer = `private_key=0100000000000000000000000000000000000000000000000000000000000000
listen_port=51820
public_key=0200000000000000000000000000000000000000000000000000000000000000
preshared_key=0000000000000000000000000000000000000000000000000000000000000000
protocol_version=1
endpoint=192.0.2.2:51820
last_handshake_time_sec=1700000000
last_handshake_time_nsec=5
tx_bytes=18446744073709551615
rx_bytes=92
persistent_keepalive_interval=0
allowed_ip=10.2.0.0/16
allowed_ip=fd00::2/128
public_key=0300000000000000000000000000000000000000000000000000000000000000
last_handshake_time_sec=0
last_handshake_time_nsec=0
something_new=x
tx_bytes=0
rx_bytes=0
`

func TestParseReadsPeers(t *testing.T) {
	got, err := parse([]byte(answer))
	if err != nil {
		t.Fatal(err)
	}
	want := map[trust.ExchangeKey]*state{
		{2}: {
			endpoint: "192.0.2.2:51820",
			stats:    PeerStats{Rx: 92, Tx: 1<<64 - 1, LastHandshake: time.Unix(1700000000, 5)},
			allowed:  []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("fd00::2/128")},
		},
		{3}: {},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(state{}), samePrefix); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestParseRefusesNonsense(t *testing.T) {
	key := "public_key=" + strings.Repeat("02", 32) + "\n"
	for _, text := range []string{
		"public_key=\n", "public_key=0\n", "public_key=" + strings.Repeat("zz", 32), "public_key=" + strings.Repeat("00", 33),
		key + "rx_bytes=-1\n", key + "tx_bytes\n", key + "last_handshake_time_sec=x\n", key + "allowed_ip=10.0.0.0\n",
		key + strings.Repeat("x", 1<<17),
	} {
		if got, err := parse([]byte(text)); err == nil {
			t.Errorf("%.80q: got %v, want an error", text, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(answer))
	f.Add([]byte("public_key=" + strings.Repeat("02", 32) + "\nrx_bytes=1"))
	f.Add([]byte("errno=0\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		peers, err := parse(b)
		if err != nil && peers != nil && len(peers) > 0 && len(b) < 1000 {
			t.Errorf("peers %v beside the error %v", peers, err)
		}
		for key, p := range peers {
			for _, q := range p.allowed {
				if err == nil && !q.IsValid() {
					t.Errorf("peer %x is allowed %v", key, q)
				}
			}
		}
	})
}
