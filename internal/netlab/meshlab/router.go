package meshlab

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
)

// Router plays a router with VyOS 1.4 on a host: it takes the commands that "meshd vyos --vyos-version 1.4" prints, writes the
// option files that VyOS writes for them, and runs the distribution's openvpn (2.6, that of VyOS 1.4) with them. Its methods
// are for one goroutine.
type Router struct {
	host    *netlab.Host
	config  *vyosConfig
	tunnels map[string]*netlab.Process
	task    *netlab.Process
}

// NewRouter returns a router without configuration.
func NewRouter(host *netlab.Host) *Router {
	return &Router{host: host, tunnels: make(map[string]*netlab.Process)}
}

// staticProtocol and staticMetric are those of static routes that VyOS (FRR) gives to the kernel.
const (
	staticProtocol = 196
	staticMetric   = 20
)

// Commit takes the commands of configuration mode, starts an openvpn for every tunnel, and sets the static routes when all
// interfaces are there, whether or not somebody answers. The error names the line that the router does not understand.
// A router takes one configuration in its life.
func (r *Router) Commit(ctx context.Context, commands string) error {
	config, err := parseVyOS(commands)
	if err != nil {
		return fmt.Errorf("host %s: commit: %w", r.host.Name(), err)
	}
	r.config = config
	for _, t := range config.tunnels {
		if err := r.host.WriteFile(t.secretFile(), []byte(t.secretText()), 0o600); err != nil {
			return err
		}
		if err := r.host.WriteFile(t.optionFile(), []byte(t.options()), 0o600); err != nil {
			return err
		}
	}
	return r.Start(ctx)
}

// Start starts the tunnels of the configuration and sets the static routes.
func (r *Router) Start(ctx context.Context) error {
	for _, t := range r.config.tunnels {
		// The process outlives ctx, which bounds its start: the world ends it.
		p, err := r.host.Start(context.WithoutCancel(ctx), "openvpn", "--cd", filepath.Dir(t.optionFile()), "--config", t.optionFile())
		if err != nil {
			return err
		}
		r.tunnels[t.name] = p
	}
	for _, t := range r.config.tunnels {
		if err := r.tunnels[t.name].WaitLog(ctx, "TUN/TAP device "+t.name+" opened"); err != nil {
			return err
		}
	}
	for _, route := range r.config.bestRoutes() {
		if err := r.route(ctx, route); err != nil {
			return err
		}
	}
	return nil
}

// routePause is how long a route waits for its interface to be up, which it is milliseconds after it is there.
const routePause = 20 * time.Millisecond

func (r *Router) route(ctx context.Context, route vyosRoute) error {
	for {
		_, err := r.host.Run(ctx, "ip", "route", "replace", route.prefix.String(), "dev", route.device,
			"metric", strconv.Itoa(staticMetric), "proto", strconv.Itoa(staticProtocol))
		if err == nil || !strings.Contains(err.Error(), "Device for nexthop is not up") && !strings.Contains(err.Error(), "Network is down") {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(routePause):
		}
	}
}

// OptionFile is the content of the option file of a tunnel, such as vtun1.
func (r *Router) OptionFile(tunnel string) (string, error) {
	b, err := r.host.ReadFile("/run/openvpn/" + tunnel + ".conf")
	return string(b), err
}

// Tunnel is the openvpn process of a tunnel, or nil.
func (r *Router) Tunnel(name string) *netlab.Process { return r.tunnels[name] }

// scheduler runs a script for ever: sh -c scheduler sh SECONDS SCRIPT.
const scheduler = `while :; do sh "$2"; sleep "$1"; done`

// Schedule runs the script of the task that the configuration has, again and again with the given pause. The router's task
// scheduler itself cannot do less than a minute, which the task's arguments make up for; a laboratory is in a hurry.
func (r *Router) Schedule(ctx context.Context, script string, pause time.Duration) error {
	if r.config == nil || r.config.task.path == "" {
		return fmt.Errorf("host %s: the configuration has no task", r.host.Name())
	}
	name := filepath.Join(r.host.Dir(), "meshd-check")
	if err := r.host.WriteFile(name, []byte(script), 0o755); err != nil {
		return err
	}
	p, err := r.host.Start(context.WithoutCancel(ctx), "sh", "-c", scheduler, "sh", strconv.FormatFloat(pause.Seconds(), 'f', -1, 64), name)
	r.task = p
	return err
}

// TaskLog is what the scheduled script has said.
func (r *Router) TaskLog() string {
	if r.task == nil {
		return ""
	}
	return r.task.Log()
}

// Stop ends all that runs, with SIGTERM, and takes the routes of the scheduled script away. Static routes go with their
// interfaces.
func (r *Router) Stop(ctx context.Context) error {
	var errs []error
	if r.task != nil {
		if err := r.task.Kill(); err != nil {
			errs = append(errs, err)
		}
		// A run that has begun holds the lock, so that one with -u waits for nothing and removes all.
		_, err := r.host.Run(ctx, "sh", filepath.Join(r.host.Dir(), "meshd-check"), "-u")
		errs = append(errs, err)
		r.task = nil
	}
	return errors.Join(append(errs, r.StopTunnels(ctx))...)
}

// StopTunnels ends every openvpn with SIGTERM, as a reboot does.
func (r *Router) StopTunnels(ctx context.Context) error {
	var errs []error
	for _, t := range r.tunnels {
		errs = append(errs, t.Stop(ctx))
	}
	clear(r.tunnels)
	return errors.Join(errs...)
}
