package openvpn

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

type controlVectors struct {
	StaticKey hexBytes `json:"static_key"`
	Vectors   []struct {
		Wrap, Sender    string
		Opcode          uint8
		KeyID           uint8 `json:"key_id"`
		SID             hexBytes
		WrapPacketID    uint32 `json:"wrap_packet_id"`
		WrapTime        uint32 `json:"wrap_time"`
		Packet          hexBytes
		Unwrapped       hexBytes `json:"unwrapped_after_sid"`
		Acks            []uint32
		RemoteSID       hexBytes `json:"remote_sid"`
		MessagePacketID *uint32  `json:"message_packet_id"`
		Payload         hexBytes
	}
}

// wrappingsOf returns the protections of sender and receiver of a vector.
func wrappingsOf(key StaticKey, wrap, sender string) (send, recv wrapping) {
	build := func(role Role) wrapping {
		t, d := &TLS{Role: role, WrapKey: key, Wrap: WrapAuth}, DigestSHA1
		switch {
		case wrap == "tls-crypt":
			t.Wrap = WrapCrypt
		case strings.Contains(wrap, "SHA256"):
			d = DigestSHA256
		default:
			t.WrapDirection = Direction1
			if role == TLSServer {
				t.WrapDirection = Direction0
			}
		}
		return newWrapping(t, d)
	}
	if sender == "server" {
		return build(TLSServer), build(TLSClient)
	}
	return build(TLSClient), build(TLSServer)
}

func TestControlVectorsDecodeAndEncode(t *testing.T) {
	var v controlVectors
	mustVectors(t, "control-wrap.json", &v)
	if len(v.Vectors) != 12 {
		t.Fatalf("%d vectors, want 12", len(v.Vectors))
	}
	key := StaticKey{[staticKeySize]byte(v.StaticKey)}
	for i, row := range v.Vectors {
		send, recv := wrappingsOf(key, row.Wrap, row.Sender)
		first, sid := row.Opcode<<3|row.KeyID, sessionID(row.SID)
		if got := send.seal(first, sid, row.WrapPacketID, row.WrapTime, row.Unwrapped); !bytes.Equal(got, row.Packet) {
			t.Errorf("%d %s: sealed to %x, want %x", i, row.Wrap, got, row.Packet)
		}
		if n := send.overhead(); n != len(row.Packet)-controlHeader-len(row.Unwrapped) {
			t.Errorf("%d %s: overhead %d", i, row.Wrap, n)
		}
		u, err := recv.open(bytes.Clone(row.Packet))
		if err != nil || u.first != first || u.sid != sid || u.id != row.WrapPacketID || u.time != row.WrapTime || !bytes.Equal(u.body, row.Unwrapped) {
			t.Errorf("%d %s: opened to %+v, %v", i, row.Wrap, u, err)
			continue
		}
		p, err := parseControl(u.first, u.sid, u.body)
		if err != nil || !slices.Equal(p.acks, row.Acks) || len(row.Acks) > 0 && p.ackSID != sessionID(row.RemoteSID) || !bytes.Equal(p.payload, row.Payload) {
			t.Errorf("%d %s: parsed to %+v, %v", i, row.Wrap, p, err)
		}
		if row.MessagePacketID != nil && p.id != *row.MessagePacketID {
			t.Errorf("%d %s: message id %d, want %d", i, row.Wrap, p.id, *row.MessagePacketID)
		}
		if got := p.body(); !bytes.Equal(got, row.Unwrapped) {
			t.Errorf("%d %s: body encodes to %x, want %x", i, row.Wrap, got, row.Unwrapped)
		}
		for at := range row.Packet {
			damaged := bytes.Clone(row.Packet)
			damaged[at] ^= 4
			if _, err := recv.open(damaged); err != ReasonAuth {
				t.Fatalf("%d %s: byte %d changed: %v", i, row.Wrap, at, err)
			}
		}
		for n := range row.Packet {
			if _, err := recv.open(bytes.Clone(row.Packet[:n])); err != ReasonAuth && err != ReasonShort {
				t.Fatalf("%d %s: cut to %d bytes: %v", i, row.Wrap, n, err)
			}
		}
	}
}

func TestKeyMethod2VectorsGiveTheKeyBlock(t *testing.T) {
	var v struct {
		Vectors []struct {
			ClientRandom1 hexBytes `json:"client_random1"`
			ClientRandom2 hexBytes `json:"client_random2"`
			ServerRandom1 hexBytes `json:"server_random1"`
			ServerRandom2 hexBytes `json:"server_random2"`
			ClientSID     hexBytes `json:"client_sid"`
			ServerSID     hexBytes `json:"server_sid"`
			PreMaster     hexBytes `json:"pre_master"`
			Master        hexBytes
			KeyBlock      hexBytes `json:"key_block_256"`
		}
	}
	mustVectors(t, "key-method2-prf.json", &v)
	for i, row := range v.Vectors {
		client := keyMessage{preMaster: [48]byte(row.PreMaster), random1: [32]byte(row.ClientRandom1), random2: [32]byte(row.ClientRandom2)}
		server := keyMessage{random1: [32]byte(row.ServerRandom1), random2: [32]byte(row.ServerRandom2)}
		master := tls10PRF(client.preMaster[:], "OpenVPN master secret", 48, client.random1[:], server.random1[:])
		if !bytes.Equal(master, row.Master) {
			t.Errorf("%d: master %x, want %x", i, master, row.Master)
		}
		block := prfKeys(&client, &server, sessionID(row.ClientSID), sessionID(row.ServerSID))
		if !bytes.Equal(block.b[:], row.KeyBlock) {
			t.Errorf("%d: key block %x, want %x", i, block.b, row.KeyBlock)
		}
	}
	if len(v.Vectors) != 2 {
		t.Errorf("%d vectors", len(v.Vectors))
	}
}

type tlsDataVectors struct {
	Vectors []struct {
		ID, Sender   string
		Opcode       uint8
		KeyID        uint8   `json:"key_id"`
		PeerID       *uint32 `json:"peer_id"`
		Cipher, Auth string
		PacketID     uint32   `json:"packet_id"`
		KeyBlock     hexBytes `json:"key_block_256"`
		IV           hexBytes
		Inner        hexBytes
		Packet       hexBytes
	}
}

func TestTLSDataVectorsDecodeAndEncode(t *testing.T) {
	var v tlsDataVectors
	mustVectors(t, "tls-data.json", &v)
	if len(v.Vectors) < 13 {
		t.Fatalf("%d vectors", len(v.Vectors))
	}
	for _, row := range v.Vectors {
		spec, _ := cipherSpecOf(mustCipher(t, row.Cipher))
		a := agreement{cipher: spec, dataV2: row.Opcode == opDataV2}
		d := DigestSHA1
		if row.Auth != "" {
			d = mustDigest(t, row.Auth)
		}
		sender, receiver, peerID := TLSClient, TLSServer, uint32(0)
		if row.Sender == "server" {
			sender, receiver = TLSServer, TLSClient
		}
		if row.PeerID != nil {
			peerID = *row.PeerID
		}
		block := StaticKey{[staticKeySize]byte(row.KeyBlock)}
		from, err := newDataKey(a, d, block, sender, row.KeyID, peerID)
		if err != nil {
			t.Fatal(err)
		}
		to, err := newDataKey(a, d, block, receiver, row.KeyID, peerID)
		if err != nil {
			t.Fatal(err)
		}
		switch box := from.send.box.(type) {
		case *aeadBox:
			box.id = row.PacketID - 1
		case *cbcBox:
			box.id = row.PacketID - 1
			box.fillIV = func(b []byte) { copy(b, row.IV) }
		}
		packet, err := from.send.box.seal(nil, &plaintext{body: row.Inner})
		if err != nil || !bytes.Equal(packet, row.Packet) {
			t.Errorf("%s: seal = %x, %v; want %x", row.ID, packet, err, row.Packet)
		}
		if n := from.send.box.sealedSize(len(row.Inner)); n != len(row.Packet) {
			t.Errorf("%s: sealedSize = %d, want %d", row.ID, n, len(row.Packet))
		}
		header := dataV1Size
		if a.dataV2 {
			header = dataV2Size
		}
		for at := header; at < len(row.Packet); at++ {
			damaged := bytes.Clone(row.Packet)
			damaged[at] ^= 1
			if _, err := to.open(damaged, header); err != ReasonAuth {
				t.Fatalf("%s: byte %d changed: %v", row.ID, at, err)
			}
		}
		for n := header; n < len(row.Packet); n++ {
			if _, err := to.open(bytes.Clone(row.Packet[:n]), header); err != ReasonAuth && err != ReasonShort {
				t.Fatalf("%s: cut to %d bytes: %v", row.ID, n, err)
			}
		}
		got, err := to.open(bytes.Clone(row.Packet), header)
		if err != nil || !bytes.Equal(got, row.Inner) {
			t.Errorf("%s: open = %x, %v; want %x", row.ID, got, err, row.Inner)
		}
		if _, err := to.open(bytes.Clone(row.Packet), header); err != ReasonReplay {
			t.Errorf("%s: replay: %v", row.ID, err)
		}
	}
}

func TestKeyMessageSurvivesEncodingInParts(t *testing.T) {
	for _, role := range []Role{TLSClient, TLSServer} {
		m := newKeyMessage("V4,dev-type tun", peerInfo{ciphers: []Cipher{CipherAES256GCM}, proto: 746}.encode())
		text := m.encode(role)
		for n := range text {
			if _, _, err := parseKeyMessage(role, text[:n]); err != errIncomplete {
				t.Fatalf("%s: %d of %d bytes: %v", role, n, len(text), err)
			}
		}
		got, size, err := parseKeyMessage(role, append(text, "rest"...))
		if role == TLSServer {
			m.preMaster = [48]byte{}
		}
		if err != nil || size != len(text) || got != m {
			t.Errorf("%s: %+v, %d, %v; want %+v", role, got, size, err, m)
		}
	}
}

func TestKeyMessageOfAnotherMethodIsMalformed(t *testing.T) {
	for _, p := range [][]byte{{0, 0, 0, 0, 1}, {0, 0, 0, 1, 2}, append([]byte{0, 0, 0, 0, 2}, append(make([]byte, 64), 0xff, 0xff)...)} {
		if _, _, err := parseKeyMessage(TLSServer, p); err != ReasonMalformed {
			t.Errorf("%x: %v", p, err)
		}
	}
}

func TestPeerInfoOfRealPeersParses(t *testing.T) {
	got := parsePeerInfo("IV_CIPHERS=AES-256-GCM:AES-128-GCM:CHACHA20-POLY1305\nIV_PROTO=746\n")
	if want := []Cipher{CipherAES256GCM, CipherAES128GCM, CipherChaCha20Poly1305}; !slices.Equal(got.ciphers, want) || got.proto != 746 {
		t.Errorf("%+v", got)
	}
	if got := parsePeerInfo("IV_PROTO=-1\nIV_PROTO\n=\nIV_CIPHERS="); got.proto != 0 {
		t.Errorf("%+v", got)
	}
}

func TestAgreementFollowsTheTable(t *testing.T) {
	full := peerInfo{ciphers: []Cipher{CipherAES256GCM, CipherAES128GCM}, proto: protoSupported}
	real27 := peerInfo{ciphers: []Cipher{CipherAES256GCM, CipherAES128GCM, CipherChaCha20Poly1305}, proto: 7850}
	for name, row := range map[string]struct {
		ours, theirs peerInfo
		fallback     Cipher
		want         agreement
		err          error
	}{
		"2.7":                    {full, real27, "", agreement{cipherSpec{CipherAES256GCM, 32, 16, true}, true, true, true, true}, nil},
		"empty, no fallback":     {full, peerInfo{}, "", agreement{}, ReasonCipher},
		"empty, fallback":        {full, peerInfo{}, CipherAES256CBC, agreement{cipher: cipherSpec{CipherAES256CBC, 32, 16, false}}, nil},
		"ciphers without proto":  {full, peerInfo{ciphers: real27.ciphers}, "", agreement{cipher: cipherSpec{CipherAES256GCM, 32, 16, true}}, nil},
		"disjoint, no fallback":  {full, peerInfo{ciphers: []Cipher{CipherChaCha20Poly1305}, proto: 746}, "", agreement{dataV2: true, exporter: true, exit: true, dynWrap: true}, ReasonCipher},
		"bits without p2p":       {full, peerInfo{ciphers: real27.ciphers, proto: 746 &^ protoP2P}, "", agreement{cipher: cipherSpec{CipherAES256GCM, 32, 16, true}}, nil},
		"unknown cipher of ours": {peerInfo{ciphers: []Cipher{"X"}}, peerInfo{ciphers: []Cipher{"X"}}, "", agreement{}, ReasonCipher},
	} {
		for _, role := range []Role{TLSClient, TLSServer} {
			got, err := agree(role, row.ours, row.theirs, row.fallback)
			if err != row.err || err == nil && got != row.want {
				t.Errorf("%s as %s: %+v, %v; want %+v", name, role, got, err, row.want)
			}
		}
	}
}

func TestControlTextsAreFoundAcrossReads(t *testing.T) {
	long := strings.Repeat("x", 3*maxText)
	for _, row := range []struct {
		parts []string
		want  bool
	}{
		{[]string{"EXIT\x00"}, true},
		{[]string{"EX", "IT", "\x00"}, true},
		{[]string{"PUSH_REQUEST\x00EXIT\x00"}, true},
		{[]string{"EXIT"}, false},
		{[]string{"EXITS\x00"}, false},
		{[]string{long, "\x00EXIT\x00"}, true},
		{[]string{long + "EXIT\x00"}, false},
	} {
		var r textReader
		got := false
		for _, p := range row.parts {
			got = r.exit([]byte(p)) || got
		}
		if got != row.want || len(r.text) > maxText {
			t.Errorf("%.40q: %v", row.parts, got)
		}
	}
}

func TestReliableDeliversInOrderOnce(t *testing.T) {
	var r reliable
	var got []byte
	for _, id := range []uint32{2, 0, 0, 1, 1, 4, 3, 2, 15} {
		ready, _, ok := r.receive(id, []byte{byte(id)})
		if !ok {
			t.Errorf("message %d refused", id)
		}
		got = append(got, bytes.Join(ready, nil)...)
	}
	if want := []byte{0, 1, 2, 3, 4}; !bytes.Equal(got, want) {
		t.Errorf("delivered %v, want %v", got, want)
	}
	if _, _, ok := r.receive(r.expect+receiveWindow, nil); ok {
		t.Error("a message beyond the window was taken")
	}
	if want := []uint32{2, 0, 1, 4, 3, 15}; !slices.Equal(r.takeAcks(100), want) {
		t.Errorf("acknowledgements, want %v", want)
	}
	if len(r.early) > receiveWindow {
		t.Errorf("%d messages kept", len(r.early))
	}
}

func FuzzParseControl(f *testing.F) {
	var v controlVectors
	mustVectors(f, "control-wrap.json", &v)
	for _, row := range v.Vectors {
		f.Add(row.Opcode<<3|row.KeyID, []byte(row.Unwrapped))
	}
	f.Fuzz(func(t *testing.T, first byte, body []byte) {
		p, err := parseControl(first, sessionID{1}, body)
		if err != nil {
			if err != ReasonMalformed {
				t.Errorf("error %v", err)
			}
			return
		}
		if got := p.body(); !bytes.Equal(got, body) {
			t.Errorf("%x encodes to %x", body, got)
		}
	})
}

func FuzzUnwrap(f *testing.F) {
	var v controlVectors
	mustVectors(f, "control-wrap.json", &v)
	key := StaticKey{[staticKeySize]byte(v.StaticKey)}
	for i, row := range v.Vectors {
		f.Add(uint8(i), []byte(row.Packet))
	}
	f.Fuzz(func(t *testing.T, kind uint8, p []byte) {
		row := v.Vectors[int(kind)%len(v.Vectors)]
		_, recv := wrappingsOf(key, row.Wrap, row.Sender)
		u, err := recv.open(bytes.Clone(p))
		if err != nil && err != ReasonAuth && err != ReasonShort {
			t.Errorf("error %v", err)
		}
		if len(u.body) > len(p) {
			t.Errorf("body of %d bytes", len(u.body))
		}
	})
}

func FuzzParseKeyMessage(f *testing.F) {
	for _, role := range []Role{TLSClient, TLSServer} {
		m := newKeyMessage("V4", "IV_PROTO=746\n")
		f.Add(role == TLSServer, m.encode(role))
	}
	f.Fuzz(func(t *testing.T, server bool, in []byte) {
		role := TLSClient
		if server {
			role = TLSServer
		}
		m, size, err := parseKeyMessage(role, in)
		if err != nil {
			return
		}
		if size > len(in) {
			t.Errorf("size %d of %d", size, len(in))
		}
		if _, err := agree(role, peerInfo{ciphers: []Cipher{CipherAES256GCM}}, parsePeerInfo(m.peerInfo), ""); err != nil && err != ReasonCipher {
			t.Errorf("error %v", err)
		}
	})
}

func FuzzOpenStatic(f *testing.F) {
	v, key := mustStaticVectors(f)
	for _, row := range v.Vectors {
		f.Add(row.Cipher, row.Auth, []byte(row.Packet))
	}
	var bad badInputVectors
	mustVectors(f, "static-key-bad-input.json", &bad)
	for _, step := range bad.Steps {
		f.Add(bad.Cipher, bad.Auth, []byte(step.Packet))
	}
	f.Fuzz(func(t *testing.T, cipher, auth string, p []byte) {
		c, err := ParseCipher(cipher)
		spec, _ := cipherSpecOf(c)
		d, err2 := ParseDigest(auth)
		if err != nil || err2 != nil || spec.aead {
			return
		}
		_, recv := mustStaticBoxes(t, Static{Key: key, Cipher: c, BlowfishBits: 128}, d)
		o, err := recv.open(bytes.Clone(p))
		if err == nil {
			classify(o.payload)
			_, _ = parseOCCReply(o.payload)
		} else if r, ok := err.(Reason); !ok || r == 0 {
			t.Errorf("error %v", err)
		}
	})
}

func FuzzOpenData(f *testing.F) {
	var v tlsDataVectors
	mustVectors(f, "tls-data.json", &v)
	for i, row := range v.Vectors {
		f.Add(uint8(i), []byte(row.Packet))
	}
	f.Fuzz(func(t *testing.T, n uint8, p []byte) {
		row := v.Vectors[int(n)%len(v.Vectors)]
		c, _ := ParseCipher(row.Cipher)
		spec, _ := cipherSpecOf(c)
		k, err := newDataKey(agreement{cipher: spec}, DigestSHA256, StaticKey{[staticKeySize]byte(row.KeyBlock)}, TLSClient, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		header := dataV1Size + int(n)&1*3
		if _, err := k.open(bytes.Clone(p), header); err != nil {
			if r, ok := err.(Reason); !ok || r == 0 {
				t.Errorf("error %v", err)
			}
		}
	})
}
