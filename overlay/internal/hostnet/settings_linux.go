package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// sysctls reads and writes kernel settings of the calling thread's namespace.
type sysctls struct {
	// withoutForce makes it behave like a kernel before 6.17, which has no
	// force_forwarding.
	withoutForce bool
}

func (s sysctls) path(k setting) string { return filepath.Join("/proc/sys", string(k)) }

func (s sysctls) read(k setting) (string, error) {
	b, err := os.ReadFile(s.path(k))
	if err != nil {
		return "", fmt.Errorf("read setting: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func (s sysctls) write(k setting, value string) error {
	f, err := os.OpenFile(s.path(k), os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
	}
	switch {
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("set %s to %s: /proc/sys is read-only here, set it outside of the container: %w", k, value, err)
	case err != nil:
		return fmt.Errorf("set %s to %s: %w", k, value, err)
	}
	return nil
}

// is reports whether a setting exists and has the value.
func (s sysctls) is(k setting, value string) bool {
	v, err := s.read(k)
	return err == nil && v == value
}

// forces reports whether the kernel can forward IPv6 for single interfaces.
func (s sysctls) forces() bool {
	if s.withoutForce {
		return false
	}
	_, err := os.Stat(s.path(setting6("all", forceForwarding)))
	return err == nil
}

// links6 returns the names of the interfaces that have IPv6 settings, with
// "default", in a fixed order.
func (s sysctls) links6() ([]string, error) {
	dir, err := os.ReadDir("/proc/sys/net/ipv6/conf")
	if err != nil {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	var names []string
	for _, e := range dir {
		if e.Name() != "all" {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// ipv6 reports whether IPv6 works on the overlay interface, or will once it
// exists.
func (s sysctls) ipv6(link string) bool {
	const leaf = "disable_ipv6"
	if !s.is(setting6("all", leaf), "0") {
		return false
	}
	v, err := s.read(setting6(link, leaf))
	if errors.Is(err, fs.ErrNotExist) {
		v, err = s.read(setting6("default", leaf))
	}
	return err == nil && v == "0"
}

// wishes returns the settings that forwarding needs, in the order in which they
// have to be written.
func (h *Host) wishes(links []string, v4, v6 bool) ([]wish, error) {
	var w []wish
	if v6 {
		more, err := h.wishes6(links)
		if err != nil {
			return nil, err
		}
		w = append(w, more...)
	}
	if v4 {
		for _, l := range links {
			w = append(w, wish{key: setting4(l, forwarding), value: "1"})
		}
	}
	return w, nil
}

func (h *Host) wishes6(links []string) ([]wish, error) {
	on := h.sys.is(allForwarding6, "1")
	byUs := h.journal.find(allForwarding6) != nil
	switch {
	case on && !byUs:
		return nil, nil
	case h.sys.forces():
		var w []wish
		for _, l := range links {
			w = append(w, wish{key: setting6(l, forceForwarding), value: "1"})
		}
		return w, nil
	}
	return h.wishesAll6(byUs)
}

// wishesAll6 is for kernels without force_forwarding. Every interface that
// listens to router advertisements goes on doing so as a router; the values
// that switching on changes by itself are wished for one by one, so that they
// are in the journal. The default for interfaces to come keeps its accept_ra:
// each of them gets its own entry when Apply first sees it.
func (h *Host) wishesAll6(byUs bool) ([]wish, error) {
	names, err := h.sys.links6()
	if err != nil {
		return nil, err
	}
	var w []wish
	for _, l := range names {
		k := setting6(l, acceptRA)
		if k.ours() && l != "lo" && l != h.cfg.Link && (h.journal.find(k) != nil || h.sys.is(k, "1")) {
			w = append(w, wish{key: k, value: "2"})
		}
	}
	for _, l := range names {
		k := setting6(l, forwarding)
		if k.ours() && (!byUs || h.journal.find(k) != nil) {
			w = append(w, wish{key: k, value: "1", keep: true})
		}
	}
	return append(w, wish{key: allForwarding6, value: "1"}), nil
}

// reset undoes the journalled settings that are not among the wishes.
func (h *Host) reset(wishes []wish) error {
	wanted := make(map[setting]bool, len(wishes))
	for _, w := range wishes {
		wanted[w.key] = true
	}
	next := h.journal.clone()
	next.settings = slices.DeleteFunc(next.settings, func(c change) bool { return !wanted[c.key] })
	stale := slices.DeleteFunc(slices.Clone(h.journal.settings), func(c change) bool { return wanted[c.key] })
	if len(stale) == 0 {
		return nil
	}
	left, err := h.restore(stale)
	next.settings = slices.Concat(left, next.settings)
	return errors.Join(err, h.keep(next))
}

// restore undoes changes in reverse order and returns those that could not be
// undone. A setting that somebody changed after us is left to them, one whose
// interface is gone is gone as well.
func (h *Host) restore(changes []change) (left []change, err error) {
	var errs []error
	for _, c := range slices.Backward(changes) {
		var err error
		if c.key == allForwarding6 {
			err = h.restoreAll6(c, changes)
		} else {
			err = h.restoreOne(c)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
			left = append(left, c)
		}
	}
	slices.Reverse(left)
	return left, errors.Join(errs...)
}

func (h *Host) restoreOne(c change) error {
	now, err := h.sys.read(c.key)
	switch {
	case err != nil:
		return err
	case c.old == c.new || now == c.old:
		return nil
	case now != c.new:
		h.log.Info("setting left as somebody changed it", "setting", c.key, "value", now)
		return nil
	}
	return h.sys.write(c.key, c.old)
}

// restoreAll6 switches IPv6 forwarding off. The kernel does the same for every
// interface then; where it was on before us, and still is, it goes on again.
func (h *Host) restoreAll6(all change, changes []change) error {
	var before []change
	for _, c := range changes {
		if c.old == c.new && h.sys.is(c.key, c.new) {
			before = append(before, c)
		}
	}
	if err := h.restoreOne(all); err != nil {
		return err
	}
	var errs []error
	for _, c := range before {
		if !h.sys.is(c.key, c.old) {
			errs = append(errs, h.sys.write(c.key, c.old))
		}
	}
	return errors.Join(errs...)
}

// fulfil writes the settings that are not as wished. The journal is on disk
// before the first of them.
func (h *Host) fulfil(wishes []wish) error {
	var errs []error
	var todo []wish
	next := h.journal.clone()
	for _, w := range wishes {
		now, err := h.sys.read(w.key)
		switch {
		case err != nil:
			errs = append(errs, err)
			continue
		case !validValue(now):
			errs = append(errs, fmt.Errorf("setting %s has the unknown value %q", w.key, now))
			continue
		case now != w.value:
			todo = append(todo, w)
		case !w.keep:
			continue
		}
		next.note(w, now)
	}
	if err := h.keep(next); err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, w := range todo {
		if err := h.sys.write(w.key, w.value); err != nil {
			errs = append(errs, err)
			break // later ones may rely on earlier ones
		}
		h.log.Info("setting changed", "setting", w.key, "value", w.value)
	}
	return errors.Join(errs...)
}
