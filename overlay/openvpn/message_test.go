package openvpn

import (
	"net/netip"
	"strings"
	"testing"
)

// The numbers are those that real peers announced.
func TestLinkMTUIsThatOfRealPeers(t *testing.T) {
	for _, row := range []struct {
		tr      Transport
		cipher  Cipher
		digest  Digest
		framing Framing
		tls     bool
		want    int
	}{
		{UDP, CipherAES256CBC, DigestSHA1, FramingNone, false, 1560},
		{UDP, CipherAES256CBC, DigestSHA256, FramingNone, false, 1572},
		{UDP, CipherAES128CBC, DigestSHA512, FramingLZO, false, 1605},
		{UDP, CipherBlowfishCBC, DigestSHA1, FramingNone, false, 1544},
		{UDP, CipherNone, DigestNone, FramingNone, false, 1508},
		{TCPConnect, CipherAES256CBC, DigestSHA1, FramingNone, false, 1562},
		{UDP, CipherAES256CBC, DigestSHA256, FramingNone, true, 1569},
		{UDP, CipherAES256GCM, DigestSHA1, FramingNone, true, 1549},
		{UDP, CipherBlowfishCBC, DigestSHA1, FramingNone, true, 1541},
	} {
		spec, _ := cipherSpecOf(row.cipher)
		f := optionFacts{transport: row.tr, mtu: 1500, cipher: spec, digest: row.digest, framing: row.framing, tls: row.tls}
		if got := f.linkMTU(); got != row.want {
			t.Errorf("%+v: link-mtu %d", row, got)
		}
	}
}

func TestOptionsStringIsThatOfARealPeer(t *testing.T) {
	spec, _ := cipherSpecOf(CipherAES256CBC)
	f := optionFacts{mtu: 1500, cipher: spec, digest: DigestSHA1, local: netip.MustParseAddr("10.9.0.2"), remote: netip.MustParseAddr("10.9.0.1")}
	want := "V4,dev-type tun,link-mtu 1560,tun-mtu 1500,proto UDPv4,ifconfig 10.9.0.1 10.9.0.2,cipher AES-256-CBC,auth SHA1,keysize 256,secret"
	if got := optionsString(f); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	none, _ := cipherSpecOf(CipherNone)
	f = optionFacts{transport: TCPListen, mtu: 1400, cipher: none, digest: DigestNone, ipv6: true, framing: FramingStubV2, direction: Direction1, tls: true, tlsAuth: true, role: TLSServer}
	got := optionsString(f)
	for _, item := range []string{"proto TCPv4_SERVER", "tun-ipv6", "comp-lzo", "keydir 1", "cipher [null-cipher]", "auth [null-digest]", "tls-auth", "key-method 2,tls-server"} {
		if !strings.Contains(got, ","+item) {
			t.Errorf("%q is missing in %s", item, got)
		}
	}
	if strings.Contains(got, "secret") || strings.Contains(got, "ifconfig") {
		t.Errorf("static items in %s", got)
	}
}

func TestClassifyKnowsPayloads(t *testing.T) {
	for name, row := range map[string]struct {
		p    []byte
		want payloadKind
	}{
		"empty":       {nil, payloadEmpty},
		"ping":        {pingMagic[:], payloadPing},
		"long ping":   {append(pingMagic[:], 0), payloadUnknown},
		"bare occ":    {occMagic[:], payloadUnknown},
		"occ":         {occMessage(occExit, ""), payloadOCC},
		"short v4":    {append([]byte{0x45}, make([]byte, 18)...), payloadUnknown},
		"v4":          {append([]byte{0x45}, make([]byte, 19)...), payloadIP},
		"short v6":    {append([]byte{0x60}, make([]byte, 38)...), payloadUnknown},
		"v6":          {append([]byte{0x60}, make([]byte, 39)...), payloadIP},
		"not ip":      {make([]byte, 60), payloadUnknown},
		"ethernet-ip": {append([]byte{0x02}, make([]byte, 60)...), payloadUnknown},
	} {
		if got := classify(row.p); got != row.want {
			t.Errorf("%s: %d, want %d", name, got, row.want)
		}
	}
}

func TestOCCReplyIsBounded(t *testing.T) {
	for name, p := range map[string][]byte{
		"no end": append(occMessage(occReply, "V4")[:19], 'x'), "short": {1, 2}, "too long": occMessage(occReply, strings.Repeat("x", maxOptions+1)),
	} {
		if got, err := parseOCCReply(p); err != ReasonMalformed {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
