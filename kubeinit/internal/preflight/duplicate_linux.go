package preflight

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// How findDuplicates asks: as RFC 5227, section 2.1.1, but faster, because the
// address has been in use for long.
const (
	arpProbes = 3
	arpGap    = 100 * time.Millisecond
	arpWait   = 400 * time.Millisecond
)

// findDuplicates returns the hardware addresses of other machines on the
// link that answer for addr. It finds none for IPv6, where the kernel itself does
// so when it gets an address, nor where it may not ask.
func findDuplicates(ctx context.Context, addr netip.Addr) []string {
	if !addr.Is4() || addr.IsLoopback() {
		return nil
	}
	link, err := linkOf(addr)
	if err != nil || len(link.HardwareAddr) != 6 {
		return nil
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(networkOrder(unix.ETH_P_ARP)))
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	own := &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ARP), Ifindex: link.Index}
	gap := unix.NsecToTimeval(int64(arpGap))
	if unix.Bind(fd, own) != nil || unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &gap) != nil {
		return nil
	}
	everybody := *own
	everybody.Halen = 6
	copy(everybody.Addr[:], net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	var found []string
	began, sent := time.Now(), 0
	for time.Since(began) < arpProbes*arpGap+arpWait && ctx.Err() == nil {
		if sent < arpProbes && time.Since(began) >= time.Duration(sent)*arpGap {
			unix.Sendto(fd, arpProbe(link.HardwareAddr, addr), 0, &everybody) //nolint:errcheck // the next may pass
			sent++
		}
		buf := make([]byte, 128)
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			continue // nothing came for a while
		}
		if hardware := arpOwner(buf[:n], addr); hardware != nil && !slices.Equal(hardware, link.HardwareAddr) && len(found) < 8 {
			found = append(found, hardware.String())
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// arpProbe asks who has addr, on behalf of nobody (RFC 5227: the sender's
// address is zero, so that no cache changes).
func arpProbe(hardware net.HardwareAddr, addr netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, 1} // Ethernet, IPv4, lengths, request
	b = append(b, hardware...)
	b = append(b, 0, 0, 0, 0)
	b = append(b, 0, 0, 0, 0, 0, 0)
	return append(b, addr.AsSlice()...)
}

// arpOwner returns who claims addr in an ARP packet, nil if nobody does.
func arpOwner(b []byte, addr netip.Addr) net.HardwareAddr {
	if len(b) < 28 || !slices.Equal(b[:6], []byte{0, 1, 8, 0, 6, 4}) || !slices.Equal(b[14:18], addr.AsSlice()) {
		return nil
	}
	return slices.Clone(net.HardwareAddr(b[8:14]))
}

func networkOrder(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}
