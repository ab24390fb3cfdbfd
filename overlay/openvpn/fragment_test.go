package openvpn

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"
)

// fragmentsOf cuts a payload as a peer does.
func fragmentsOf(seq uint8, payload []byte, most int) [][]byte {
	size := fragmentSize(len(payload), most)
	var out [][]byte
	for i := 0; len(payload) > 0; i++ {
		h := fragmentHeader{kind: fragmentMore, seq: seq, index: uint8(i)}
		n := min(size, len(payload))
		if n == len(payload) {
			h.kind, h.size = fragmentLast, size
		}
		enc := h.encode()
		out = append(out, append(enc[:], payload[:n]...))
		payload = payload[n:]
	}
	return out
}

func TestFragmentsComeTogetherInAnyOrder(t *testing.T) {
	now := time.Now()
	rnd := rand.New(rand.NewPCG(1, 2))
	for seq := range 200 {
		payload := bytes.Repeat([]byte{byte(seq), 1, 2}, 100+rnd.IntN(400))
		parts := fragmentsOf(uint8(seq), payload, 68+rnd.IntN(1000))
		rnd.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		r := reassembler{max: 1700}
		for i, part := range parts {
			got, err := r.add(part, now)
			if last := i == len(parts)-1; err != nil || last != (got != nil) || last && !bytes.Equal(got, payload) {
				t.Fatalf("part %d of %d: %d bytes, %v", i, len(parts), len(got), err)
			}
		}
		if len(r.partials) != 0 {
			t.Fatalf("%d partial packets left", len(r.partials))
		}
	}
}

func TestFragmentMemoryIsBounded(t *testing.T) {
	now := time.Now()
	r := reassembler{max: 1700}
	for i := range 1000 {
		_, _ = r.add(fragmentsOf(uint8(i), make([]byte, 1500), 400)[i%3], now)
	}
	if len(r.partials) > maxPartial {
		t.Errorf("%d partial packets", len(r.partials))
	}
	r.expire(now.Add(partialLife + time.Second))
	if len(r.partials) != 0 || r.lost == 0 {
		t.Errorf("%d partial packets after their life, %d lost", len(r.partials), r.lost)
	}
}

func TestFragmentsThatFitNothingAreRefused(t *testing.T) {
	enc := func(h fragmentHeader, n int) []byte {
		b := h.encode()
		return append(b[:], make([]byte, n)...)
	}
	for name, p := range map[string][]byte{
		"short":                {0, 0, 0},
		"spurious whole":       enc(fragmentHeader{seq: 1}, 100),
		"kind 3":               enc(fragmentHeader{kind: 3}, 100),
		"odd length":           enc(fragmentHeader{kind: fragmentMore}, 99),
		"empty":                enc(fragmentHeader{kind: fragmentMore}, 0),
		"last without size":    enc(fragmentHeader{kind: fragmentLast}, 100),
		"last longer than all": enc(fragmentHeader{kind: fragmentLast, size: 96}, 100),
		"too large":            enc(fragmentHeader{kind: fragmentMore, index: 31}, 100),
	} {
		r := reassembler{max: 1700}
		if got, err := r.add(p, time.Now()); err != ReasonFragment || len(r.partials) > 0 {
			t.Errorf("%s: %d bytes, %v, %d partial", name, len(got), err, len(r.partials))
		}
	}
}

func TestFragmentSequenceThatComesRoundReplacesTheOldOne(t *testing.T) {
	now := time.Now()
	r := reassembler{max: 1700}
	_, _ = r.add(fragmentsOf(3, bytes.Repeat([]byte{1}, 1500), 400)[0], now)
	want := bytes.Repeat([]byte{2}, 1400)
	var got []byte
	for _, part := range fragmentsOf(3, want, 400) {
		got, _ = r.add(part, now)
	}
	if !bytes.Equal(got, want) {
		t.Error("parts of two packets were mixed")
	}
	if r.lost != 1 {
		t.Errorf("%d packets lost, want 1", r.lost)
	}
}

func FuzzFragments(f *testing.F) {
	var v framingVectors
	mustVectors(f, "framing.json", &v)
	var all []byte
	for _, row := range v.Vectors {
		if row.FragmentHeader != nil {
			all = append(append(all, byte(len(row.Payload)>>2)), row.Payload...)
		}
	}
	f.Add(all)
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := reassembler{max: 1700}
		now := time.Now()
		for len(stream) > 1 {
			n := min(4*int(stream[0]), len(stream)-1)
			got, _ := r.add(stream[1:1+n], now)
			if len(got) > r.max || len(r.partials) > maxPartial {
				t.Fatalf("%d bytes, %d partial", len(got), len(r.partials))
			}
			stream, now = stream[1+n:], now.Add(100*time.Millisecond)
		}
	})
}
