package apiproxy

import (
	"io"
	"net"
	"net/netip"
	"testing"
)

// BenchmarkConnection compares a connection through the proxy with a direct
// one: how long it takes to make one, to ask one question on it, and to get
// much through it.
func BenchmarkConnection(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.9.60:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go serveBench(l)
	direct := l.Addr().String()
	address := Upstream{Address: netip.MustParseAddrPort(direct)}
	r := start(b, []Upstream{address}, nil)
	for name, to := range map[string]string{"direct": direct, "proxy": r.listen.String()} {
		b.Run("connect/"+name, func(b *testing.B) {
			for b.Loop() {
				c := mustDial(b, to)
				question(b, c)
				c.Close()
			}
		})
		b.Run("question/"+name, func(b *testing.B) {
			c := mustDial(b, to)
			defer c.Close()
			b.ReportAllocs()
			for b.Loop() {
				question(b, c)
			}
		})
		b.Run("megabyte/"+name, func(b *testing.B) {
			c := mustDial(b, to)
			defer c.Close()
			b.SetBytes(1 << 20)
			for b.Loop() {
				if _, err := c.Write([]byte{'m'}); err != nil {
					b.Fatal(err)
				}
				if _, err := io.CopyN(io.Discard, c, 1<<20); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// serveBench answers q with one byte and m with a megabyte; anything else ends
// the connection.
func serveBench(l net.Listener) {
	big := make([]byte, 1<<20)
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			b := make([]byte, 1)
			for {
				if _, err := c.Read(b); err != nil {
					return
				}
				answer := map[byte][]byte{'q': big[:1], 'm': big}[b[0]]
				if _, err := c.Write(answer); err != nil || answer == nil {
					return
				}
			}
		}()
	}
}

func mustDial(b *testing.B, address string) net.Conn {
	b.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

func question(b *testing.B, c net.Conn) {
	b.Helper()
	if _, err := c.Write([]byte{'q'}); err != nil {
		b.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		b.Fatal(err)
	}
}
