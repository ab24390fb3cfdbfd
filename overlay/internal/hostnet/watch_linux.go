package hostnet

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// watchGroups are the kernel's notifications about everything that Apply and
// Facts look at; netconf is about forwarding.
var watchGroups = []uint{
	unix.RTNLGRP_LINK,
	unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF,
}

// Watch calls changed once as soon as it listens, and then after every change
// of interfaces, addresses, routes and forwarding settings, those by Apply
// included, and after changes were lost because there were too many. changed
// must not block; it should do no more than mark the state as to be looked at.
// Watch returns when ctx ends, with its error, when the Host is closed, with
// ErrClosed, or when the kernel refuses to tell more.
func (h *Host) Watch(ctx context.Context, changed func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	sock, err := nl.Subscribe(unix.NETLINK_ROUTE, watchGroups...)
	if err != nil {
		return fmt.Errorf("host network: watch: %w", err)
	}
	defer context.AfterFunc(ctx, sock.Close)()
	defer sock.Close()
	wg.Go(func() { // ends with ctx, which ends when Watch returns
		select {
		case <-h.closed:
			cancel(ErrClosed)
		case <-ctx.Done():
		}
	})
	changed()
	for {
		_, from, err := sock.Receive()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN):
			continue
		case errors.Is(err, unix.ENOBUFS):
			changed() // some were lost; the socket goes on
		case err != nil:
			return fmt.Errorf("host network: watch: %w", err)
		case from.Pid == nl.PidKernel:
			changed()
		}
	}
}
