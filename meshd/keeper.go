package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/planetmesh/planetmesh/meshd/internal/attach"
	"github.com/planetmesh/planetmesh/meshd/internal/conf"
	"github.com/planetmesh/planetmesh/meshd/internal/routeset"
	"github.com/planetmesh/planetmesh/overlay"
)

// keeper has the route sets of a daemon, and its configuration as far as they
// have to go with it. Its methods are safe for concurrent use.
type keeper struct{ d *daemon }

// plan is what a daemon shall do, by configuration and route sets.
type plan struct {
	conf     *conf.Config
	granted  []netip.Prefix
	sets     []routeset.Set // by name
	fitting  []routeset.Set
	problems map[string]error // of the other sets
}

// desired is what attach makes of it.
func (p *plan) desired() attach.Desired {
	return attach.Desired{Announce: p.conf.Announce, OpenVPN: p.conf.OpenVPN, Sets: p.fitting}
}

// spoils returns the first set that fitted before and does not now.
func (p *plan) spoils(before *plan) error {
	for _, name := range slices.Sorted(maps.Keys(p.problems)) {
		fitted := slices.ContainsFunc(before.fitting, func(s routeset.Set) bool { return s.Name == name })
		if fitted {
			return p.problems[name]
		}
	}
	return nil
}

// plan sees which sets fit. The set named last gives way to the others.
func (d *daemon) plan(c *conf.Config, sets []routeset.Set, last string) *plan {
	granted := d.mesh.Status().Self.Granted
	around := routeset.Around{Granted: granted}
	for _, r := range (attach.Desired{Announce: c.Announce, OpenVPN: c.OpenVPN}).Base(granted) {
		around.Announced = append(around.Announced, r.Prefix)
	}
	for _, o := range c.OpenVPN {
		around.Attached = append(around.Attached, routeset.Attached{Name: o.Name, Prefixes: o.Prefixes})
	}
	// Read once: the device does not change while the daemon runs.
	if device := d.device; device != overlay.DeviceTUN {
		around.NoLAN = fmt.Sprintf("this gateway has no network interface to route from (device: %s)", device)
	}
	p := &plan{conf: c, granted: granted, sets: sets}
	order := slices.Clone(sets)
	slices.SortStableFunc(order, func(a, b routeset.Set) int { return btoi(a.Name == last) - btoi(b.Name == last) })
	p.fitting, p.problems = routeset.Fit(order, around)
	slices.SortFunc(p.fitting, func(a, b routeset.Set) int { return strings.Compare(a.Name, b.Name) })
	return p
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// take waits for the turn to change what the daemon does; call the result to
// give it back.
func (d *daemon) take(ctx context.Context) (release func(), err error) {
	select {
	case d.turn <- struct{}{}:
		return func() { <-d.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Put stores a set under its name and puts it into effect, wholly or not at
// all. It reports whether that changed anything.
func (k keeper) Put(ctx context.Context, set routeset.Set) (changed bool, err error) {
	release, err := k.d.take(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	now := k.d.now.Load()
	i, found := slices.BinarySearchFunc(now.sets, set.Name, func(s routeset.Set, name string) int { return strings.Compare(s.Name, name) })
	if found && now.sets[i].Equal(set) && now.problems[set.Name] == nil {
		return false, nil
	}
	sets := slices.Clone(now.sets)
	if found {
		sets[i] = set
	} else {
		sets = slices.Insert(sets, i, set)
	}
	next := k.d.plan(now.conf, sets, set.Name)
	if err := errors.Join(next.problems[set.Name], next.spoils(now)); err != nil {
		return false, err
	}
	have := routeset.LAN(now.fitting)
	added := slices.DeleteFunc(slices.Clone(set.LAN), func(r overlay.LANRoute) bool { return slices.Contains(have, r) })
	if err := k.d.mesh.CheckLANRoutes(added); err != nil {
		return false, &routeset.Error{Name: set.Name, Err: err}
	}
	return true, k.d.enforce(ctx, now, next)
}

// Delete takes a set away. routeset.ErrUnknown if there is none of that name.
func (k keeper) Delete(ctx context.Context, name string) error {
	release, err := k.d.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	now := k.d.now.Load()
	sets := slices.DeleteFunc(slices.Clone(now.sets), func(s routeset.Set) bool { return s.Name == name })
	if len(sets) == len(now.sets) {
		return fmt.Errorf("%q: %w", name, routeset.ErrUnknown)
	}
	next := k.d.plan(now.conf, sets, "")
	if err := next.spoils(now); err != nil {
		return fmt.Errorf("without route set %s: %w", name, err)
	}
	return k.d.enforce(ctx, now, next)
}

// List returns all sets in the order of their names.
func (k keeper) List() []routeset.Status {
	now := k.d.now.Load()
	out := make([]routeset.Status, len(now.sets))
	for i, s := range now.sets {
		out[i].Set = s
		if err := now.problems[s.Name]; err != nil {
			out[i].Problem = err.Error()
		}
	}
	return out
}

// enforce makes next the plan, on disk before it returns, or leaves now in
// effect. The caller has the turn.
func (d *daemon) enforce(ctx context.Context, now, next *plan) error {
	ctx = context.WithoutCancel(ctx) // a client that goes away leaves nothing half done
	if err := d.attach.Apply(ctx, next.desired()); err != nil {
		return err
	}
	if err := routeset.Save(d.store, next.sets); err != nil {
		return errors.Join(err, d.attach.Apply(ctx, now.desired()))
	}
	d.now.Store(next)
	return nil
}

// regranted looks again at what fits, if the grant of this gateway changed.
func (d *daemon) regranted(ctx context.Context) {
	release, err := d.take(ctx)
	if err != nil {
		return
	}
	defer release()
	now := d.now.Load()
	next := d.plan(now.conf, now.sets, "")
	if slices.Equal(now.granted, next.granted) {
		return
	}
	if err := d.attach.Apply(ctx, next.desired()); err != nil {
		d.log.Error("changed grant was not applied", "err", err)
		return
	}
	d.now.Store(next)
	d.tellProblems(next)
}

// tellProblems logs which sets are not in effect.
func (d *daemon) tellProblems(p *plan) {
	for _, name := range slices.Sorted(maps.Keys(p.problems)) {
		d.log.Error("route set is not in effect", "set", name, "err", p.problems[name])
	}
}

// origin says what makes this gateway announce p.
func (d *daemon) origin(p netip.Prefix) string {
	now := d.now.Load()
	var words []string
	base := attach.Desired{Announce: now.conf.Announce, OpenVPN: now.conf.OpenVPN}.Base(d.mesh.Status().Self.Granted)
	if slices.ContainsFunc(base, func(r overlay.Route) bool { return r.Prefix == p }) {
		if now.conf.Announce == nil {
			words = append(words, "granted")
		} else {
			words = append(words, "configuration")
		}
	}
	for _, o := range now.conf.OpenVPN {
		if slices.Contains(o.Prefixes, p) {
			words = append(words, "router "+o.Name)
		}
	}
	for _, s := range now.fitting {
		if slices.ContainsFunc(s.Announce, func(q netip.Prefix) bool { return p.Bits() <= q.Bits() && p.Contains(q.Addr()) }) {
			words = append(words, "route set "+s.Name)
		}
	}
	return strings.Join(words, ", ")
}
