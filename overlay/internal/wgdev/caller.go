package wgdev

import (
	"crypto/ecdh"
	"crypto/hmac"
	"hash"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// Names of WireGuard's handshake (whitepaper, section 5.4).
const (
	construction = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
	identifier   = "WireGuard v1 zx2c4 Jason@zx2c4.com"
	labelMAC1    = "mac1----"
)

// caller reports who sends an initiation that is meant for the owner of a
// private key. The sender has proven that it has its key, not that it sends
// just now: an initiation can be recorded.
func caller(own *ecdh.PrivateKey, b []byte) (from trust.ExchangeKey, ok bool) {
	if len(b) != initiationSize || b[0] != typeInitiation {
		return from, false
	}
	public := own.PublicKey().Bytes()
	ephemeral, static, timestamp, mac1 := b[8:40], b[40:88], b[88:116], b[116:132]
	macKey := digest([]byte(labelMAC1), public)
	mac, err := blake2s.New128(macKey[:])
	if err != nil {
		return from, false
	}
	mac.Write(b[:116])
	if !hmac.Equal(mac.Sum(nil), mac1) {
		return from, false
	}
	chain := blake2s.Sum256([]byte(construction))
	h := digest(chain[:], []byte(identifier))
	h = digest(h[:], public)
	h = digest(h[:], ephemeral)
	chain = derive(chain, ephemeral)[0]
	opened, ok := open(own, &chain, h, ephemeral, static)
	if !ok {
		return from, false
	}
	h = digest(h[:], static)
	if _, ok := open(own, &chain, h, opened, timestamp); !ok {
		return from, false
	}
	return trust.ExchangeKey(opened), true
}

// open decrypts a field of an initiation: with what two keys share.
func open(own *ecdh.PrivateKey, chain *[blake2s.Size]byte, h [blake2s.Size]byte, public, field []byte) ([]byte, bool) {
	remote, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		return nil, false
	}
	shared, err := own.ECDH(remote) // refuses the keys that lead to zero
	if err != nil {
		return nil, false
	}
	keys := derive(*chain, shared)
	*chain = keys[0]
	aead, err := chacha20poly1305.New(keys[1][:])
	if err != nil {
		return nil, false
	}
	opened, err := aead.Open(nil, make([]byte, chacha20poly1305.NonceSize), field, h[:])
	return opened, err == nil
}

func digest(a, b []byte) [blake2s.Size]byte {
	return blake2s.Sum256(append(append(make([]byte, 0, len(a)+len(b)), a...), b...))
}

// derive is HKDF as the handshake uses it.
func derive(chain [blake2s.Size]byte, input []byte) (keys [2][blake2s.Size]byte) {
	sum := func(key []byte, parts ...[]byte) (out [blake2s.Size]byte) {
		m := hmac.New(newHash, key)
		for _, p := range parts {
			m.Write(p)
		}
		m.Sum(out[:0])
		return out
	}
	prk := sum(chain[:], input)
	keys[0] = sum(prk[:], []byte{1})
	keys[1] = sum(prk[:], keys[0][:], []byte{2})
	return keys
}

func newHash() hash.Hash {
	h, err := blake2s.New256(nil)
	if err != nil {
		panic(err) // only a key can be too long
	}
	return h
}
