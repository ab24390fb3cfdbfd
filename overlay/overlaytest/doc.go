// Package overlaytest lets many meshes run in one process over an in-memory
// packet network: without sockets, and in virtual time inside a
// testing/synctest bubble.
//
// # One mesh
//
// A mesh takes part by its configuration:
//
//	network := overlaytest.NewNetwork(overlaytest.Options{Link: overlaytest.Link{Delay: 20 * time.Millisecond}})
//	host := network.Host(netip.MustParseAddr("198.51.100.1"))
//	mesh, err := overlay.Open(ctx, overlay.Config{
//		Store:        store,
//		Device:       overlay.DeviceNone,
//		ListenPacket: host.ListenPacket,
//		LocalAddrs:   host.Addrs,
//	})
//
// # A world of them
//
// [World] founds a mesh of any number of gateways, starts, stops, crashes and
// restarts them, cuts the network between them, sets their clocks wrong, and
// checks all the time that none of them believes or does what it must not:
//
//	synctest.Test(t, func(t *testing.T) {
//		w := overlaytest.NewWorld(t, overlaytest.WorldOptions{Gateways: 30})
//		defer w.Close()
//		w.StartAll()
//		w.MustConverge(time.Minute)
//		w.Partition([]int{0, 1, 2})
//		time.Sleep(10 * time.Minute) // virtual
//		w.Heal()
//		w.MustConverge(time.Minute)
//	})
//
// # What a seed decides
//
// All choices of the network and of the world come from their seeds. What the
// Go runtime chooses by itself (which case of a select, the order of a map,
// which goroutine runs next) does not; for runs that repeat to the last packet
// see `make sim`.
package overlaytest
