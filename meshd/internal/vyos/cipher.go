package vyos

import (
	"fmt"
	"slices"

	"github.com/planetmesh/planetmesh/overlay/openvpn"
)

// ciphers are the words of VyOS for ciphers. Some versions have fewer, see
// cipherWord.
var ciphers = []struct {
	word   string
	cipher openvpn.Cipher
}{
	{"aes128", openvpn.CipherAES128CBC},
	{"aes192", openvpn.CipherAES192CBC},
	{"aes256", openvpn.CipherAES256CBC},
	{"aes128gcm", openvpn.CipherAES128GCM},
	{"aes192gcm", openvpn.CipherAES192GCM},
	{"aes256gcm", openvpn.CipherAES256GCM},
	{"3des", openvpn.CipherTripleDESCBC},
	{"bf128", openvpn.CipherBlowfishCBC},
	{"none", openvpn.CipherNone},
}

// cipherWord is what a version calls a cipher, or what to do instead.
func cipherWord(v Version, c openvpn.Cipher) (word, problem, cure string) {
	i := slices.IndexFunc(ciphers, func(e struct {
		word   string
		cipher openvpn.Cipher
	}) bool {
		return e.cipher == c
	})
	const useAES = "\"cipher: AES-256-CBC\" here, and the commands of this command on the router"
	switch {
	case i < 0:
		return "", fmt.Sprintf("vyos has no setting for cipher %s", c), "\"cipher: AES-256-CBC\" or another AES cipher"
	case v == V12 && isGCM(c):
		return "", fmt.Sprintf("vyos 1.2 has no cipher %s", c), "\"cipher: AES-256-CBC\""
	case v == V12 && c == openvpn.CipherNone:
		return "", "vyos 1.2 cannot do without a cipher", useAES
	case v == V14 && c == openvpn.CipherBlowfishCBC:
		// bf128 renders "keysize", which OpenVPN 2.6 refuses; the same cipher is
		// the default of static keys if the word is left out.
		return "", "openvpn on vyos 1.4 does not start with \"encryption cipher bf128\"", useAES
	case v == V15 && c == openvpn.CipherBlowfishCBC:
		return "", "vyos 1.5 has no cipher BF-CBC", useAES
	}
	return ciphers[i].word, "", ""
}

// cipherNamed is the cipher behind a word of any version.
func cipherNamed(word string) (openvpn.Cipher, bool) {
	for _, e := range ciphers {
		if e.word == word {
			return e.cipher, true
		}
	}
	return "", false
}

func isGCM(c openvpn.Cipher) bool {
	return c == openvpn.CipherAES128GCM || c == openvpn.CipherAES192GCM || c == openvpn.CipherAES256GCM
}

// negotiated is what OpenVPN 2.6 offers without data-ciphers.
var negotiated = []openvpn.Cipher{openvpn.CipherAES256GCM, openvpn.CipherAES128GCM, openvpn.CipherChaCha20Poly1305}

// digests are the words of VyOS for digests; 1.2 has no sha384.
var digests = []struct {
	word   string
	digest openvpn.Digest
}{
	{"md5", openvpn.DigestMD5},
	{"sha1", openvpn.DigestSHA1},
	{"sha256", openvpn.DigestSHA256},
	{"sha384", openvpn.DigestSHA384},
	{"sha512", openvpn.DigestSHA512},
}

func digestWord(v Version, d openvpn.Digest) (word, problem, cure string) {
	for _, e := range digests {
		if e.digest != d {
			continue
		}
		if v == V12 && d == openvpn.DigestSHA384 {
			return "", "vyos 1.2 has no digest SHA384", "\"auth: SHA256\" or \"auth: SHA512\""
		}
		return e.word, "", ""
	}
	return "", fmt.Sprintf("vyos has no setting for digest %s", d), "\"auth: SHA256\""
}

func digestNamed(word string) (openvpn.Digest, bool) {
	for _, e := range digests {
		if e.word == word {
			return e.digest, true
		}
	}
	return "", false
}
