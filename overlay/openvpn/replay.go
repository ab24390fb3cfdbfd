package openvpn

import "slices"

// replayWindow is the replay state of one sender: the newest time and id, and
// which of the ids just below were seen. Its zero value has seen nothing.
//
//	id 0                        refused
//	newer time                  accepted, the window starts again
//	older time                  refused
//	same time, newer id         accepted, whatever the jump
//	same time, 0–63 behind      accepted once
//	same time, 64 or more       refused
//
// The width is that of real peers (measured: 63 behind passes, 64 does not).
type replayWindow struct {
	time uint32
	max  uint32
	seen uint64 // bit d: id max-d was seen
}

const replayWidth = 64

// accept reports whether the packet is new, and remembers it. Call it only for
// packets that are authentic.
func (w *replayWindow) accept(t, id uint32) bool {
	switch {
	case id == 0:
		return false
	case t > w.time || w.max == 0:
		*w = replayWindow{time: t, max: id, seen: 1}
		return true
	case t < w.time:
		return false
	case id > w.max:
		if shift := id - w.max; shift < replayWidth {
			w.seen = w.seen<<shift | 1
		} else {
			w.seen = 1
		}
		w.max = id
		return true
	}
	behind := w.max - id
	if behind >= replayWidth || w.seen>>behind&1 == 1 {
		return false
	}
	w.seen |= 1 << behind
	return true
}

// replayGuard is a replayWindow that outlives restarts of the connection. Real
// peers forget everything at a restart, so that a sender whose clock was set
// back is heard again, and so are recorded packets. The guard keeps the windows
// of former times: after relax an older time is accepted once more, but no id
// that it had before.
type replayGuard struct {
	replayWindow
	former  []replayWindow // windows of other times, oldest first
	relaxed bool
}

// maxFormer bounds the memory of a guard. Only a holder of the key can make it
// forget, by sending that many times.
const maxFormer = 32

// relax lets the next authentic packet carry any time. It is called when the
// peer was silent for the whole of the restart timeout.
func (g *replayGuard) relax() { g.relaxed = true }

// accept is replayWindow.accept with the memory of former times.
func (g *replayGuard) accept(t, id uint32) bool {
	if t == g.time || g.max == 0 || id == 0 {
		ok := g.replayWindow.accept(t, id)
		g.relaxed = g.relaxed && !ok
		return ok
	}
	if t < g.time && !g.relaxed {
		return false
	}
	next := replayWindow{}
	at := slices.IndexFunc(g.former, func(w replayWindow) bool { return w.time == t })
	if at >= 0 {
		next = g.former[at]
	}
	if !next.accept(t, id) {
		return false
	}
	if at >= 0 {
		g.former = slices.Delete(g.former, at, at+1)
	}
	if len(g.former) == maxFormer {
		g.former = slices.Delete(g.former, 0, 1)
	}
	g.former = append(g.former, g.replayWindow)
	g.replayWindow, g.relaxed = next, false
	return true
}
