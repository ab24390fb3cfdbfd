package main

import (
	"context"
	"errors"
	"reflect"

	"github.com/planetmesh/planetmesh/meshd/internal/conf"
)

// reload reads the configuration again and puts into effect what can change
// while the mesh runs. Anything wrong is logged and changes nothing.
func (d *daemon) reload(ctx context.Context) {
	next, err := loadForRun(d.places, d.logged)
	if faults, ok := errors.AsType[conf.Faults](err); ok {
		for _, fault := range faults {
			d.log.Error("configuration is faulty and was not applied", "err", fault)
		}
		return
	}
	if err != nil {
		d.log.Error("configuration cannot be read and was not applied", "err", err)
		return
	}
	release, err := d.take(ctx)
	if err != nil {
		return
	}
	defer release()
	now := d.now.Load()
	// What needs a restart stays what it is, so that the next reload says it again.
	merged := *now.conf
	merged.Announce, merged.Accept, merged.OpenVPN, merged.Log.Level = next.Announce, next.Accept, next.OpenVPN, next.Log.Level
	if err := d.apply(ctx, now, d.plan(&merged, now.sets, "")); err != nil {
		d.log.Error("configuration was not applied", "err", err)
		return
	}
	for _, key := range needRestart(now.conf, next) {
		d.log.Warn("changed setting takes effect at the next start", "key", key)
	}
	d.log.Info("configuration applied", "file", next.File)
}

// apply changes all that can be changed, or nothing. A configuration with which
// a route set does not go any more is not applied. The caller has the turn.
func (d *daemon) apply(ctx context.Context, now, next *plan) error {
	if err := next.spoils(now); err != nil {
		return err
	}
	if err := d.attach.Apply(ctx, next.desired()); err != nil {
		return err
	}
	if err := d.mesh.SetAccept(next.conf.Accept); err != nil {
		return errors.Join(err, d.attach.Apply(ctx, now.desired()))
	}
	d.level.Set(next.conf.Log.Level)
	d.now.Store(next)
	return nil
}

// needRestart names the keys of settings that differ and are read only once.
func needRestart(now, next *conf.Config) []string {
	var keys []string
	for _, setting := range []struct {
		key  string
		a, b any
	}{
		{"state", now.State, next.State},
		{"interface", now.Interface, next.Interface},
		{"port", now.Port, next.Port},
		{"mtu", now.MTU, next.MTU},
		{"device", now.Device, next.Device},
		{"endpoints", now.Endpoints, next.Endpoints},
		{"seeds", now.Seeds, next.Seeds},
		{"keepHost", now.KeepHost, next.KeepHost},
		{"log.format", now.Log.Format, next.Log.Format},
	} {
		if !reflect.DeepEqual(setting.a, setting.b) {
			keys = append(keys, setting.key)
		}
	}
	return keys
}
