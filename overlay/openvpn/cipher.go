package openvpn

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"slices"
	"strings"

	"golang.org/x/crypto/blowfish" //nolint:staticcheck // deprecated as a cipher, not as a package: old routers have no other
	"golang.org/x/crypto/chacha20poly1305"
)

// Cipher names a data channel cipher as OpenVPN spells it. The zero value
// means the default of the field it stands in.
type Cipher string

// The ciphers of this package. BF-CBC and DES-EDE3-CBC have blocks of 64 bits
// and are there for old routers only; see [Config.Warnings].
const (
	CipherAES128CBC        Cipher = "AES-128-CBC"
	CipherAES192CBC        Cipher = "AES-192-CBC"
	CipherAES256CBC        Cipher = "AES-256-CBC"
	CipherBlowfishCBC      Cipher = "BF-CBC"
	CipherTripleDESCBC     Cipher = "DES-EDE3-CBC"
	CipherAES128GCM        Cipher = "AES-128-GCM"
	CipherAES192GCM        Cipher = "AES-192-GCM"
	CipherAES256GCM        Cipher = "AES-256-GCM"
	CipherChaCha20Poly1305 Cipher = "CHACHA20-POLY1305"
	// CipherNone sends in clear. It is used only where Insecure says so.
	CipherNone Cipher = "none"
)

// Digest names the hash of the HMAC that protects packets (--auth). The zero
// value means the default, SHA1, which is that of OpenVPN.
type Digest string

// The digests of this package.
const (
	DigestMD5    Digest = "MD5"
	DigestSHA1   Digest = "SHA1"
	DigestSHA256 Digest = "SHA256"
	DigestSHA384 Digest = "SHA384"
	DigestSHA512 Digest = "SHA512"
	// DigestNone sends without authentication. It is used only where Insecure
	// says so.
	DigestNone Digest = "none"
)

// cipherSpec describes one cipher: key and block in bytes, AEAD or CBC.
type cipherSpec struct {
	name    Cipher
	keySize int
	block   int
	aead    bool
}

func (s cipherSpec) smallBlock() bool { return s.block == 8 }

// cipherSpecOf returns the description of a known cipher.
func cipherSpecOf(c Cipher) (cipherSpec, bool) {
	switch c {
	case CipherAES128CBC:
		return cipherSpec{c, 16, 16, false}, true
	case CipherAES192CBC:
		return cipherSpec{c, 24, 16, false}, true
	case CipherAES256CBC:
		return cipherSpec{c, 32, 16, false}, true
	case CipherBlowfishCBC:
		return cipherSpec{c, 16, 8, false}, true
	case CipherTripleDESCBC:
		return cipherSpec{c, 24, 8, false}, true
	case CipherAES128GCM:
		return cipherSpec{c, 16, 16, true}, true
	case CipherAES192GCM:
		return cipherSpec{c, 24, 16, true}, true
	case CipherAES256GCM, CipherChaCha20Poly1305:
		return cipherSpec{c, 32, 16, true}, true
	case CipherNone:
		return cipherSpec{c, 0, 0, false}, true
	}
	return cipherSpec{}, false
}

// ParseCipher returns the cipher of that name, whatever its case.
func ParseCipher(name string) (Cipher, error) {
	c := Cipher(strings.ToUpper(name))
	if strings.EqualFold(name, string(CipherNone)) {
		c = CipherNone
	}
	if _, known := cipherSpecOf(c); !known {
		return "", fmt.Errorf("unknown cipher %q", name)
	}
	return c, nil
}

// ParseDigest returns the digest of that name, whatever its case.
func ParseDigest(name string) (Digest, error) {
	d := Digest(strings.ToUpper(name))
	if strings.EqualFold(name, string(DigestNone)) {
		d = DigestNone
	}
	if !d.known() {
		return "", fmt.Errorf("unknown digest %q", name)
	}
	return d, nil
}

func (d Digest) known() bool {
	return slices.Contains([]Digest{DigestMD5, DigestSHA1, DigestSHA256, DigestSHA384, DigestSHA512, DigestNone}, d)
}

// size returns the length of the tag and of the HMAC key, in bytes.
func (d Digest) size() int {
	if n := d.newHash(); n != nil {
		return n().Size()
	}
	return 0
}

// newHash returns the constructor of the hash, nil for DigestNone.
func (d Digest) newHash() func() hash.Hash {
	switch d {
	case DigestMD5:
		return md5.New
	case DigestSHA1:
		return sha1.New
	case DigestSHA256:
		return sha256.New
	case DigestSHA384:
		return sha512.New384
	case DigestSHA512:
		return sha512.New
	}
	return nil
}

// newBlock builds the block cipher of a CBC cipher.
func (s cipherSpec) newBlock(key []byte) (cipher.Block, error) {
	switch s.name {
	case CipherAES128CBC, CipherAES192CBC, CipherAES256CBC:
		return aes.NewCipher(key)
	case CipherBlowfishCBC:
		return blowfish.NewCipher(key)
	case CipherTripleDESCBC:
		return des.NewTripleDESCipher(key)
	}
	return nil, fmt.Errorf("%s is not a CBC cipher", s.name)
}

// newAEAD builds an AEAD cipher.
func (s cipherSpec) newAEAD(key []byte) (cipher.AEAD, error) {
	switch s.name {
	case CipherAES128GCM, CipherAES192GCM, CipherAES256GCM:
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		return cipher.NewGCM(block)
	case CipherChaCha20Poly1305:
		return chacha20poly1305.New(key)
	}
	return nil, fmt.Errorf("%s is not an AEAD cipher", s.name)
}
