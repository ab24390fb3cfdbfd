package ctl

import (
	"net"
	"net/netip"
	"testing"

	"github.com/planetmesh/planetmesh/overlay"
)

func TestRealMeshKeepsTheContract(t *testing.T) {
	store := new(overlay.MemStore)
	_, err := overlay.Init(store, overlay.InitRequest{
		Mesh: "planet", Site: "10", Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.10.0/24")},
	})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenPacket("udp", ":0") // a port that nobody has
	if err != nil {
		t.Fatal(err)
	}
	port := conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	m, err := overlay.Open(t.Context(), overlay.Config{
		Store:     store,
		Device:    overlay.DeviceNone,
		Port:      port,
		Endpoints: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}()
	contract(t, m)
}
