package openvpn

// Device is the inside of an endpoint: a TUN, a network stack, a channel. Its
// packets are whole IPv4 or IPv6 packets without any header before them.
type Device interface {
	// ReadPackets blocks until there is at least one packet for the peer, stores
	// packets in bufs one each, their lengths in sizes, and returns how many. Each
	// buf has the configured MTU and some slack. An error that is not net.ErrClosed
	// ends the endpoint. One goroutine calls it.
	ReadPackets(bufs [][]byte, sizes []int) (int, error)
	// WritePackets takes packets of the peer in. It must not keep them. A packet
	// that the device refuses is the device's to count; an error ends the endpoint.
	// It may be called by several goroutines.
	WritePackets(packets [][]byte) error
	// Close makes a blocked ReadPackets return. The endpoint calls it once.
	Close() error
}

// Batcher is a Device that gives many or large packets at once, as a [TUN] with
// offload does.
type Batcher interface {
	Device
	// Batch returns how many bufs ReadPackets wants, and how many bytes each. It
	// may be more bytes than the MTU; longer packets are dropped all the same.
	Batch() (packets, size int)
}
