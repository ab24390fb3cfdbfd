package overlaytest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const port = 17946

func addr(i byte) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, i}) }

func mustListen(t testing.TB, h *Host, port uint16) net.PacketConn {
	t.Helper()
	c, err := h.ListenPacket(context.Background(), port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func send(t testing.TB, c net.PacketConn, to netip.AddrPort, text string) {
	t.Helper()
	if _, err := c.WriteTo([]byte(text), net.UDPAddrFromAddrPort(to)); err != nil {
		t.Fatal(err)
	}
}

// received returns what arrives within limit, in its order, and when, and from where.
type arrival struct {
	text string
	at   time.Duration
	from netip.AddrPort
}

func received(c net.PacketConn, limit time.Duration) []arrival {
	start := time.Now()
	_ = c.SetReadDeadline(start.Add(limit))
	var out []arrival
	b := make([]byte, 2000)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return out
		}
		out = append(out, arrival{string(b[:n]), time.Since(start), from.(*net.UDPAddr).AddrPort()})
	}
}

// inBubble runs f with two hosts that listen.
func inBubble(t *testing.T, l Link, f func(t *testing.T, n *Network, a, b net.PacketConn)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(Options{Link: l, Seed: 7})
		f(t, n, mustListen(t, n.Host(addr(1)), port), mustListen(t, n.Host(addr(2)), port))
	})
}

func at(i byte) netip.AddrPort { return netip.AddrPortFrom(addr(i), port) }

func TestLinkDelaysByDelayAndJitter(t *testing.T) {
	l := Link{Delay: 40 * time.Millisecond, Jitter: 10 * time.Millisecond}
	inBubble(t, l, func(t *testing.T, _ *Network, a, b net.PacketConn) {
		for range 100 {
			send(t, a, at(2), "x")
		}
		got := received(b, time.Second)
		if len(got) != 100 {
			t.Fatalf("%d of 100 arrived", len(got))
		}
		if got[0].at < l.Delay || got[99].at > l.Delay+l.Jitter || got[99].at-got[0].at < l.Jitter/2 {
			t.Errorf("arrived from %v to %v", got[0].at, got[99].at)
		}
		if got[0].from != at(1) {
			t.Errorf("came from %v", got[0].from)
		}
	})
}

func TestLinkLosesItsShare(t *testing.T) {
	inBubble(t, Link{Delay: time.Millisecond, Loss: 0.3}, func(t *testing.T, n *Network, a, b net.PacketConn) {
		const sent = 5000
		arrived := 0
		for range sent / 100 {
			for range 100 {
				send(t, a, at(2), "x")
			}
			arrived += len(received(b, 10*time.Millisecond))
		}
		// Five standard deviations of a binomial distribution.
		if arrived < 3338 || arrived > 3662 {
			t.Errorf("%d of %d arrived, want about 3,500", arrived, sent)
		}
		if s := n.Stats(); s.Packets != sent || s.Lost != uint64(sent-arrived) {
			t.Errorf("counted %+v", s)
		}
	})
}

func TestLinkReordersAndDuplicates(t *testing.T) {
	l := Link{Delay: 10 * time.Millisecond, Reorder: 0.2, Duplicate: 0.1}
	inBubble(t, l, func(t *testing.T, _ *Network, a, b net.PacketConn) {
		for i := range 150 {
			send(t, a, at(2), fmt.Sprintf("%03d", i))
			time.Sleep(time.Millisecond)
		}
		got := received(b, time.Second)
		if len(got) <= 150 {
			t.Fatalf("%d arrived, want some twice", len(got))
		}
		texts := make([]string, 0, len(got))
		for _, g := range got {
			texts = append(texts, g.text)
		}
		if slices.IsSorted(texts) {
			t.Error("all arrived in their order")
		}
		slices.Sort(texts)
		if n := len(slices.Compact(texts)); n != 150 {
			t.Errorf("%d different ones arrived, want 150", n)
		}
	})
}

func TestLinkWithARateQueuesAndDrops(t *testing.T) {
	inBubble(t, Link{Rate: 10_000}, func(t *testing.T, _ *Network, a, b net.PacketConn) {
		for range 100 {
			send(t, a, at(2), string(make([]byte, 100))) // 10 ms each
		}
		got := received(b, 10*time.Second)
		if len(got) < 20 || len(got) > 22 {
			t.Fatalf("%d arrived, want those that wait for at most %v", len(got), maxWait)
		}
		if last := got[len(got)-1].at; last < maxWait || last > maxWait+20*time.Millisecond {
			t.Errorf("the last arrived after %v", last)
		}
	})
}

func TestCutIsOneWay(t *testing.T) {
	inBubble(t, Link{}, func(t *testing.T, n *Network, a, b net.PacketConn) {
		n.Cut(addr(1), addr(2))
		send(t, a, at(2), "lost")
		send(t, b, at(1), "passes")
		if got := received(b, time.Second); len(got) != 0 {
			t.Errorf("%q passed the cut", got[0].text)
		}
		if got := received(a, time.Second); len(got) != 1 {
			t.Errorf("%d passed in the other direction, want 1", len(got))
		}
		n.Mend(addr(1), addr(2))
		send(t, a, at(2), "again")
		if got := received(b, time.Second); len(got) != 1 {
			t.Error("nothing passed after the cut was mended")
		}
	})
}

func TestPartitionKeepsGroupsApart(t *testing.T) {
	inBubble(t, Link{}, func(t *testing.T, n *Network, a, b net.PacketConn) {
		c := mustListen(t, n.Host(addr(3)), port)
		n.Partition([]netip.Addr{addr(1), addr(3)})
		if n.Connected(addr(1), addr(2)) || !n.Connected(addr(1), addr(3)) {
			t.Error("Connected does not know the partition")
		}
		send(t, a, at(2), "across")
		send(t, a, at(3), "within")
		if got := received(b, time.Second); len(got) != 0 {
			t.Error("a packet crossed the partition")
		}
		if got := received(c, time.Second); len(got) != 1 {
			t.Error("a packet within a part got lost")
		}
		n.Heal()
		send(t, a, at(2), "healed")
		if got := received(b, time.Second); len(got) != 1 {
			t.Error("nothing passed after healing")
		}
	})
}

func TestLinkOfOneDirectionCountsBeforeTheDefault(t *testing.T) {
	inBubble(t, Link{}, func(t *testing.T, n *Network, a, b net.PacketConn) {
		n.SetLink(addr(1), addr(2), Link{Delay: time.Second})
		send(t, a, at(2), "slow")
		send(t, b, at(1), "fast")
		if got := received(a, time.Millisecond); len(got) != 1 {
			t.Error("the other direction is slow too")
		}
		if got := received(b, 2*time.Second); len(got) != 1 || got[0].at < 990*time.Millisecond {
			t.Errorf("arrived: %v", got)
		}
		n.ResetLink(addr(1), addr(2))
		send(t, a, at(2), "fast again")
		if got := received(b, time.Millisecond); len(got) != 1 {
			t.Error("slow after ResetLink")
		}
	})
}

func TestCrashedHostIsSilentAndItsPortFree(t *testing.T) {
	inBubble(t, Link{}, func(t *testing.T, n *Network, a, b net.PacketConn) {
		n.Host(addr(2)).Crash()
		send(t, a, at(2), "into the void")
		send(t, b, at(1), "from the grave")
		if got := received(b, time.Second); len(got) != 0 {
			t.Error("a crashed host heard something")
		}
		if got := received(a, time.Second); len(got) != 0 {
			t.Error("a crashed host said something")
		}
		again := mustListen(t, n.Host(addr(2)), port)
		if err := b.Close(); err != nil {
			t.Errorf("close the socket of the crashed: %v", err)
		}
		send(t, a, at(2), "welcome back")
		if got := received(again, time.Second); len(got) != 1 {
			t.Error("the restarted host hears nothing")
		}
	})
}

func TestSocketsBehaveLikeThoseOfTheSystem(t *testing.T) {
	inBubble(t, Link{}, func(t *testing.T, n *Network, a, _ net.PacketConn) {
		if _, err := n.Host(addr(1)).ListenPacket(t.Context(), port); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("a port in use: %v, want EADDRINUSE", err)
		}
		x, y := mustListen(t, n.Host(addr(1)), 0), mustListen(t, n.Host(addr(1)), 0)
		if x.LocalAddr().String() == y.LocalAddr().String() {
			t.Errorf("two sockets at %v", x.LocalAddr())
		}
		_ = a.SetReadDeadline(time.Now().Add(time.Second))
		if _, _, err := a.ReadFrom(nil); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read past the deadline: %v", err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if _, _, err := a.ReadFrom(nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read from a closed socket: %v", err)
		}
		if err := a.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("close twice: %v", err)
		}
	})
}

// public and private sides of the NAT tests.
var (
	outside = addr(9)
	inside  = netip.AddrFrom4([4]byte{172, 16, 0, 1})
)

func withNAT(t *testing.T, o NATOptions, f func(n *Network, nat *NAT, in, a, b net.PacketConn)) {
	t.Helper()
	inBubble(t, Link{}, func(t *testing.T, n *Network, a, b net.PacketConn) {
		nat := n.NAT(outside, o)
		f(n, nat, mustListen(t, nat.Host(inside), port), a, b)
	})
}

func TestNATKeepsOnePortForAllDestinations(t *testing.T) {
	withNAT(t, NATOptions{}, func(_ *Network, _ *NAT, in, a, b net.PacketConn) {
		send(t, in, at(1), "x")
		send(t, in, at(2), "x")
		x, y := received(a, time.Second), received(b, time.Second)
		if len(x) != 1 || len(y) != 1 || x[0].from != y[0].from || x[0].from.Addr() != outside {
			t.Fatalf("seen as %v and %v", x, y)
		}
		send(t, a, x[0].from, "answer")
		if got := received(in, time.Second); len(got) != 1 || got[0].from != at(1) {
			t.Errorf("answers: %v", got)
		}
	})
}

func TestSymmetricNATHasAPortForEachDestination(t *testing.T) {
	withNAT(t, NATOptions{Symmetric: true}, func(_ *Network, _ *NAT, in, a, b net.PacketConn) {
		send(t, in, at(1), "x")
		send(t, in, at(2), "x")
		x, y := received(a, time.Second), received(b, time.Second)
		if len(x) != 1 || len(y) != 1 || x[0].from == y[0].from {
			t.Fatalf("seen as %v and %v", x, y)
		}
		send(t, b, x[0].from, "to the port of another")
		if got := received(in, time.Second); len(got) != 0 {
			t.Error("a stranger's packet got in")
		}
	})
}

func TestNATLetsInWhomItWasSentTo(t *testing.T) {
	for _, open := range []bool{false, true} {
		withNAT(t, NATOptions{Open: open}, func(_ *Network, _ *NAT, in, a, b net.PacketConn) {
			send(t, in, at(1), "x")
			mapped := received(a, time.Second)[0].from
			send(t, b, mapped, "stranger")
			if got := received(in, time.Second); (len(got) == 1) != open {
				t.Errorf("open %v: %d packets of a stranger got in", open, len(got))
			}
			send(t, a, netip.AddrPortFrom(inside, port), "to the private address")
			if got := received(in, time.Second); len(got) != 0 {
				t.Error("the private address can be reached from outside")
			}
		})
	}
}

func TestNATForgets(t *testing.T) {
	withNAT(t, NATOptions{Timeout: 30 * time.Second}, func(_ *Network, nat *NAT, in, a, _ net.PacketConn) {
		open := func() netip.AddrPort {
			send(t, in, at(1), "x")
			return received(a, time.Second)[0].from
		}
		mapped := open()
		time.Sleep(31 * time.Second)
		send(t, a, mapped, "late")
		if got := received(in, time.Second); len(got) != 0 {
			t.Error("a packet got in after the timeout")
		}
		mapped = open()
		nat.Restart()
		send(t, a, mapped, "after the restart")
		if got := received(in, time.Second); len(got) != 0 {
			t.Error("a packet got in after the router restarted")
		}
	})
}

func TestRunsWithOneSeedSendTheSame(t *testing.T) {
	digest := func(seed uint64) (sum uint64) {
		synctest.Test(t, func(t *testing.T) {
			n := NewNetwork(Options{Link: Link{Delay: time.Millisecond, Jitter: time.Second, Loss: 0.5}, Seed: seed})
			a, b := mustListen(t, n.Host(addr(1)), port), mustListen(t, n.Host(addr(2)), port)
			for range 50 {
				send(t, a, at(2), "ping")
			}
			for range received(b, 5*time.Second) {
				send(t, b, at(1), "pong")
			}
			received(a, 5*time.Second) // a bubble must not end before its packets
			sum = n.Digest()
		})
		return sum
	}
	first := digest(1)
	if again := digest(1); again != first {
		t.Error("two runs with one seed differ")
	}
	if digest(2) == first {
		t.Error("runs with different seeds are equal")
	}
}
