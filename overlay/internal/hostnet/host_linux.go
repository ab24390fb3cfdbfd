package hostnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host keeps the network of this host as desired. Use Open to make one. Its
// methods may be called from several goroutines at once.
type Host struct {
	cfg   Config
	log   *slog.Logger
	nl    *netlink.Handle
	store store
	sys   sysctls

	closeOnce sync.Once
	closed    chan struct{} // closed by Close
	closeErr  error         // valid once closeOnce is done

	turn    chan struct{} // holds one token: whoever took it may change the host
	journal *journal      // guarded by turn; what is on disk
}

// Open undoes what an earlier run with this link or journal left behind, and
// returns a Host that has changed nothing yet. It fails with an error that
// matches os.ErrPermission if the process lacks CAP_NET_ADMIN, and with one
// that matches ErrJournal, having changed nothing, if the journal cannot be
// trusted.
func Open(cfg Config) (*Host, error) { return open(cfg, sysctls{}) }

func open(cfg Config, sys sysctls) (*Host, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("host network: %w", err)
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("host network: open netlink: %w", err)
	}
	h := &Host{
		cfg: cfg, log: log, nl: nl, store: store{cfg.Journal}, sys: sys,
		closed: make(chan struct{}), turn: make(chan struct{}, 1),
		journal: &journal{link: cfg.Link},
	}
	if err := h.heal(); err != nil {
		nl.Close()
		return nil, fmt.Errorf("host network: %w", err)
	}
	return h, nil
}

// heal brings the host back to where it was before a run that did not close.
func (h *Host) heal() error {
	if err := h.checkPermission(); err != nil {
		return err
	}
	left, err := h.store.load()
	if err != nil {
		return err
	}
	if left != nil {
		h.log.Info("healing after a run that was not closed",
			"addresses", len(left.addresses), "routes", len(left.lan), "settings", len(left.settings))
		h.journal = left
	}
	err = h.undo(h.cfg.Link)
	h.journal.link = h.cfg.Link
	return err
}

// checkPermission asks the kernel to delete an address of an interface that
// cannot exist. It checks the permission first, and then finds nothing.
func (h *Host) checkPermission() error {
	loopback := net.IPNet{IP: net.IPv4(127, 0, 0, 1), Mask: net.CIDRMask(32, 32)}
	err := h.nl.AddrDel(nil, &netlink.Addr{IPNet: &loopback, LinkIndex: math.MaxInt32})
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("no permission to change the network (run as root or grant CAP_NET_ADMIN): %w", err)
	}
	return nil
}

// undo takes back everything: routes and addresses on the link of the journal
// and on the given one, routes through hosts of LANs, then settings. It goes on after errors; what could not
// be taken back stays in the journal.
func (h *Host) undo(link string) error {
	var errs []error
	links := []string{h.journal.link}
	if link != h.journal.link {
		links = append(links, link)
	}
	for _, name := range links {
		l, err := h.link(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = h.removeRoutes(l)
		}
		errs = append(errs, err)
	}
	rest := h.journal.clone()
	addresses, err := h.removeAddresses(h.journal.link, h.journal.addresses)
	rest.addresses, errs = addresses, append(errs, err)
	lan, err := h.removeLAN(h.journal.lan)
	rest.lan, errs = lan, append(errs, err)
	settings, err := h.restore(h.journal.settings)
	rest.settings, errs = settings, append(errs, err)
	h.journal = rest
	return errors.Join(append(errs, h.store.save(rest))...)
}

// Apply makes the host as desired and changes nothing that is so already. It
// goes on after an error, so that one bad route does not take the others with
// it, and returns all errors joined. Among them may be a *CollisionError for
// each prefix that this host has itself, errors that match errors.ErrUnsupported
// if IPv6 was asked for and is switched off, os.ErrNotExist if an interface is
// missing, and ErrClosed. If the desired state is not valid in itself, or what
// is needed to undo it cannot be written to disk, nothing that needs it
// changes.
func (h *Host) Apply(ctx context.Context, d Desired) error {
	if err := d.validate(); err != nil {
		return fmt.Errorf("host network: %w", err)
	}
	if err := h.take(ctx); err != nil {
		return err
	}
	defer h.release()
	if err := h.apply(ctx, d); err != nil {
		return fmt.Errorf("host network: %w", err)
	}
	return nil
}

func (h *Host) apply(ctx context.Context, d Desired) error {
	link, err := h.link(h.cfg.Link)
	if err != nil {
		return err
	}
	var errs []error
	if !h.sys.ipv6(h.cfg.Link) {
		var err error
		d, err = d.withoutIPv6()
		errs = append(errs, err)
	}
	errs = append(errs, h.applyLink(link, d.MTU), h.applyAddresses(link, d.Addresses))
	if ctx.Err() == nil {
		errs = append(errs, h.applyForwarding(d))
	}
	if ctx.Err() == nil {
		errs = append(errs, h.applyLAN(d), h.applyRoutes(link, d.Routes))
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// withoutIPv6 leaves out what cannot be on a host without IPv6, and says so.
func (d Desired) withoutIPv6() (Desired, error) {
	rest := d
	rest.Addresses = slices.DeleteFunc(slices.Clone(d.Addresses), func(p netip.Prefix) bool { return p.Addr().Is6() })
	rest.Routes = slices.DeleteFunc(slices.Clone(d.Routes), func(r Route) bool { return r.Prefix.Addr().Is6() })
	rest.LAN = slices.DeleteFunc(slices.Clone(d.LAN), func(r LANRoute) bool { return r.Prefix.Addr().Is6() })
	rest.Forward6 = false
	addresses := len(d.Addresses) - len(rest.Addresses)
	routes := len(d.Routes) - len(rest.Routes) + len(d.LAN) - len(rest.LAN)
	if addresses+routes == 0 && !d.Forward6 {
		return d, nil
	}
	return rest, fmt.Errorf("ipv6 is switched off on this host, %d addresses and %d routes left out: %w",
		addresses, routes, errors.ErrUnsupported)
}

func (h *Host) link(name string) (netlink.Link, error) {
	l, err := h.nl.LinkByName(name)
	if _, ok := errors.AsType[netlink.LinkNotFoundError](err); ok {
		return nil, fmt.Errorf("interface %s: %w", name, fs.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	return l, nil
}

func (h *Host) applyLink(l netlink.Link, mtu int) error {
	var errs []error
	if mtu != 0 && l.Attrs().MTU != mtu {
		if err := h.nl.LinkSetMTU(l, mtu); err != nil {
			errs = append(errs, fmt.Errorf("set mtu %d of %s: %w", mtu, h.cfg.Link, err))
		}
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		if err := h.nl.LinkSetUp(l); err != nil {
			errs = append(errs, fmt.Errorf("bring %s up: %w", h.cfg.Link, err))
		}
	}
	return errors.Join(errs...)
}

func (h *Host) applyForwarding(d Desired) error {
	var links []string
	var errs []error
	if len(d.Forward) > 0 && (d.Forward4 || d.Forward6) {
		links = append(links, h.cfg.Link)
		for _, name := range d.Forward {
			if _, err := h.link(name); err != nil {
				errs = append(errs, fmt.Errorf("forward: %w", err))
			} else if !slices.Contains(links, name) {
				links = append(links, name)
			}
		}
	}
	w, err := h.wishes(links, d.Forward4 && len(links) > 0, d.Forward6 && len(links) > 0)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	return errors.Join(append(errs, h.reset(w), h.fulfil(w))...)
}

// keep makes next the journal, on disk first.
func (h *Host) keep(next *journal) error {
	if slices.Equal(next.settings, h.journal.settings) && slices.Equal(next.addresses, h.journal.addresses) &&
		slices.Equal(next.lan, h.journal.lan) {
		return nil
	}
	if err := h.store.save(next); err != nil {
		return err
	}
	h.journal = next
	return nil
}

// Close undoes everything that this Host did: routes and addresses are
// removed, settings restored in reverse order where they still have our value,
// then the journal goes. It waits for an Apply that is under way. What could
// not be undone stays in the journal for the next Open. Further calls return
// the same.
func (h *Host) Close() error {
	h.closeOnce.Do(func() {
		h.turn <- struct{}{}
		close(h.closed)
		if err := h.undo(h.cfg.Link); err != nil {
			h.closeErr = fmt.Errorf("host network: %w", err)
		}
		h.nl.Close()
		<-h.turn
	})
	return h.closeErr
}

// take waits for the turn to change or read the host.
func (h *Host) take(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case h.turn <- struct{}{}:
	case <-h.closed:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-h.closed:
		h.release()
		return ErrClosed
	default:
		return nil
	}
}

func (h *Host) release() { <-h.turn }
