package openvpn

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// hexBytes is a field of hexadecimal digits.
type hexBytes []byte

func (h *hexBytes) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		*h = nil
		return nil
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	raw, err := hex.DecodeString(s)
	*h = raw
	return err
}

func mustVectors(t testing.TB, name string, into any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

type staticVectors struct {
	KeyFile string   `json:"key_file"`
	KeyHex  hexBytes `json:"key_hex"`
	Vectors []struct {
		ID                 string
		Cipher, Auth       string
		SenderKeyDirection *int     `json:"sender_key_direction"`
		CipherKey          hexBytes `json:"cipher_key"`
		IV                 hexBytes
		PacketID           uint32 `json:"packet_id"`
		NetTime            uint32 `json:"net_time"`
		Kind               string
		Inner, Packet      hexBytes
	}
}

func mustStaticVectors(t testing.TB) (v staticVectors, key StaticKey) {
	t.Helper()
	mustVectors(t, "static-key.json", &v)
	key, err := ParseStaticKey([]byte(v.KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	return v, key
}

func mustStaticBoxes(t testing.TB, s Static, d Digest) (send, recv *cbcBox) {
	t.Helper()
	send, recv, err := newStaticBoxes(&s, d)
	if err != nil {
		t.Fatal(err)
	}
	return send, recv
}

func mustCipher(t testing.TB, name string) Cipher {
	t.Helper()
	c, err := ParseCipher(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustDigest(t testing.TB, name string) Digest {
	t.Helper()
	d, err := ParseDigest(name)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestStaticVectorsDecodeAndEncode(t *testing.T) {
	v, key := mustStaticVectors(t)
	if !bytes.Equal(key.b[:], v.KeyHex) {
		t.Fatalf("key file parsed to %x, want %x", key.b, v.KeyHex)
	}
	if len(v.Vectors) != 26 {
		t.Fatalf("%d vectors, want 26", len(v.Vectors))
	}
	for _, row := range v.Vectors {
		t.Run(row.ID, func(t *testing.T) {
			s := Static{Key: key, Cipher: mustCipher(t, row.Cipher), BlowfishBits: 8 * len(row.CipherKey)}
			d := mustDigest(t, row.Auth)
			peer := s
			if row.SenderKeyDirection != nil {
				s.Direction, peer.Direction = Direction0, Direction1
				if *row.SenderKeyDirection == 1 {
					s.Direction, peer.Direction = Direction1, Direction0
				}
			}
			send, _ := mustStaticBoxes(t, s, d)
			_, recv := mustStaticBoxes(t, peer, d)
			send.id, send.time = row.PacketID-1, row.NetTime
			send.fillIV = func(b []byte) { copy(b, row.IV) }
			packet, err := send.seal(nil, &plaintext{body: row.Inner})
			if err != nil || !bytes.Equal(packet, row.Packet) {
				t.Errorf("seal = %x, %v; want %x", packet, err, row.Packet)
			}
			if send.sealedSize(len(row.Inner)) != len(row.Packet) {
				t.Errorf("sealedSize = %d, want %d", send.sealedSize(len(row.Inner)), len(row.Packet))
			}
			got, err := recv.open(bytes.Clone(row.Packet))
			if err != nil || got.id != row.PacketID || got.time != row.NetTime || !bytes.Equal(got.payload, row.Inner) {
				t.Errorf("open = %d %d %x, %v; want %d %d %x", got.id, got.time, got.payload, err, row.PacketID, row.NetTime, row.Inner)
			}
			if kind := classify(got.payload); (kind == payloadPing) != (row.Kind == "ping") {
				t.Errorf("classify = %d for a %s", kind, row.Kind)
			}
		})
	}
}

type badInputVectors struct {
	Cipher, Auth string
	NetTimeBase  uint32 `json:"net_time_base"`
	Steps        []struct {
		Step     int
		Input    string
		Packet   hexBytes
		Length   int
		Expected string
	}
}

// badInputWant is the reason for each step that is dropped; the file names them
// in words, and the real peer calls some HMAC failures that end early "hmac".
func badInputWant(expected string) error {
	switch {
	case strings.HasPrefix(expected, "drop:replay"):
		return ReasonReplay
	case expected == "drop:hmac":
		return ReasonAuth
	case strings.HasPrefix(expected, "drop:decrypt"):
		return ReasonDecrypt
	case expected == "drop:short":
		return ReasonShort
	}
	return nil
}

func TestBadInputGetsTheVerdictOfTheRealPeer(t *testing.T) {
	var v badInputVectors
	mustVectors(t, "static-key-bad-input.json", &v)
	_, key := mustStaticVectors(t)
	send, recv := mustStaticBoxes(t, Static{Key: key, Cipher: mustCipher(t, v.Cipher)}, mustDigest(t, v.Auth))
	var guard replayGuard
	if len(v.Steps) != 28 {
		t.Fatalf("%d steps, want 28", len(v.Steps))
	}
	for _, step := range v.Steps {
		packet := bytes.Clone(step.Packet)
		if packet == nil { // the file leaves out the large one
			send.id, send.time = guard.max, guard.time
			packet, _ = send.seal(nil, &plaintext{body: append([]byte{0x45}, make([]byte, 1599)...)})
			if len(packet) != step.Length {
				t.Fatalf("step %d: made %d bytes, want %d", step.Step, len(packet), step.Length)
			}
		}
		o, err := recv.open(packet)
		if err == nil && !guard.accept(o.time, o.id) {
			err = ReasonReplay
		}
		if want := badInputWant(step.Expected); err != want {
			t.Errorf("step %d (%s): %v, want %v (%s)", step.Step, step.Input, err, want, step.Expected)
			continue
		}
		if err != nil {
			continue
		}
		kind, want := classify(o.payload), payloadIP
		switch {
		case strings.HasPrefix(step.Input, "occ"):
			want = payloadOCC
		case strings.Contains(step.Input, "not IP"):
			want = payloadUnknown
		case strings.Contains(step.Input, "empty"):
			want = payloadEmpty
		}
		if kind != want {
			t.Errorf("step %d (%s): payload is %d, want %d", step.Step, step.Input, kind, want)
		}
	}
}

type framingVectors struct {
	Vectors []struct {
		ID, Options, Cipher, Auth string
		PacketID                  uint32   `json:"packet_id"`
		Payload                   hexBytes `json:"payload_after_packet_id"`
		Packet                    hexBytes
		FragmentHeader            *struct {
			Type, Size int
			SeqID      int `json:"seq_id"`
			FragID     int `json:"frag_id"`
		} `json:"fragment_header"`
		Inner hexBytes
	}
}

// framingOf maps the options of a vector to our setting.
func framingOf(options string) Framing {
	switch {
	case strings.Contains(options, "stub-v2"):
		return FramingStubV2
	case strings.Contains(options, "lz4-v2"):
		return FramingLZ4V2
	case strings.Contains(options, "lz4"):
		return FramingLZ4
	case strings.Contains(options, "lzo"):
		return FramingLZO
	case strings.Contains(options, "--compress"):
		return FramingStub
	}
	return FramingNone
}

func TestFramingVectorsDecode(t *testing.T) {
	var v framingVectors
	mustVectors(t, "framing.json", &v)
	_, key := mustStaticVectors(t)
	reassemblers := map[string]*reassembler{}
	whole := 0
	for _, row := range v.Vectors {
		_, recv := mustStaticBoxes(t, Static{Key: key, Cipher: mustCipher(t, row.Cipher)}, mustDigest(t, row.Auth))
		o, err := recv.open(bytes.Clone(row.Packet))
		if err != nil || o.id != row.PacketID || !bytes.Equal(o.payload, row.Payload) {
			t.Errorf("%s: open = %d %x, %v; want %d %x", row.ID, o.id, o.payload, err, row.PacketID, row.Payload)
			continue
		}
		payload := o.payload
		if h := row.FragmentHeader; h != nil {
			got, err := decodeFragmentHeader(payload)
			want := fragmentHeader{kind: uint8(h.Type), seq: uint8(h.SeqID), index: uint8(h.FragID), size: h.Size}
			if err != nil || got != want {
				t.Errorf("%s: fragment header %+v, %v; want %+v", row.ID, got, err, want)
			}
			if enc := want.encode(); !bytes.Equal(enc[:], payload[:4]) {
				t.Errorf("%s: fragment header encodes to %x, want %x", row.ID, enc, payload[:4])
			}
			set, _, _ := strings.Cut(row.ID, "/")
			if reassemblers[set] == nil {
				reassemblers[set] = &reassembler{max: 1700}
			}
			if payload, err = reassemblers[set].add(payload, time.Now()); err != nil {
				t.Errorf("%s: %v", row.ID, err)
			}
			if payload == nil {
				continue
			}
		}
		f := framingOf(row.Options)
		inner, err := f.unframe(bytes.Clone(payload), make([]byte, 0, 1600))
		if err != nil || row.Inner != nil && !bytes.Equal(inner, row.Inner) {
			t.Errorf("%s: unframe %s = %x, %v; want %x", row.ID, f, inner, err, row.Inner)
			continue
		}
		whole++
		if kind := classify(inner); kind != payloadIP && kind != payloadPing {
			t.Errorf("%s: inner packet is %d", row.ID, kind)
		}
		if first := payload[0]; first != frameLZO && first != frameLZ4Swap && !bytes.HasPrefix(payload, []byte{frameV2, frameV2LZ4}) {
			p := plaintext{body: inner}
			f.frame(&p)
			if got := p.appendTo(nil); !bytes.Equal(got, payload) {
				t.Errorf("%s: framed to %x, want %x", row.ID, got, payload)
			}
		}
	}
	if whole < 15 {
		t.Errorf("only %d inner packets came out", whole)
	}
}

type occVectors struct {
	Vectors []struct {
		ID, Cipher, Auth string
		IV               hexBytes
		PacketID         uint32 `json:"packet_id"`
		NetTime          uint32 `json:"net_time"`
		Opcode           byte
		OptionsString    *string `json:"options_string"`
		Inner, Packet    hexBytes
	}
}

func TestOCCVectorsDecodeAndEncode(t *testing.T) {
	var v occVectors
	mustVectors(t, "occ.json", &v)
	_, key := mustStaticVectors(t)
	for _, row := range v.Vectors {
		send, recv := mustStaticBoxes(t, Static{Key: key, Cipher: mustCipher(t, row.Cipher)}, mustDigest(t, row.Auth))
		o, err := recv.open(bytes.Clone(row.Packet))
		if err != nil || !bytes.Equal(o.payload, row.Inner) || classify(o.payload) != payloadOCC {
			t.Errorf("%s: open = %x, %v", row.ID, o.payload, err)
			continue
		}
		text := ""
		if row.OptionsString != nil {
			text = *row.OptionsString
			if got, err := parseOCCReply(o.payload); err != nil || got != text {
				t.Errorf("%s: options %q, %v; want %q", row.ID, got, err, text)
			}
		}
		send.id, send.time = row.PacketID-1, row.NetTime
		send.fillIV = func(b []byte) { copy(b, row.IV) }
		packet, err := send.seal(nil, &plaintext{body: occMessage(row.Opcode, text)})
		if err != nil || !bytes.Equal(packet, row.Packet) {
			t.Errorf("%s: seal = %x, %v; want %x", row.ID, packet, err, row.Packet)
		}
	}
}
