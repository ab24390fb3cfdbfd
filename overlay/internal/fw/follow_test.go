//go:build linux

package fw

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

func TestKernelErrorsSayWhatIsMissing(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want error
	}{
		{syscall.EOPNOTSUPP, errors.ErrUnsupported}, // nfnetlink without nf_tables, changing
		{syscall.EINVAL, errors.ErrUnsupported},     // the same, listing
		{syscall.EPROTONOSUPPORT, errors.ErrUnsupported},
		{syscall.EAFNOSUPPORT, errors.ErrUnsupported},
		{syscall.ENOENT, errors.ErrUnsupported}, // an expression that the kernel was built without
		{syscall.EPERM, os.ErrPermission},
		{syscall.ENOBUFS, syscall.ENOBUFS},
	} {
		if got := kernelError(fmt.Errorf("conn.Receive: %w", tt.err)); !errors.Is(got, tt.want) || !errors.Is(got, tt.err) {
			t.Errorf("kernelError(%v) = %v, want one that matches %v", tt.err, got, tt.want)
		}
	}
}

// verdictBytes is what the kernel sends for an element of a verdict map.
func verdictBytes(kind expr.VerdictKind, chain string) []byte {
	b := binary.NativeEndian.AppendUint16(nil, 8)
	b = binary.NativeEndian.AppendUint16(b, unix.NFTA_VERDICT_CODE)
	b = binary.BigEndian.AppendUint32(b, uint32(int32(kind)))
	if chain != "" {
		b = binary.NativeEndian.AppendUint16(b, uint16(4+len(chain)+1))
		b = binary.NativeEndian.AppendUint16(b, unix.NFTA_VERDICT_CHAIN)
		b = append(b, chain...)
		b = append(b, 0)
	}
	return b
}

func TestVerdictOfAMapIsRead(t *testing.T) {
	for _, want := range []expr.Verdict{
		{Kind: expr.VerdictAccept}, {Kind: expr.VerdictDrop}, {Kind: expr.VerdictJump, Chain: "mesh"}, {Kind: expr.VerdictGoto, Chain: "x"},
	} {
		got, ok := decodeVerdict(verdictBytes(want.Kind, want.Chain))
		if diff := cmp.Diff(want, got); !ok || diff != "" {
			t.Errorf("verdict (-want +got):\n%s", diff)
		}
	}
	for _, bad := range [][]byte{nil, {1, 2, 3}, {0, 0, 1, 0}, {255, 255, 1, 0, 0, 0, 0, 0}, {5, 0, 1, 0, 9}} {
		if v, ok := decodeVerdict(bad); ok {
			t.Errorf("decodeVerdict(%v) = %v", bad, v)
		}
	}
}

func FuzzDecodeVerdict(f *testing.F) {
	f.Add(verdictBytes(expr.VerdictAccept, ""))
	f.Add(verdictBytes(expr.VerdictJump, "mesh"))
	f.Add([]byte{4, 0, 9, 0, 8, 0, 1, 0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, ok := decodeVerdict(b); ok && len(b) < 8 {
			t.Errorf("decodeVerdict(%v) = %v out of too few bytes", b, v)
		}
	})
}

func TestConntrackMatchIsAboutNewConnections(t *testing.T) {
	state := uint16(xt.ConntrackState)
	for _, tt := range []struct {
		name          string
		flags, invert uint16
		states        uint16
		want          answer
	}{
		{"new", state, 0, conntrackNew, yes},
		{"established", state, 0, 1<<1 | 1<<2, no},
		{"not established", state, state, 1 << 1, yes},
		{"not new", state, state, conntrackNew, no},
		{"new with something else", state | uint16(xt.ConntrackProto), 0, conntrackNew, perhaps},
	} {
		info := xt.ConntrackMtinfoBase{MatchFlags: tt.flags, InvertFlags: tt.invert}
		if got := conntrack(info, tt.states); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
