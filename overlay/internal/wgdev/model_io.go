package wgdev

import (
	"encoding/binary"
	"errors"
	"net"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// outbox are messages that are sent once the lock is released. Every user of
// the lock has one of its own.
type outbox struct {
	messages []outgoing
	one      [1][]byte
}

type outgoing struct {
	to *modelPeer
	b  []byte
}

// enter begins to use what mu guards; leave ends that and sends the messages.
func (m *model) enter(out *outbox) {
	m.mu.Lock()
	m.out = out
}

func (m *model) leave() {
	out := m.out
	m.out = nil
	m.mu.Unlock()
	for _, msg := range out.messages {
		out.one[0] = msg.b
		if err := m.bind.Send(out.one[:], msg.to.endpoint); err != nil {
			m.log.Debug("wireguard", "text", "cannot send", "err", err)
			continue
		}
		msg.to.tx.Add(uint64(len(msg.b)))
	}
	clear(out.messages)
	out.messages = out.messages[:0]
}

// post leaves a message for leave to send.
func (m *model) post(to *modelPeer, b []byte) {
	m.out.messages = append(m.out.messages, outgoing{to, b})
}

// sessionOf is the session that a data message names, nil if there is none.
func (m *model) sessionOf(b []byte) (*modelPeer, *modelSession) {
	at := m.indices[binary.LittleEndian.Uint32(b[4:])]
	return at.peer, at.session
}

// read sends what the interface has to send, until that is closed.
func (m *model) read() {
	batch := m.tun.BatchSize()
	bufs, sizes := make([][]byte, batch), make([]int, batch)
	for i := range bufs {
		bufs[i] = make([]byte, headerSize+m.mtu, headerSize+m.mtu+sealSize)
	}
	var out outbox
	for {
		n, err := m.tun.Read(bufs, sizes, headerSize)
		m.enter(&out)
		for i, size := range sizes[:n] {
			to := destination(bufs[i][headerSize : headerSize+size])
			if !to.IsValid() {
				continue
			}
			if p := m.allowed.lookup(to); p != nil {
				m.send(p, bufs[i][:headerSize+size])
			}
		}
		m.leave()
		if err != nil && !errors.Is(err, tun.ErrTooManySegments) {
			return
		}
	}
}

// Failures of a receive function, as wireguard-go sees them
// (device/receive.go).
const (
	maxFailures  = 10
	failurePause = time.Second / 3
)

// maxDatagram is the largest that a Bind may hand over: not all are ours.
const maxDatagram = 65535

// receive takes what the bind receives, until that is closed.
func (m *model) receive(from conn.ReceiveFunc) {
	batch := m.bind.BatchSize()
	bufs, sizes, endpoints := make([][]byte, batch), make([]int, batch), make([]conn.Endpoint, batch)
	for i := range bufs {
		bufs[i] = make([]byte, maxDatagram)
	}
	packets := make([][]byte, 0, batch)
	var out outbox
	for failures := 0; ; {
		n, err := from(bufs, sizes, endpoints)
		if err != nil {
			if failures++; errors.Is(err, net.ErrClosed) || failures > maxFailures || !m.pause(failurePause) {
				return
			}
			continue
		}
		failures, packets = 0, packets[:0]
		m.enter(&out)
		for i, size := range sizes[:n] {
			if packet := m.dispatch(bufs[i][:size]); packet != nil {
				packets = append(packets, bufs[i][:headerSize+len(packet)])
			}
		}
		m.leave()
		if len(packets) == 0 {
			continue
		}
		if _, err := m.tun.Write(packets, headerSize); err != nil {
			m.log.Debug("wireguard", "text", "cannot write to the interface", "err", err)
		}
	}
}

// dispatch returns the packet within a message if the host is to get one.
func (m *model) dispatch(b []byte) []byte {
	if len(b) < dataOverhead {
		return nil
	}
	switch binary.LittleEndian.Uint32(b) {
	case typeInitiation:
		m.receiveInitiation(b)
	case typeResponse:
		m.receiveResponse(b)
	case typeData:
		return m.receiveData(b)
	}
	return nil
}

// pause reports false if the device was closed meanwhile.
func (m *model) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-m.closing:
		return false
	}
}

// run looks after the timers of all peers until close.
func (m *model) run() {
	t := time.NewTimer(0)
	defer t.Stop()
	var out outbox
	for {
		m.enter(&out)
		next, some := m.fire()
		m.leave()
		if some {
			t.Reset(next)
		} else {
			t.Stop()
		}
		select {
		case <-t.C:
		case <-m.earlier:
		case <-m.closing:
			return
		}
	}
}

// drain takes the events of the interface, so that it never waits for that.
func (m *model) drain() {
	events := m.tun.Events()
	for {
		select {
		case _, open := <-events:
			if !open {
				return
			}
		case <-m.closing:
			return
		}
	}
}

// watch closes the device when its interface has failed.
func (m *model) watch() {
	select {
	case <-m.tun.failed:
		_ = m.Close() // whoever calls Close gets its error
	case <-m.closing:
	}
}

// latest and start are what sessions needs.

func (m *model) latest() (func(trust.ExchangeKey) (time.Time, bool), error) {
	return func(key trust.ExchangeKey) (time.Time, bool) {
		m.mu.Lock()
		defer m.mu.Unlock()
		p := m.peers[key]
		if p == nil {
			return time.Time{}, false
		}
		return p.lastHandshake(), true
	}, nil
}

func (m *model) start(key trust.ExchangeKey, afresh bool) bool {
	var out outbox
	m.enter(&out)
	defer m.leave()
	p := m.peers[key]
	if p == nil {
		return false
	}
	if afresh {
		m.expire(p)
		m.initiate(p, false)
	} else {
		m.keepalive(p)
	}
	return true
}
