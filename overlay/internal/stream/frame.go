package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

var errFrame = errors.New("message has a forbidden length")

// readMessage reads one message of docs/protocol.md, section 4:
//
//	0          4
//	+----------+---------
//	|  length  | bytes …
//	+----------+---------
//
// Empty messages and such above limit are refused before anything is allocated for them.
func readMessage(r io.Reader, limit int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || uint64(n) > uint64(limit) {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", errFrame, n, limit)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	return b, nil
}

// appendMessage appends a message with its length.
func appendMessage(dst, b []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(b)))
	return append(dst, b...)
}
