//go:build openvpn && linux

package openvpn

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"strconv"
	"testing"
	"time"
)

// openOffload makes the TUN of our side with offload, up and with addresses.
func (l *lab) openOffload() *TUN {
	l.t.Helper()
	d, err := OpenTUN("of"+strconv.Itoa(l.n), 1500)
	if err != nil {
		l.t.Fatal(err)
	}
	l.run("ip", "addr", "add", l.inner(1).String(), "peer", l.inner(2).String(), "dev", d.Name())
	l.run("ip", "-6", "addr", "add", l.inner6(1).String()+"/64", "dev", d.Name(), "nodad")
	l.run("ip", "link", "set", d.Name(), "up")
	return d
}

func TestTUNWithOffloadCarriesTraffic(t *testing.T) {
	t.Parallel()
	s := newStaticLab(t)
	d := s.openOffload()
	s.cfg.Device = d
	e := mustOpen(t, s.cfg)
	s.openvpn(append(s.udp(), "--secret", s.keyFile(), "--cipher", "AES-256-CBC", "--auth", "SHA256")...)
	s.checkTraffic()
	if n := d.Refused(); n != 0 {
		t.Errorf("the kernel refused %d packets", n)
	}
	c := e.Status().Counters
	if c.Dropped[ReasonOversize] != 0 {
		t.Errorf("dropped: %v", c.Dropped)
	}
}

// More packets than one batch has, all in one flow and out of order here and
// there, reach a socket of the kernel as they were.
func TestTUNJoinsWithoutChangingPackets(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	d := l.openOffload()
	defer d.Close()
	var lc net.ListenConfig
	conn, err := lc.ListenPacket(t.Context(), "udp4", net.JoinHostPort(l.inner(1).String(), "4711"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.(*net.UDPConn).SetReadBuffer(1 << 20); err != nil {
		t.Fatal(err)
	}
	const count = 2*tunBatch + 3
	size := func(i int) int { return 100 - min(1, i%20) }
	var packets [][]byte
	for i := range count {
		p := udpPacket(l.inner(2).As4(), l.inner(1).As4(), 4711, size(i), uint16(i))
		packets = append(packets, p)
	}
	packets = append(packets, nil) // no packet at all
	if err := d.WritePackets(packets); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2000)
	for i := range count {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			t.Fatalf("packet %d: %v", i, err)
		}
		if got := int(buf[0])<<8 | int(buf[1]); got != i || n != size(i) {
			t.Fatalf("packet %d: got number %d with %d bytes", i, got, n)
		}
	}
	if n := d.Refused(); n != 1 {
		t.Errorf("%d packets refused, want the empty one", n)
	}
}

// udpPacket is an IPv4 packet of so many bytes of payload that begin with a number.
func udpPacket(from, to [4]byte, port uint16, size int, number uint16) []byte {
	p := []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0}
	p = append(append(p, from[:]...), to[:]...)
	p = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(p, port), port)
	p = binary.BigEndian.AppendUint16(p, uint16(size+8))
	p = binary.BigEndian.AppendUint16(append(p, 0, 0), number)
	p = append(p, make([]byte, 28+size-len(p))...)
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	binary.BigEndian.PutUint16(p[10:], ^onesSum(0, p[:20]))
	pseudo := onesSum(uint32(17+size+8), p[12:20])
	binary.BigEndian.PutUint16(p[26:], ^onesSum(uint32(pseudo), p[20:]))
	return p
}

// onesSum is the sum of the internet checksum (RFC 1071).
func onesSum(sum uint32, b []byte) uint16 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

func TestTUNClosesAndNamesItsErrors(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	d := l.openOffload()
	if _, err := OpenTUN(d.Name(), 1500); !errors.Is(err, os.ErrExist) {
		t.Errorf("same name again: got %v", err)
	}
	for _, mtu := range []int{0, minMTU - 1, maxMTU + 1} {
		if _, err := OpenTUN("wrong", mtu); err == nil {
			t.Errorf("mtu %d: no error", mtu)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() { // ends with Close
		packets, size := d.Batch()
		bufs, sizes := make([][]byte, packets), make([]int, packets)
		for i := range bufs {
			bufs[i] = make([]byte, size)
		}
		for {
			if _, err := d.ReadPackets(bufs, sizes); err != nil {
				ended <- err
				return
			}
		}
	}()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: got %v", err)
		}
	case <-ctx.Done():
		t.Error("read did not end with close")
	}
	if err := d.WritePackets([][]byte{innerPacket(1, 100)}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write: got %v", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
