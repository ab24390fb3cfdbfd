package overlay

import (
	"context"
	"sync"
	"time"
)

// watchBuffer is how many events a slow watcher may lag behind before it
// loses some: about what a restart of a mesh of 200 gateways makes.
const watchBuffer = 256

// watchers hands events to everybody who watches. A watcher that does not
// keep up loses events; nothing waits for it.
type watchers struct {
	now func() time.Time

	mu     sync.Mutex // guards all below
	next   int
	chans  map[int]chan Event
	closed bool
	lost   uint64
}

// emit gives e to all watchers, with the time if it has none.
func (w *watchers) emit(e Event) {
	if e.Time.IsZero() {
		e.Time = w.now()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.chans {
		select {
		case c <- e:
		default:
			w.lost++
		}
	}
}

// watch returns a channel that is closed when ctx or the mesh ends.
func (w *watchers) watch(ctx context.Context) <-chan Event {
	c := make(chan Event, watchBuffer)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		close(c)
		return c
	}
	id := w.next
	w.next++
	if w.chans == nil {
		w.chans = make(map[int]chan Event)
	}
	w.chans[id] = c
	context.AfterFunc(ctx, func() { w.drop(id) })
	return c
}

func (w *watchers) drop(id int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c, ok := w.chans[id]; ok {
		delete(w.chans, id)
		close(c)
	}
}

// close ends all watching.
func (w *watchers) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for id, c := range w.chans {
		delete(w.chans, id)
		close(c)
	}
}

// lostEvents returns how many events slow watchers have lost.
func (w *watchers) lostEvents() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost
}
