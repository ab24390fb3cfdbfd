package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/meshd/internal/attach"
	"github.com/planetmesh/planetmesh/meshd/internal/conf"
	"github.com/planetmesh/planetmesh/meshd/internal/ctl"
	"github.com/planetmesh/planetmesh/meshd/internal/routeset"
	"github.com/planetmesh/planetmesh/overlay"
)

func TestEveryKnownErrorHasACure(t *testing.T) {
	p := &places{config: "m.yaml", state: "s", run: "r", dir: "/srv/s"}
	prefix := netip.MustParsePrefix("10.0.0.0/8")
	for _, tt := range []struct {
		err  error
		want string // in the hint
	}{
		{conf.Faults{{File: "m.yaml", Problem: "wrong"}}, "meshd check m.yaml"},
		{&overlay.GrantError{Prefix: prefix}, "take 10.0.0.0/8 out of"},
		{&attach.Error{Name: "r30", Err: &overlay.GrantError{Prefix: prefix}}, "take 10.0.0.0/8 out of the prefixes of r30"},
		{&routeset.Error{Name: "pods", Err: &overlay.GrantError{Prefix: prefix}}, "take 10.0.0.0/8 out of route set pods, or have it granted: meshd ticket --gateway NAME --prefix 10.0.0.0/8"},
		{&routeset.Error{Name: "pods", Err: errors.New("x")}, "nothing was changed"},
		{&routeset.Fault{Name: "pods"}, "meshd routeset --help"},
		{routeset.ErrUnknown, "meshd routeset list"},
		{&attach.Error{Name: "r30", Err: syscall.EADDRINUSE}, "\"listen:\" of r30"},
		{&attach.Error{Name: "r30", Err: syscall.EADDRNOTAVAIL}, "\"listen:\" of r30"},
		{&attach.Error{Name: "r30", Err: os.ErrExist}, "\"device:\" of r30"},
		{&attach.Error{Name: "r30", Err: errors.ErrUnsupported}, "device: netstack"},
		{&overlay.OverlapError{Prefix: prefix, Other: prefix, Site: "20"}, "ask site 20 to give 10.0.0.0/8 up"},
		{ctl.ErrNotRunning, "meshd run --config m.yaml --state s --run r"},
		{ctl.ErrInUse, "meshd status --run r"},
		{ctl.ErrExposed, "chmod 700 r"},
		{overlay.ErrNoState, "meshd join --config m.yaml --state s TICKET joins one"},
		{overlay.ErrStateExists, "meshd run --config m.yaml --state s"},
		{overlay.ErrStateInUse, "another --state DIR"},
		{overlay.ErrStateExposed, "chmod 600 /srv/s/*.key"},
		{overlay.ErrStateCorrupt, "restore /srv/s"},
		{&fs.PathError{Op: "open", Path: "/srv/s/link.key", Err: syscall.ENOENT}, "restore /srv/s"},
		{&fs.PathError{Op: "open", Path: "/srv/s/link.key", Err: syscall.EACCES}, "owner of /srv/s"},
		{&fs.PathError{Op: "write", Path: "/srv/s/.records.1", Err: syscall.ENOSPC}, "df -h /srv/s"},
		{&fs.PathError{Op: "write", Path: "/srv/s/.records.1", Err: syscall.EDQUOT}, "df -h /srv/s"},
		{syscall.EROFS, "can be written to"},
		{overlay.ErrTicketExpired, "new ticket"},
		{overlay.ErrTicketUsed, "new ticket"},
		{overlay.ErrTicketRefused, "new ticket"},
		{overlay.ErrNotIssuer, "where meshd init was run"},
		{overlay.ErrUnknownGateway, "meshd status lists"},
		{overlay.ErrNoPath, "meshd status there"},
		{&net.OpError{Op: "listen", Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}, "ss -lunp"},
		{os.ErrExist, "ip link"},
		{syscall.EBUSY, "ip link"},
		{os.ErrPermission, "root"},
		{errors.ErrUnsupported, "device: netstack"},
	} {
		got := cure(fmt.Errorf("do it: %w", tt.err), p)
		if os.Geteuid() == 0 && errors.Is(tt.err, os.ErrPermission) && tt.want == "root" {
			tt.want = "CAP_NET_ADMIN"
		}
		if !strings.Contains(got, tt.want) {
			t.Errorf("cure of %v is %q, want %q in it", tt.err, got, tt.want)
		}
	}
}

func TestExplainLeavesAloneWhatNeedsNoCure(t *testing.T) {
	p := new(places)
	if err := explain(nil, p); err != nil {
		t.Errorf("no error became %v", err)
	}
	if err := explain(context.Canceled, p); !errors.Is(err, context.Canceled) {
		t.Errorf("interruption became %v", err)
	}
	if got := cure(errors.New("something"), p); got != "" {
		t.Errorf("unknown error has the cure %q", got)
	}
	remote := explain(&ctl.Error{Message: "m", Hint: "from there"}, p)
	hinted, ok := errors.AsType[*cli.Error](remote)
	if !ok || hinted.Hint != "from there" {
		t.Errorf("error of the daemon became %#v, want its own hint", remote)
	}
}
