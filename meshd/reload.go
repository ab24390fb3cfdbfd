package main

import (
	"context"
	"errors"
	"reflect"

	"github.com/planetmesh/planetmesh/meshd/internal/attach"
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
	if err := d.apply(ctx, next); err != nil {
		d.log.Error("configuration was not applied", "err", err)
		return
	}
	for _, key := range needRestart(d.conf, next) {
		d.log.Warn("changed setting takes effect at the next start", "key", key)
	}
	// What needs a restart stays what it is, so that the next reload says it again.
	now := *d.conf
	now.Announce, now.Accept, now.OpenVPN, now.Log.Level = next.Announce, next.Accept, next.OpenVPN, next.Log.Level
	d.conf = &now
	d.log.Info("configuration applied", "file", next.File)
}

// apply changes all that can be changed, or nothing.
func (d *daemon) apply(ctx context.Context, next *conf.Config) error {
	if err := d.attach.Apply(ctx, desired(next)); err != nil {
		return err
	}
	if err := d.mesh.SetAccept(next.Accept); err != nil {
		return errors.Join(err, d.attach.Apply(ctx, desired(d.conf)))
	}
	d.level.Set(next.Log.Level)
	return nil
}

// desired is what c says that the gateway shall announce and attach.
func desired(c *conf.Config) attach.Desired {
	return attach.Desired{Announce: c.Announce, OpenVPN: c.OpenVPN}
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
