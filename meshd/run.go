package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/internal/version"
	"github.com/planetmesh/planetmesh/meshd/internal/attach"
	"github.com/planetmesh/planetmesh/meshd/internal/conf"
	"github.com/planetmesh/planetmesh/meshd/internal/ctl"
	"github.com/planetmesh/planetmesh/meshd/internal/routeset"
	"github.com/planetmesh/planetmesh/overlay"
)

func newRun() *cobra.Command {
	var (
		p      places
		logged logFlags
	)
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the gateway, in the foreground",
		Long: `Run starts the gateway of this machine and stays in the foreground. It logs to standard error.

SIGTERM and SIGINT stop it and hand the host back as it was found. SIGHUP reads the configuration
again: announced and accepted prefixes, attached routers and the log level change at once, a faulty
file changes nothing. Route sets (meshd routeset) stay as they are.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadForRun(&p, logged)
			if err != nil {
				return err
			}
			d := newDaemon(&p, logged, c, cmd.ErrOrStderr())
			return explain(d.run(cmd.Context()), &p)
		},
	}
	cmd.Flags().StringVar(&logged.level, "log-level", "", "debug, info, warn or error (default info)")
	cmd.Flags().StringVar(&logged.format, "log-format", "", "text or json (default text)")
	p.addState(cmd)
	p.addRun(cmd)
	return cmd
}

// logFlags win over the log section of the configuration.
type logFlags struct{ level, format string }

func (f logFlags) apply(l *conf.Log) error {
	if f.level != "" {
		level, err := conf.ParseLevel(f.level)
		if err != nil {
			return cli.Usage(fmt.Errorf("--%w", err))
		}
		l.Level = level
	}
	switch conf.LogFormat(f.format) {
	case "":
	case conf.LogText, conf.LogJSON:
		l.Format = conf.LogFormat(f.format)
	default:
		return cli.Usage(fmt.Errorf("--log-format %q; want text or json", f.format))
	}
	return nil
}

// loadForRun reads the configuration and lets all flags win over it.
func loadForRun(p *places, logged logFlags) (*conf.Config, error) {
	c, err := p.load()
	if err != nil {
		return nil, err
	}
	return c, logged.apply(&c.Log)
}

// daemon is a running gateway and its control socket.
type daemon struct {
	places *places
	logged logFlags
	conf   *conf.Config // as it was at the start
	level  *slog.LevelVar
	log    *slog.Logger
	device overlay.DeviceKind
	store  overlay.Store
	mesh   *overlay.Mesh
	attach *attach.Set

	turn chan struct{}        // holds one token: whoever took it may change what is in effect
	now  atomic.Pointer[plan] // in effect; readers need no turn
}

func newDaemon(p *places, logged logFlags, c *conf.Config, stderr io.Writer) *daemon {
	level := new(slog.LevelVar)
	level.Set(c.Log.Level)
	options := &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewTextHandler(stderr, options)
	if c.Log.Format == conf.LogJSON {
		handler = slog.NewJSONHandler(stderr, options)
	}
	return &daemon{places: p, logged: logged, conf: c, level: level, log: slog.New(handler), turn: make(chan struct{}, 1)}
}

// run is the life of the daemon. It returns nil if ctx ended it.
func (d *daemon) run(ctx context.Context) error {
	// From here on, so that SIGHUP does not end a daemon that is still starting.
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	defer signal.Stop(reload)

	socket, err := ctl.Listen(d.places.run)
	if err != nil {
		return err
	}
	defer socket.Close() // serving closes it too; this is for a mesh that does not open
	if err := d.open(ctx); err != nil {
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	}
	err = d.serve(ctx, socket, reload)
	if cause := context.Cause(ctx); cause != nil {
		d.log.Info("gateway stops", "cause", cause.Error())
	}
	if closeErr := d.close(); err == nil {
		err = closeErr // else it is what serve told, or what came of that
	}
	if err == nil {
		d.log.Info("gateway stopped")
	}
	return err
}

// close ends what open started.
func (d *daemon) close() error { return errors.Join(d.attach.Close(), d.mesh.Close()) }

// open starts the mesh and attaches the routers.
func (d *daemon) open(ctx context.Context) error {
	config := d.conf.Overlay()
	d.device, d.store = config.Device, overlay.OpenDir(d.conf.State)
	config.Store = d.store
	config.Logger = d.log
	config.Software = software()
	if config.Routes == nil && len(d.conf.OpenVPN) > 0 {
		config.Routes = []overlay.Route{} // all that is granted but what routers have: attach knows what that is
	}
	mesh, err := overlay.Open(ctx, config)
	if err != nil {
		return err
	}
	d.mesh = mesh
	d.attach = attach.New(attach.Config{Mesh: mesh, Dir: d.conf.State, Logger: d.log})
	sets, err := routeset.Load(d.store)
	if err != nil {
		return errors.Join(err, d.close())
	}
	first := d.plan(d.conf, sets, "")
	if err := d.attach.Apply(ctx, first.desired()); err != nil {
		return errors.Join(err, d.close())
	}
	d.now.Store(first)
	d.tellProblems(first)
	s := mesh.Status()
	d.log.Info("gateway started", "gateway", s.Self.Gateway, "site", s.Self.Site, "mesh", s.Mesh.Name, "port", s.Self.Port)
	return nil
}

// serve answers requests and reloads until ctx ends, which is nil, or until
// the mesh or the control socket does.
func (d *daemon) serve(ctx context.Context, socket net.Listener, reload <-chan os.Signal) error {
	state, err := filepath.Abs(d.conf.State)
	if err != nil {
		return err
	}
	server := &ctl.Server{
		Mesh:   d.mesh,
		About:  ctl.About{Software: software(), PID: os.Getpid(), State: state, Started: time.Now()},
		Hint:   func(err error) string { return cure(err, d.places) },
		Logger: d.log,

		Attachments: d.attach.Status,
		RouteSets:   keeper{d},
		Origin:      d.origin,
	}
	serving, stop := context.WithCancel(ctx)
	events := d.mesh.Watch(serving)
	d.regranted(ctx) // in case that it changed before
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(serving, socket) }() // ends with serving, at the latest when we return
	for {
		select {
		case <-reload:
			d.reload(ctx)
			continue
		case e, open := <-events:
			switch {
			case !open:
				events = nil // the mesh ends
			case e.Kind == overlay.EventGranted:
				d.regranted(ctx)
			}
			continue
		case err = <-ended:
			stop()
			return err
		case <-d.mesh.Done():
			err = d.mesh.Wait()
		case <-ctx.Done():
		}
		stop()
		return errors.Join(err, <-ended)
	}
}

// software is what other gateways see of this program.
func software() string {
	return "meshd " + cmp.Or(version.Current().Version, "(unknown version)")
}
