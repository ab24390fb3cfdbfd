//go:build openvpn

package openvpn

import "testing"

// What VyOS 1.4 and 1.5 write, on the OpenVPN that they have.
func TestVyOSConfigurations(t *testing.T) {
	t.Parallel()
	bin, err := distribution()
	if err != nil {
		t.Fatal(err)
	}
	for _, protocol := range []string{"udp", "tcp-passive", "tcp-active"} {
		for _, v := range []vyosTunnel{
			{release: "1.4", cipher: "aes256", hash: "sha256"},
			{release: "1.4"},
			{release: "1.4", cipher: "3des", hash: "sha512", lzo: true},
			{release: "1.4", role: "active", cipher: "aes256", hash: "sha256"},
			{release: "1.4", role: "passive", crypt: true},
			{release: "1.5", cipher: "aes256", hash: "sha256"},
			{release: "1.5", cipher: "3des"},
			{release: "1.5", role: "active", cipher: "aes256gcm"},
			{release: "1.5", role: "passive", cipher: "aes256gcm", crypt: true},
		} {
			v.protocol = protocol
			proveVyOS(t, bin, v)
		}
	}
	refuseVyOS(t, bin, vyosTunnel{release: "1.4", protocol: "udp", cipher: "bf128"}, ": keysize (")
	refuseVyOS(t, bin, vyosTunnel{release: "1.5", protocol: "udp"}, "Cipher BF-CBC not supported")
	refuseOption(t, bin, "S15", "--allow-deprecated-insecure-static-crypto", ": allow-deprecated-insecure-static-crypto (")
}
