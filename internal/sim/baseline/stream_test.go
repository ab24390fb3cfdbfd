package baseline

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/planetmesh/planetmesh/overlay/overlaytest"
)

// pair is two transports on one network, closed when the test ends.
type pair struct {
	network *overlaytest.Network
	wire    *wire
	a, b    *transport
}

func newPair(t *testing.T, l overlaytest.Link) *pair {
	t.Helper()
	p := &pair{network: overlaytest.NewNetwork(overlaytest.Options{Link: l, Seed: 1})}
	p.wire = newWire(p.network, 1)
	for i, at := range []**transport{&p.a, &p.b} {
		var err error
		if *at, err = newTransport(t.Context(), p.wire, p.network.Host(overlaytest.Underlay(i))); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := (*at).Shutdown(); err != nil {
				t.Error(err)
			}
		})
	}
	return p
}

// dial opens a stream from a to b and returns both ends.
func (p *pair) dial(t *testing.T) (ours, theirs net.Conn) {
	t.Helper()
	ours, err := p.a.DialTimeout(p.b.tcp().String(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return ours, <-p.b.StreamCh()
}

func mustWrite(t *testing.T, c net.Conn, b []byte) {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
}

const delay = 40 * time.Millisecond

func TestStreamsTakeTheDelayOfTheirNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, overlaytest.Link{Delay: delay})
		start := time.Now()
		ours, theirs := p.dial(t)
		if took := time.Since(start); took != 3*delay {
			t.Errorf("the other end had the stream after %v, want %v", took, 3*delay)
		}
		start = time.Now()
		mustWrite(t, ours, []byte("hello"))
		if err := ours.Close(); err != nil {
			t.Error(err)
		}
		b, err := io.ReadAll(theirs)
		if string(b) != "hello" || err != nil || time.Since(start) != delay {
			t.Errorf("got %q, %v after %v, want hello after %v", b, err, time.Since(start), delay)
		}
		if _, err := ours.Write(nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after close: got %v, want %v", err, net.ErrClosed)
		}
		if sent := p.wire.sent(); sent != 5 {
			t.Errorf("%d bytes were counted, want 5", sent)
		}
	})
}

func TestStreamsKeepTheirOrderUnderLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, overlaytest.Link{Delay: delay, Jitter: delay, Loss: 0.2})
		ours, theirs := p.dial(t)
		want := make([]byte, 100*segmentSize+1)
		for i := range want {
			want[i] = byte(i / segmentSize)
		}
		start := time.Now()
		mustWrite(t, ours, want)
		if err := ours.Close(); err != nil {
			t.Error(err)
		}
		got, err := io.ReadAll(theirs)
		if !bytes.Equal(got, want) || err != nil {
			t.Errorf("got %d bytes, %v, want the %d that were written", len(got), err, len(want))
		}
		if took := time.Since(start); took < leastRetry {
			t.Errorf("took %v, no loss showed", took)
		}
	})
}

func TestStreamsWaitWhileTheyAreCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, overlaytest.Link{Delay: delay})
		ours, theirs := p.dial(t)
		p.network.Cut(p.a.addr, p.b.addr)
		mustWrite(t, ours, []byte("x"))
		if err := theirs.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if n, err := theirs.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 3*time.Second {
			t.Errorf("cut: got %d, %v after %v, want the deadline", n, err, time.Since(start))
		}
		mustWrite(t, theirs, []byte("y"))
		if n, err := ours.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Errorf("the other way: got %d, %v, want a byte", n, err)
		}
		p.network.Mend(p.a.addr, p.b.addr)
		if err := theirs.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		if n, err := theirs.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Errorf("mended: got %d, %v, want a byte", n, err)
		}
	})
}

func TestDialFailsAcrossACutAndWhereNobodyIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, overlaytest.Link{Delay: delay})
		dial := func(what string, addr string, want error, after time.Duration) {
			t.Helper()
			start := time.Now()
			_, err := p.a.DialTimeout(addr, 10*time.Second)
			if took := time.Since(start); !errors.Is(err, want) || took != after {
				t.Errorf("%s: got %v after %v, want %v after %v", what, err, took, want, after)
			}
		}
		there := p.b.tcp().String()
		p.network.Partition(p.network.Host(p.a.addr).Addrs())
		dial("partition", there, os.ErrDeadlineExceeded, 10*time.Second)
		p.network.Heal()
		p.network.Cut(p.b.addr, p.a.addr)
		dial("cut on the way back", there, os.ErrDeadlineExceeded, 10*time.Second)
		p.network.Mend(p.b.addr, p.a.addr)
		dial("no member", "203.0.113.9:7946", syscall.ECONNREFUSED, 2*delay)
		p.b.crash()
		dial("crashed", there, os.ErrDeadlineExceeded, 10*time.Second)
	})
}

func TestCrashedHostsAreSilentOnTheirStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, overlaytest.Link{Delay: delay})
		ours, theirs := p.dial(t)
		mustWrite(t, theirs, []byte("last words"))
		p.b.crash()
		if err := theirs.Close(); err != nil {
			t.Error(err)
		}
		if err := ours.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if n, err := ours.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %d, %v, want the deadline", n, err)
		}
	})
}

func TestShutdownEndsStreamsAndDials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, overlaytest.Link{Delay: delay})
		ours, theirs := p.dial(t)
		p.network.Cut(p.a.addr, p.b.addr)
		dialled := make(chan error)
		go func() {
			_, err := p.a.DialTimeout(p.b.tcp().String(), time.Hour)
			dialled <- err
		}()
		synctest.Wait()
		if err := p.a.Shutdown(); err != nil {
			t.Error(err)
		}
		if err := <-dialled; !errors.Is(err, errNotUp) {
			t.Errorf("dial: got %v, want %v", err, errNotUp)
		}
		if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: got %v, want %v", err, net.ErrClosed)
		}
		p.network.Mend(p.a.addr, p.b.addr)
		if _, err := theirs.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("the other end: got %v, want %v", err, io.EOF)
		}
	})
}
