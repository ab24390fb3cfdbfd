package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/meshd/internal/attach"
	"github.com/planetmesh/planetmesh/meshd/internal/conf"
	"github.com/planetmesh/planetmesh/meshd/internal/ctl"
	"github.com/planetmesh/planetmesh/meshd/internal/routeset"
	"github.com/planetmesh/planetmesh/overlay"
)

// explain adds to err what to do about it. It is the one place that knows
// cures. p says where things are, as far as the command asked.
func explain(err error, p *places) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	if remote, ok := errors.AsType[*ctl.Error](err); ok {
		return cli.Hint(err, remote.Hint) // the daemon knows better where its things are
	}
	return cli.Hint(err, cure(err, p))
}

// cure is what to type or do about err; empty means that nobody knows.
func cure(err error, p *places) string {
	if faults, ok := errors.AsType[conf.Faults](err); ok {
		return "meshd check " + shellWord(faults[0].File)
	}
	if grant, ok := errors.AsType[*overlay.GrantError](err); ok {
		list := "\"announce\""
		if set, ok := errors.AsType[*routeset.Error](err); ok {
			list = "route set " + set.Name
		}
		if attached, ok := errors.AsType[*attach.Error](err); ok {
			list = "the prefixes of " + attached.Name
		}
		return fmt.Sprintf("take %v out of %s, or have it granted: meshd ticket --gateway NAME --prefix %v on the gateway that made the ticket",
			grant.Prefix, list, grant.Prefix)
	}
	if overlap, ok := errors.AsType[*overlay.OverlapError](err); ok {
		return fmt.Sprintf("renumber the LAN, or ask site %s to give %v up", overlap.Site, overlap.Other)
	}
	for _, c := range []func(error, *places) string{attachmentCure, routeSetCure, socketCure, stateCure, ticketCure, hostCure} {
		if hint := c(err, p); hint != "" {
			return hint
		}
	}
	return ""
}

// attachmentCure is about the interface and the socket of an attachment.
func attachmentCure(err error, _ *places) string {
	attached, ok := errors.AsType[*attach.Error](err)
	switch {
	case !ok:
	case errors.Is(err, syscall.EADDRINUSE):
		return "ss -lunpt shows who has the port; \"listen:\" of " + attached.Name + " names another one"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return "ip address shows what this host has; \"listen:\" of " + attached.Name + " names the address, \":PORT\" means every one"
	case errors.Is(err, fs.ErrExist):
		return "ip link shows who has the interface; \"device:\" of " + attached.Name + " names another one"
	}
	return ""
}

// routeSetCure is about route sets.
func routeSetCure(err error, _ *places) string {
	_, fault := errors.AsType[*routeset.Fault](err)
	_, misfit := errors.AsType[*routeset.Error](err)
	switch {
	case fault:
		return "meshd routeset --help shows what a set looks like"
	case misfit:
		return "nothing was changed; meshd routeset list shows the sets that there are, ip route what this host has"
	case errors.Is(err, routeset.ErrUnknown):
		return "meshd routeset list"
	}
	return ""
}

// socketCure is about the control socket and its directory.
func socketCure(err error, p *places) string {
	switch {
	case errors.Is(err, ctl.ErrNotRunning):
		return "meshd run" + p.flags() + runFlag(p)
	case errors.Is(err, ctl.ErrInUse):
		return "meshd status" + runFlag(p) + " shows what runs; a second daemon needs --run and --state of its own"
	case errors.Is(err, ctl.ErrExposed):
		return "name a directory of its own, such as --run " + shellWord(filepath.Join(p.run, "meshd")) + ", or: chmod 700 " + shellWord(p.run)
	}
	return ""
}

// stateCure is about the state directory.
func stateCure(err error, p *places) string {
	switch {
	case errors.Is(err, overlay.ErrNoState):
		return "meshd init" + p.flags() + " --mesh NAME --site SITE --prefix CIDR founds a mesh, meshd join" + p.flags() + " TICKET joins one"
	case errors.Is(err, overlay.ErrStateExists):
		return "meshd run" + p.flags() + " starts that gateway; for another one name another --state DIR"
	case errors.Is(err, overlay.ErrStateInUse):
		return "meshd status shows what runs; for another gateway name another --state DIR"
	case errors.Is(err, overlay.ErrStateExposed):
		return "chmod 600 " + shellWord(p.dir) + "/*.key; if somebody else may have read them, move the state away and join again with a new ticket"
	case errors.Is(err, overlay.ErrStateCorrupt), isStateFile(err, p.dir) && errors.Is(err, fs.ErrNotExist):
		return "restore " + shellWord(p.dir) + " from a backup, or move it away and join again with a new ticket"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "df -h " + shellWord(p.dir) + " shows the file system that is full; nothing was changed"
	case errors.Is(err, syscall.EROFS):
		return "name a --state DIR that can be written to"
	case isStateFile(err, p.dir) && errors.Is(err, fs.ErrPermission):
		return "do it as the owner of " + shellWord(p.dir) + ", usually root (sudo)"
	}
	return ""
}

// isStateFile reports whether err is about dir or a file in it.
func isStateFile(err error, dir string) bool {
	e, ok := errors.AsType[*fs.PathError](err)
	return ok && dir != "" && (e.Path == dir || filepath.Dir(e.Path) == dir)
}

// ticketCure is about joining and inviting.
func ticketCure(err error, _ *places) string {
	switch {
	case errors.Is(err, overlay.ErrTicketExpired), errors.Is(err, overlay.ErrTicketUsed), errors.Is(err, overlay.ErrTicketRefused):
		return "ask for a new ticket (meshd ticket on the gateway that made this one)"
	case errors.Is(err, overlay.ErrNotIssuer):
		return "meshd ticket works on the gateway where meshd init was run"
	case errors.Is(err, overlay.ErrUnknownGateway):
		return "meshd status lists sites and gateways"
	case errors.Is(err, overlay.ErrNoPath):
		return "see whether that gateway runs and whether UDP to its address gets through (meshd status there)"
	}
	return ""
}

// hostCure is about the machine.
func hostCure(err error, _ *places) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return "ss -lunp shows who has the port; \"port:\" in the configuration names another one"
	case errors.Is(err, fs.ErrExist), errors.Is(err, syscall.EBUSY):
		return "ip link shows who has the interface; \"interface:\" in the configuration names another one"
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0:
		return "do it as root (sudo)"
	case errors.Is(err, fs.ErrPermission):
		return "give the process CAP_NET_ADMIN and access to /dev/net/tun, or set \"device: netstack\" to do without"
	case errors.Is(err, errors.ErrUnsupported):
		return "set \"device: netstack\" to do without the kernel's help"
	}
	return ""
}

// runFlag is --run if the daemon is not where everybody looks.
func runFlag(p *places) string {
	if p.run == "" || p.run == ctl.DefaultDir {
		return ""
	}
	return " --run " + shellWord(p.run)
}

// isTimeout reports whether err says that something took too long.
func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}
