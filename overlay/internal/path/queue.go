package path

import (
	"bytes"
	"cmp"
	"container/heap"
)

// queue is a heap of things that know their place in it, so that one that
// changes is moved without a search. Its order is total: runs can be repeated.
// The zero value is empty.
type queue[T queued[T]] []T

// queued is what a queue may hold.
type queued[T any] interface {
	// before is a total order.
	before(T) bool
	// place is one more than the index in the queue; 0: in none.
	place() *int
}

// set puts x in, or to where it belongs after it, and nothing else, changed.
func (q *queue[T]) set(x T) {
	if at := *x.place(); at > 0 {
		heap.Fix((*heapOf[T])(q), at-1)
		return
	}
	heap.Push((*heapOf[T])(q), x)
}

// remove takes x out if it is in. x may have changed.
func (q *queue[T]) remove(x T) {
	if at := *x.place(); at > 0 {
		heap.Remove((*heapOf[T])(q), at-1)
	}
}

// first is the next to come; false if there is none.
func (q queue[T]) first() (x T, ok bool) {
	if len(q) == 0 {
		return x, false
	}
	return q[0], true
}

// heapOf is a queue as container/heap wants it.
type heapOf[T queued[T]] []T

func (h heapOf[T]) Len() int           { return len(h) }
func (h heapOf[T]) Less(i, j int) bool { return h[i].before(h[j]) }

func (h heapOf[T]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	*h[i].place(), *h[j].place() = i+1, j+1
}

func (h *heapOf[T]) Push(x any) {
	e := x.(T)
	*h = append(*h, e)
	*e.place() = len(*h)
}

func (h *heapOf[T]) Pop() any {
	n := len(*h) - 1
	e := (*h)[n]
	clear((*h)[n:])
	*h = (*h)[:n]
	*e.place() = 0
	return e
}

// before orders peers by the moment at which they want attention.
func (pe *peer) before(other *peer) bool {
	return cmp.Or(pe.wakes.Compare(other.wakes), bytes.Compare(pe.id[:], other.id[:])) < 0
}

func (pe *peer) place() *int { return &pe.slot }

// before orders unproven addresses: first tries before later ones, better
// sources before others.
func (a *address) before(b *address) bool {
	return cmp.Or(cmp.Compare(a.tries, b.tries), cmp.Compare(a.source, b.source), a.due.Compare(b.due),
		bytes.Compare(a.peer.id[:], b.peer.id[:]), a.addr.Compare(b.addr)) < 0
}

func (a *address) place() *int { return &a.slot }
