//go:build integration

package meshlab_test

import (
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/overlay"
)

func TestWgctrlReadsTheRunningDeviceAndCannotChangeIt(t *testing.T) {
	lab := newMesh(t, netlab.Reference())
	mustBeFull(t, lab, netlab.PingOptions{}, 15*time.Second)
	var device *wgtypes.Device
	var changed error
	err := lab.World().Host("gw10").Do(func() error {
		client, err := wgctrl.New()
		if err != nil {
			return err
		}
		defer client.Close()
		port := 999
		changed = client.ConfigureDevice(overlay.DefaultInterface, wgtypes.Config{ListenPort: &port})
		device, err = client.Device(overlay.DefaultInterface)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if changed == nil {
		t.Error("the device took a configuration that the records do not have")
	}
	if device.ListenPort != overlay.DefaultPort && device.ListenPort != 0 {
		t.Errorf("port: got %d", device.ListenPort)
	}
	endpoints := make(map[string]bool)
	for _, p := range device.Peers {
		endpoints[p.Endpoint.String()] = true
		if len(p.AllowedIPs) != 2 {
			t.Errorf("peer %v: allowed %v, want its LAN and its overlay address", p.PublicKey, p.AllowedIPs)
		}
		if p.LastHandshakeTime.IsZero() {
			t.Errorf("peer %v: no handshake", p.PublicKey)
		}
	}
	for _, want := range []string{"10.4.0.91:17946", "10.4.0.92:17946"} {
		if !endpoints[want] {
			t.Errorf("endpoints %v lack %s", endpoints, want)
		}
	}
}
