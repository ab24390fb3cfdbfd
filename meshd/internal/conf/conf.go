// Package conf reads meshd.yaml, the configuration of a gateway, and checks it
// as a whole: every fault is found at once, and each names its line.
//
// docs/configuration.md is the reference of the format.
package conf

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"

	"github.com/planetmesh/planetmesh/overlay"
)

// Where things are if nobody says otherwise.
const (
	DefaultFile  = "/etc/meshd/meshd.yaml"
	DefaultState = "/var/lib/meshd"
)

// MaxSize is the size of the largest configuration file in bytes. A file with
// every list full has a few kilobytes.
const MaxSize = 256 << 10

// Config is a checked configuration file. Default makes one; the zero value
// has no state directory.
type Config struct {
	File      string             // where it was read from; empty means that there was no file
	State     string             // state directory, absolute
	Device    overlay.DeviceKind // what carries the packets
	Interface string             // name of the TUN device
	Port      uint16             // UDP port; 0 means the default of the device
	MTU       int                // largest inner packet in bytes
	Endpoints []netip.AddrPort   // where this gateway is reached from outside
	Seeds     []netip.AddrPort   // other gateways to introduce ourselves to
	Announce  []overlay.Route    // nil means all that is granted, empty means nothing
	Accept    []netip.Prefix     // nil means all that is authorised
	OpenVPN   []OpenVPN          // routers attached to this gateway
	KeepHost  bool               // leave sysctls and nftables of the host alone
	Log       Log
}

// Log says what is logged and how.
type Log struct {
	Level  slog.Level
	Format LogFormat
}

// LogFormat is the form of log lines.
type LogFormat string

// The forms of log lines.
const (
	LogText LogFormat = "text" // key=value, for people
	LogJSON LogFormat = "json" // one object a line, for programs
)

// Default is the configuration without any file.
func Default() *Config {
	return &Config{
		State:     DefaultState,
		Device:    overlay.DeviceTUN,
		Interface: overlay.DefaultInterface,
		MTU:       overlay.DefaultMTU,
		Log:       Log{Level: slog.LevelInfo, Format: LogText},
	}
}

// Load reads the file at path, and the key files that it names. The error is a
// Faults if the file could be read but says something wrong.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return parse(path, b, (*parser).readKeys)
}

// LoadDefault reads DefaultFile, or gives Default if there is no such file.
func LoadDefault() (*Config, error) {
	c, err := Load(DefaultFile)
	if errors.Is(err, os.ErrNotExist) {
		return Default(), nil
	}
	return c, err
}

// Overlay is the part of c that package overlay knows, without a store, a
// logger and the name of the software.
func (c *Config) Overlay() overlay.Config {
	return overlay.Config{
		Device:    c.Device,
		Interface: c.Interface,
		MTU:       c.MTU,
		Port:      c.Port,
		Endpoints: c.Endpoints,
		Seeds:     c.Seeds,
		Routes:    c.Announce,
		Accept:    c.Accept,
		KeepHost:  c.KeepHost,
	}
}
