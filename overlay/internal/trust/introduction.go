package trust

import (
	"fmt"

	"github.com/planetmesh/planetmesh/overlay/internal/wire"
)

// Introduction is what each side of a new connection says of itself.
type Introduction struct {
	Record      []byte   // record object of the sender
	Boot        BootID   // of the sender's start; never zero
	Epochs      [][]byte // epoch objects
	Revocations [][]byte // revocation objects
}

// Encode returns the introduction object, or ErrFormat if it would be larger
// than 16 KiB.
func (in Introduction) Encode() ([]byte, error) {
	var w wire.Writer
	w.Field(1, in.Record)
	w.Field(2, in.Boot[:])
	w.Field(3, concat(in.Epochs))
	w.Field(4, concat(in.Revocations))
	return encode(wire.Introduction, MeshID{}, &w)
}

// DecodeIntroduction reads an introduction object. The objects in it are not
// verified.
func DecodeIntroduction(raw []byte) (*Introduction, error) {
	o, err := wire.Decode(wire.Introduction, raw)
	if err != nil {
		return nil, err
	}
	in := new(Introduction)
	r := wire.NewReader(o.Body)
	in.Record = append([]byte(nil), r.Required(1)...)
	r.RequiredFixed(2, in.Boot[:])
	if in.Boot == (BootID{}) {
		r.Fail(fmt.Errorf("%w: boot id is zero", ErrFormat))
	}
	in.Epochs, err = wire.SplitList(wire.Epoch, r.Field(3))
	r.Fail(err)
	in.Revocations, err = wire.SplitList(wire.Revocation, r.Field(4))
	r.Fail(err)
	if err := r.Close(); err != nil {
		return nil, wrap("introduction", err)
	}
	return in, nil
}
