package wgdev

import (
	"errors"
	"reflect"
	"runtime"

	"golang.zx2c4.com/wireguard/device"
)

// disarm makes a peer of wireguard-go usable in a testing/synctest bubble.
//
// wireguard-go gives two queues of each peer a finalizer, which empties their
// channels. The channels belong to the bubble and finalizers do not, so that a
// garbage collection ends the process once a peer is unreachable: after it was
// removed, after its device was closed, and also after the end of the bubble.
// To keep all peers reachable would take until the end of the process, so the
// finalizers are taken away. They only give buffers back to pools, and what
// they would give back is collected with the queue.
func disarm(p *device.Peer) error {
	queue := reflect.ValueOf(p).Elem().FieldByName("queue")
	if queue.Kind() != reflect.Struct {
		return errNoQueue
	}
	for _, name := range []string{"inbound", "outbound"} {
		q := queue.FieldByName(name)
		if q.Kind() != reflect.Pointer || q.IsNil() {
			return errNoQueue
		}
		runtime.SetFinalizer(reflect.NewAt(q.Type().Elem(), q.UnsafePointer()).Interface(), nil)
	}
	return nil
}

var errNoQueue = errors.New("queues of wireguard-go's peers are not where they were: see disarm")
