package preflight

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
)

// rig is an agent that a test speaks to line by line.
type rig struct {
	t     *testing.T
	in    *io.PipeWriter
	out   *bufio.Reader
	ready *ready
	id    uint64
	done  chan error
}

// newRig starts an agent with one peer, index 1 at addr and port, whose key is returned.
func newRig(t *testing.T, self, other netip.AddrPort, ports ...uint16) (*rig, []byte) {
	t.Helper()
	r, w := io.Pipe()
	outR, outW := io.Pipe()
	g := &rig{t: t, in: w, out: bufio.NewReader(outR), done: make(chan error, 1)}
	go func() { // ends with its input
		g.done <- Serve(t.Context(), r, outW)
		outW.Close()
	}()
	t.Cleanup(func() {
		w.Close()
		if err := <-g.done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	key := derivePairKey([]byte("a secret that only the two know"), 0, 1)
	g.ready = g.ask(request{Setup: &setup{Self: 0, Addr: self.Addr(), ProbePort: self.Port(), Ports: ports}}).Ready
	if g.ready == nil {
		t.Fatal("agent is not ready")
	}
	g.ask(request{Peers: &peers{Peers: []peer{{Index: 1, Addr: other.Addr(), ProbePort: other.Port(), Key: key}}}})
	return g, key
}

func (g *rig) ask(r request) reply {
	g.t.Helper()
	g.send(r)
	return g.read()
}

func (g *rig) send(r request) {
	g.t.Helper()
	g.id++
	r.Version, r.ID = protocolVersion, g.id
	line, err := json.Marshal(r)
	if err != nil {
		g.t.Fatal(err)
	}
	if _, err := g.in.Write(append(line, '\n')); err != nil {
		g.t.Fatal(err)
	}
}

func (g *rig) read() reply {
	g.t.Helper()
	line, err := g.out.ReadBytes('\n')
	if err != nil {
		g.t.Fatal(err)
	}
	r, err := parseReply(line)
	if err != nil || r.ID != g.id {
		g.t.Fatalf("reply %s: %v", line, err)
	}
	if r.Error != "" {
		g.t.Fatalf("agent: %s", r.Error)
	}
	return r
}

func mustListenUDP(t *testing.T, addr string) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn), c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestForeignPacketsDoNotCount(t *testing.T) {
	stranger, other := mustListenUDP(t, "127.78.0.2:0")
	g, key := newRig(t, netip.MustParseAddrPort("127.78.0.1:0"), other)
	to := netip.AddrPortFrom(netip.MustParseAddr("127.78.0.1"), g.ready.ProbePort)
	good := packet{kind: kindEcho, from: 1, to: 0, run: 7, seq: 1}
	signed := good.append(nil, newPairKey(key))
	write := func(b []byte) {
		if _, err := stranger.WriteToUDPAddrPort(b, to); err != nil {
			t.Fatal(err)
		}
	}
	forge := func(change func(p *packet), k []byte) []byte {
		p := good
		change(&p)
		return p.append(nil, newPairKey(k))
	}
	flipped := bytes.Clone(signed)
	flipped[20] ^= 1
	for _, b := range [][]byte{
		nil, []byte("kip1"), []byte(strings.Repeat("x", 2000)), signed[:packetLen-1], flipped,
		append(bytes.Clone(signed), 0),                              // a byte more
		forge(func(p *packet) { p.seq = 2 }, []byte("another key")), // of another run
		forge(func(p *packet) { p.from = 2 }, key),                  // of a host that is no peer
		forge(func(p *packet) { p.to = 1 }, key),                    // for somebody else: our own, reflected
		forge(func(p *packet) { p.kind = 9 }, key),
		forge(func(p *packet) { p.kind = kindEchoReply }, key), // to nothing that was asked
		forge(func(p *packet) { p.kind = kindSizeAck }, key),
	} {
		write(b)
	}
	write(signed)
	write(signed) // again
	// Answers come in the order of requests: the first one is that to the good request.
	buf := make([]byte, 2000)
	stranger.SetReadDeadline(time.Now().Add(30 * time.Second)) //nolint:errcheck // c is open
	n, _, err := stranger.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := parsePacket(buf[:n], 1, func(uint16) *pairKey { return newPairKey(key) })
	if err != nil || answer.kind != kindEchoReply || answer.seq != 1 || answer.count != 1 || answer.seen != netip.MustParseAddr("127.78.0.2") {
		t.Errorf("answer %+v, %v", answer, err)
	}
	if n != packetLen {
		t.Errorf("%d bytes are answered with %d: answers amplify", packetLen, n)
	}
	// The doubled one has been looked at when a later one is answered.
	write(forge(func(p *packet) { p.seq = 3 }, key))
	if n, _, err = stranger.ReadFromUDPAddrPort(buf); err != nil {
		t.Fatal(err)
	}
	if answer, _ = parsePacket(buf[:n], 1, func(uint16) *pairKey { return newPairKey(key) }); answer.seq != 3 || answer.count != 2 {
		t.Errorf("answer %+v: a repeated request was answered or counted", answer)
	}
	if got := g.ask(request{Count: &countJob{Peer: 1, Run: 7}}).Count; got.Received != 2 {
		t.Errorf("%d datagrams were counted, want 2", got.Received)
	}
}

func TestForgedAnswersDoNotCount(t *testing.T) {
	peer, other := mustListenUDP(t, "127.78.1.2:0")
	g, key := newRig(t, netip.MustParseAddrPort("127.78.1.1:0"), other)
	g.send(request{Echo: &echoJob{Peer: 1, Run: 9, Probes: 4, Interval: int64(time.Millisecond), Linger: int64(500 * time.Millisecond)}})
	buf := make([]byte, 2000)
	for range 4 {
		n, from, err := peer.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatal(err)
		}
		p, err := parsePacket(buf[:n], 1, func(uint16) *pairKey { return newPairKey(key) })
		if err != nil {
			t.Fatal(err)
		}
		back := packet{kind: kindEchoReply, from: 1, to: 0, run: p.run, seq: p.seq, count: p.seq + 1, asked: p.asked, arrived: p.asked, answered: p.asked}
		switch p.seq {
		case 1:
			back.run++ // of another run
		case 2:
			back.seq = 1000 // never asked
		}
		for range 3 { // answers come thrice
			k := newPairKey(key)
			if p.seq == 3 {
				k = newPairKey([]byte("another key"))
			}
			if _, err := peer.WriteToUDPAddrPort(back.append(nil, k), from); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := g.read().Echo
	if got.Sent != 4 || got.Answered != 1 {
		t.Errorf("sent %d, answered %d, want 4 and 1", got.Sent, got.Answered)
	}
	if got.RTTs.Min < 0 || got.RTTs.Max > int64(time.Minute) {
		t.Errorf("round trips %+v", got.RTTs)
	}
}

func TestListenersAnswerOnlyPeers(t *testing.T) {
	const port = 16443
	g, key := newRig(t, netip.MustParseAddrPort("127.78.2.1:0"), netip.MustParseAddrPort("127.78.2.2:1"), port)
	if len(g.ready.Listening) != 1 {
		t.Fatalf("ready %+v", g.ready)
	}
	dial := func() net.Conn {
		c, err := net.Dial("tcp", "127.78.2.1:16443")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(30 * time.Second)) //nolint:errcheck // c is open
		return c
	}
	for name, hello := range map[string]func(c net.Conn) (netip.Addr, error){
		"another key":  func(c net.Conn) (netip.Addr, error) { return sayHello(c, newPairKey([]byte("x")), 1, 0, port) },
		"no peer":      func(c net.Conn) (netip.Addr, error) { return sayHello(c, newPairKey(key), 5, 0, port) },
		"other target": func(c net.Conn) (netip.Addr, error) { return sayHello(c, newPairKey(key), 1, 3, port) },
		"other port":   func(c net.Conn) (netip.Addr, error) { return sayHello(c, newPairKey(key), 1, 0, 1) },
	} {
		if _, err := hello(dial()); !errors.Is(err, io.EOF) && !isReset(err) {
			t.Errorf("%s: %v, want a closed connection", name, err)
		}
	}
	if seen, err := sayHello(dial(), newPairKey(key), 1, 0, port); err != nil || !seen.IsLoopback() {
		t.Errorf("the peer is answered %v, %v", seen, err)
	}
}

func isReset(err error) bool { return err != nil && strings.Contains(err.Error(), "reset") }

func TestConnectKnowsWhoAnswers(t *testing.T) {
	impostor, err := net.Listen("tcp", "127.78.3.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer impostor.Close()
	go func() { // ends with impostor
		for {
			c, err := impostor.Accept()
			if err != nil {
				return
			}
			c.Write(bytes.Repeat([]byte("SSH-2.0-x\r\n"), 10)) //nolint:errcheck // the other may have gone
			c.Close()
		}
	}()
	port := impostor.Addr().(*net.TCPAddr).AddrPort().Port()
	closed, err := net.Listen("tcp", "127.78.3.2:0")
	if err != nil {
		t.Fatal(err)
	}
	shut := closed.Addr().(*net.TCPAddr).AddrPort().Port()
	closed.Close()
	g, _ := newRig(t, netip.MustParseAddrPort("127.78.3.1:0"), netip.MustParseAddrPort("127.78.3.2:1"))
	wait := int64(20 * time.Second)
	got := g.ask(request{Connect: &connectJob{Peer: 1, Ports: []uint16{port, shut}, Hello: []uint16{port}, Wait: wait}}).Ports
	if len(got) != 2 || got[0].State != PortForeign || got[1].State != PortRefused {
		t.Errorf("got %+v, want foreign and refused", got)
	}
	// Of a service no more than the connection is asked.
	if got := g.ask(request{Connect: &connectJob{Peer: 1, Ports: []uint16{port}, Wait: wait}}).Ports; got[0].State != PortOpen {
		t.Errorf("got %+v, want open", got)
	}
}

func TestAgentLeavesPortsInUseAlone(t *testing.T) {
	l, err := net.Listen("tcp", "127.78.4.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	g, _ := newRig(t, netip.MustParseAddrPort("127.78.4.1:0"), netip.MustParseAddrPort("127.78.4.2:1"), port)
	if len(g.ready.Busy) != 1 || g.ready.Busy[0] != port || len(g.ready.Listening) != 0 {
		t.Errorf("ready %+v, want port %d busy", g.ready, port)
	}
}

func TestAgentRefusesNonsense(t *testing.T) {
	for name, line := range map[string]string{
		"no JSON":         "hello\n",
		"another version": `{"v":2,"id":1}` + "\n",
		"oversized":       `{"v":1,"id":1,"x":"` + strings.Repeat("x", maxLine) + `"}` + "\n",
	} {
		if err := Serve(t.Context(), strings.NewReader(line), io.Discard); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for name, r := range map[string]request{
		"nothing":       {},
		"before setup":  {Echo: &echoJob{}},
		"no address":    {Setup: &setup{}},
		"foreign":       {Setup: &setup{Addr: netip.MustParseAddr("192.0.2.77")}},
		"too many":      {Setup: &setup{Addr: netip.MustParseAddr("127.0.0.1"), Ports: make([]uint16, maxPorts+1)}},
		"unknown peer":  {Size: &sizeJob{Peer: 4}},
		"count of none": {Count: &countJob{}},
	} {
		r.Version = protocolVersion
		line, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		in, w := io.Pipe()
		done := make(chan error, 1)
		go func() { done <- Serve(t.Context(), in, &out) }() // ends with w
		w.Write(append(line, '\n'))                          //nolint:errcheck // a pipe
		w.Close()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !strings.Contains(out.String(), `"error":"`) {
			t.Errorf("%s: answered %s", name, out.String())
		}
	}
}

func TestAgentEndsWithItsInput(t *testing.T) {
	g, _ := newRig(t, netip.MustParseAddrPort("127.78.5.1:0"), netip.MustParseAddrPort("127.78.5.2:9"), 16444)
	g.send(request{Echo: &echoJob{Peer: 1, Run: 1, Probes: maxProbes, Interval: int64(time.Second)}}) // hours
	hang, err := net.Dial("tcp", "127.78.5.1:16444")
	if err != nil {
		t.Fatal(err)
	}
	defer hang.Close()
	go func() { _, _ = io.Copy(io.Discard, g.out) }() // ends with the agent
	g.in.Close()
	select {
	case err := <-g.done:
		g.done <- err
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the agent goes on")
	}
	if _, err := net.Dial("tcp", "127.78.5.1:16444"); err == nil {
		t.Error("its port is still open")
	}
}

// TestHostileAgentsCannotStallTheOthers has one agent of four misbehave.
func TestHostileAgentsCannotStallTheOthers(t *testing.T) {
	answer := func(change func(r request, line map[string]any)) func(context.Context, io.Reader, io.Writer) error {
		return func(ctx context.Context, in io.Reader, out io.Writer) error {
			return readLines(in, func(b []byte) error {
				r, err := parseRequest(b)
				if err != nil {
					return err
				}
				line := map[string]any{"v": 1, "id": r.ID}
				if r.Setup != nil {
					line["ready"] = map[string]any{"probePort": 9, "listening": r.Setup.Ports}
				}
				change(r, line)
				text, err := json.Marshal(line)
				if err != nil {
					return err
				}
				_, err = out.Write(append(text, '\n'))
				return err
			})
		}
	}
	for name, agent := range map[string]func(context.Context, io.Reader, io.Writer) error{
		"says nothing": func(ctx context.Context, _ io.Reader, _ io.Writer) error { <-ctx.Done(); return ctx.Err() },
		"ends at once": func(context.Context, io.Reader, io.Writer) error { return errors.New("exec format error") },
		"talks for ever": func(ctx context.Context, _ io.Reader, out io.Writer) error {
			for ctx.Err() == nil {
				if _, err := fmt.Fprintln(out, `{"v":1,"id":999999}`); err != nil {
					return err
				}
			}
			return ctx.Err()
		},
		"oversized line": func(ctx context.Context, _ io.Reader, out io.Writer) error {
			out.Write(bytes.Repeat([]byte("x"), maxLine+1)) //nolint:errcheck // the reader may have gone
			out.Write([]byte("\n"))                         //nolint:errcheck // the reader may have gone
			<-ctx.Done()
			return ctx.Err()
		},
		"garbage": func(ctx context.Context, _ io.Reader, out io.Writer) error {
			fmt.Fprintln(out, "Welcome to Linux")
			<-ctx.Done()
			return ctx.Err()
		},
		"much noise": func(ctx context.Context, _ io.Reader, out io.Writer) error {
			for ctx.Err() == nil {
				if _, err := fmt.Fprintln(out, "noise"); err != nil {
					return err
				}
			}
			return ctx.Err()
		},
		"empty answers": answer(func(request, map[string]any) {}),
		"wrong version": answer(func(_ request, l map[string]any) { l["v"] = 2 }),
		"other id":      answer(func(_ request, l map[string]any) { l["id"] = 12345 }),
		"no port":       answer(func(_ request, l map[string]any) { delete(l, "ready"); l["ready"] = map[string]any{} }),
		"absurd numbers": answer(func(r request, l map[string]any) {
			l["echo"] = map[string]any{"sent": 1 << 40, "answered": -3, "rtt": map[string]any{"min": -1, "p50": 1 << 60}}
			l["count"] = map[string]any{"received": 1 << 40}
			l["size"] = map[string]any{"mtu": -1, "assumed": 1 << 40}
			l["ports"] = []any{map[string]any{"port": 1, "state": "wonderful"}}
		}),
		"command for a person": answer(func(r request, l map[string]any) {
			if r.Setup != nil {
				l["ready"] = map[string]any{"probePort": 9, "duplicates": []string{"$(reboot)"}}
			}
		}),
		"many ports": answer(func(r request, l map[string]any) { l["ports"] = make([]map[string]any, 5000) }),
		"long error": answer(func(r request, l map[string]any) { l["error"] = strings.Repeat("\x1b]0;x", 1000) }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inv, hosts := loopback(4, 3)
			octet := byte(100 + len(name)) // so that runs beside each other do not meet
			for i := range inv.Hosts {
				inv.Hosts[i].NodeIP = netip.AddrFrom4([4]byte{127, octet, name[0], byte(i + 1)})
			}
			hosts["h03"] = &testHost{name: "h03", facts: cleanFacts(&inv.Hosts[3]), agent: agent}
			o := testOptions(t)
			o.Timeout = 3 * time.Second
			o.Linger = time.Second
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			r, err := Run(ctx, inv, hosts, o)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Pairs) != 12 {
				t.Fatalf("%d pairs, want 12", len(r.Pairs))
			}
			for _, p := range r.Pairs {
				bad := p.From == "h03" || p.To == "h03"
				if !bad && (p.Error != "" || p.Answered == 0) {
					t.Errorf("%s to %s: %+v", p.From, p.To, p)
				}
				if bad && (p.RTT != nil || p.MTU != 0) {
					t.Errorf("%s to %s: believed %+v", p.From, p.To, p)
				}
			}
			faults := Faults(&r, inv)
			if len(faults) == 0 {
				t.Error("no fault names the host")
			}
			for _, f := range faults {
				if strings.ContainsAny(f.Text+f.Cure, "\x1b\n") {
					t.Errorf("%q, %q", f.Text, f.Cure)
				}
			}
			if text := mustJSON(t, r); len(text) > 100_000 || strings.Contains(text, "\x1b") {
				t.Errorf("report of %d bytes", len(text))
			}
		})
	}
}

func TestWarningsBesideRepliesAreBorne(t *testing.T) {
	inv, hosts := loopback(2, 1)
	for i := range inv.Hosts {
		inv.Hosts[i].NodeIP = netip.AddrFrom4([4]byte{127, 83, 0, byte(i + 1)})
	}
	hosts["h01"].(*testHost).agent = func(ctx context.Context, in io.Reader, out io.Writer) error {
		if _, err := fmt.Fprintln(out, "sudo: unable to resolve host h01"); err != nil {
			return err
		}
		return Serve(ctx, in, out)
	}
	if r := mustRunAll(t, inv, hosts, testOptions(t)); r.Pair("h00", "h01").Answered == 0 {
		t.Errorf("report %s", mustJSON(t, r))
	}
	hosts["h01"].(*testHost).agent = func(_ context.Context, _ io.Reader, out io.Writer) error {
		if _, err := fmt.Fprintln(out, "sh: kubeinit: cannot execute binary file"); err != nil {
			return err
		}
		return errors.New("exit status 126")
	}
	r := mustRunAll(t, inv, hosts, testOptions(t))
	if got := r.Host("h01").AgentError; !strings.Contains(got, "exit status 126") || !strings.Contains(got, "cannot execute") {
		t.Errorf("error %q", got)
	}
}

// TestSessionGivesUpOnAnAgentThatDoesNotRead does so in virtual time.
func TestSessionGivesUpOnAnAgentThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &testHost{name: "deaf", agent: func(ctx context.Context, _ io.Reader, _ io.Writer) error { <-ctx.Done(); return ctx.Err() }}
		var work sync.WaitGroup
		s := startSession(t.Context(), h, agentCommand, &work)
		var calls sync.WaitGroup
		for range 5 * maxRunning {
			calls.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				if _, err := s.call(ctx, request{Count: &countJob{}}); !errors.Is(err, errSilent) {
					t.Errorf("got %v, want %v", err, errSilent)
				}
			})
		}
		calls.Wait()
		s.end()
		work.Wait()
		if _, err := s.call(t.Context(), request{}); err == nil {
			t.Error("a call after the end succeeds")
		}
	})
}

// TestAgentThatEndsDuringSetupEnds has input end while sockets are being opened.
func TestAgentThatEndsDuringSetupEnds(t *testing.T) {
	line, err := json.Marshal(request{Version: protocolVersion, ID: 1, Setup: &setup{
		Addr: netip.MustParseAddr("127.78.6.1"), Ports: []uint16{16445, 16446}, FsyncDir: t.TempDir(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if err := Serve(t.Context(), bytes.NewReader(append(line, '\n')), io.Discard); err != nil {
			t.Fatal(err)
		}
	}
	for _, port := range []string{"16445", "16446"} {
		if _, err := net.Dial("tcp", "127.78.6.1:"+port); err == nil {
			t.Errorf("port %s is still open", port)
		}
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	inv, hosts := loopback(3, 3)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for i, h := range inv.Hosts {
		inv.Hosts[i].NodeIP = netip.AddrFrom4([4]byte{127, 79, 0, byte(i + 1)})
		hosts[h.Name].(*testHost).agent = func(ctx context.Context, in io.Reader, out io.Writer) error {
			cancel()
			return Serve(ctx, in, out)
		}
	}
	if _, err := Run(ctx, inv, hosts, testOptions(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

func TestHostWithoutConnectionIsInTheReport(t *testing.T) {
	inv, hosts := loopback(3, 1)
	for i := range inv.Hosts {
		inv.Hosts[i].NodeIP = netip.AddrFrom4([4]byte{127, 80, 0, byte(i + 1)})
	}
	delete(hosts, "h01")
	r := mustRunAll(t, inv, hosts, testOptions(t))
	if r.Host("h01").Error != "no connection" || r.Pair("h00", "h02").Answered == 0 {
		t.Errorf("report %s", mustJSON(t, r))
	}
	if p := r.Pair("h00", "h01"); p == nil || p.Error != "no agent runs on h01" {
		t.Errorf("pair %+v", p)
	}
}

func FuzzParsePacket(f *testing.F) {
	key := newPairKey([]byte("key"))
	f.Add((&packet{kind: kindEcho, from: 1, to: 2, run: 3, seq: 4}).append(nil, key))
	f.Add((&packet{kind: kindSizeAck, ttl: 60, from: 1, to: 2, size: 1500, run: 3, seq: 4, count: 9, asked: -1, arrived: 1 << 62, answered: 5,
		seen: netip.MustParseAddr("192.0.2.1")}).append(nil, key))
	f.Add((&packet{kind: kindSize, from: 1, to: 2, padding: 50}).append(nil, key))
	f.Add([]byte("kip1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		// Sign what is there, so that more than the first check is tried.
		if len(b) >= packetLen {
			b = bytes.Clone(b)
			binary.BigEndian.PutUint16(b[8:], 2)
			tag := key.tag(b[:macOffset], b[packetLen:])
			copy(b[macOffset:], tag[:])
		}
		p, err := parsePacket(b, 2, func(uint16) *pairKey { return key })
		if err != nil {
			return
		}
		again, err := parsePacket(p.append(nil, key), 2, func(uint16) *pairKey { return key })
		if err != nil || again != p {
			t.Errorf("%+v becomes %+v, %v", p, again, err)
		}
	})
}

func FuzzParseReply(f *testing.F) {
	f.Add([]byte(`{"v":1,"id":1,"ready":{"probePort":7443,"listening":[6443]}}`))
	f.Add([]byte(`{"v":1,"id":2,"echo":{"sent":200,"answered":200,"rtt":{"min":1,"p50":2,"p90":3,"p99":4,"max":5},"seenAs":"192.0.2.1"}}`))
	f.Add([]byte(`{"v":1,"id":3,"size":{"mtu":1420,"assumed":1420,"link":1500},"count":{"received":9},"ports":[{"port":1,"state":"open"}]}`))
	f.Add([]byte(`{"v":1,"id":4,"error":"x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseReply(b)
		if err != nil {
			return
		}
		if r.Echo != nil && r.Echo.check(200) == nil && (r.Echo.Answered > 200 || r.Echo.RTTs.P50 > r.Echo.RTTs.Max) {
			t.Errorf("accepted %+v", r.Echo)
		}
		if r.Count != nil && r.Count.check(200) == nil && r.Count.Received > 200 {
			t.Errorf("accepted %+v", r.Count)
		}
		if r.Size != nil && r.Size.check() == nil && r.Size.MTU > 1<<17 {
			t.Errorf("accepted %+v", r.Size)
		}
		if r.Ready != nil && r.Ready.check() == nil && len(r.Ready.Listening) > maxPorts {
			t.Errorf("accepted %+v", r.Ready)
		}
	})
}

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(`{"v":1,"id":1,"setup":{"self":1,"addr":"10.0.0.1","probePort":7443,"ports":[6443]}}`))
	f.Add([]byte(`{"v":1,"id":2,"peers":{"peers":[{"index":1,"addr":"fd00::1","probePort":1,"key":"AAAA"}]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := parseRequest(b); err == nil && r.Version != protocolVersion {
			t.Errorf("accepted %+v", r)
		}
	})
}

var _ host.Host = (*testHost)(nil)
