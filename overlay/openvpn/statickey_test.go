package openvpn

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestStaticKeyParsesOneLineAndManyLines(t *testing.T) {
	key := GenerateStaticKey()
	text := string(key.Encode())
	oneLine := keyBegin + "\r\n" + strings.Join(strings.Fields(strings.Split(strings.Split(text, keyBegin)[1], keyEnd)[0]), "") + "\r\n" + keyEnd
	for name, in := range map[string]string{"lines": text, "one line": oneLine, "text before": "junk 00\n" + text, "upper case": strings.ReplaceAll(strings.ReplaceAll(text, "f", "F"), "b", "B")} {
		got, err := ParseStaticKey([]byte(in))
		if err != nil || got != key {
			t.Errorf("%s: parsed to another key, %v", name, err)
		}
	}
}

func TestStaticKeyRefusesDamagedText(t *testing.T) {
	text := string(GenerateStaticKey().Encode())
	digit := strings.Index(text, keyBegin) + len(keyBegin) + 1
	for name, in := range map[string]string{
		"empty":         "",
		"no begin":      strings.Replace(text, "BEGIN", "BEGAN", 1),
		"no end":        strings.Replace(text, "END", "EDN", 1),
		"short":         text[:digit] + text[digit+2:],
		"long":          text[:digit] + "00" + text[digit:],
		"not a digit":   text[:digit] + "g" + text[digit+1:],
		"all zero":      keyBegin + strings.Repeat("0", 512) + keyEnd,
		"capital":       strings.Replace(text, "Static key", "static key", 1),
		"beyond limits": strings.Repeat(" ", maxKeyFile) + text,
	} {
		if _, err := ParseStaticKey([]byte(in)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestStaticKeyIsNeverPrinted(t *testing.T) {
	key := GenerateStaticKey()
	secret := strings.Fields(string(key.Encode()))[12]
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "key", key, "config", Static{Key: key})
	out := fmt.Sprintf("%v %+v %#v %s %x %v %v", key, key, key, key, key, Static{Key: key}, &Static{Key: key}) + log.String()
	if strings.Contains(out, secret) || strings.Contains(out, fmt.Sprint(key.b[0], " ", key.b[1])) || !strings.Contains(out, "[redacted]") {
		t.Errorf("key is in %q", out)
	}
}

func TestDirectionsSelectHalves(t *testing.T) {
	key := GenerateStaticKey()
	a, b := key.halves()
	for _, row := range []struct {
		d          Direction
		send, recv keyHalf
	}{{DirectionNone, a, a}, {Direction0, a, b}, {Direction1, b, a}} {
		if send, recv := key.directed(row.d); send != row.send || recv != row.recv {
			t.Errorf("direction %s takes the wrong halves", row.d)
		}
	}
}

func FuzzParseStaticKey(f *testing.F) {
	f.Add(GenerateStaticKey().Encode())
	f.Add([]byte(keyBegin + keyEnd))
	v, _ := mustStaticVectors(f)
	f.Add([]byte(v.KeyFile))
	f.Fuzz(func(t *testing.T, text []byte) {
		key, err := ParseStaticKey(text)
		if err != nil {
			return
		}
		if again, err := ParseStaticKey(key.Encode()); err != nil || again != key {
			t.Errorf("does not survive Encode: %v", err)
		}
	})
}
