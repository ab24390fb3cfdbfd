package apiproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
)

// Where things are on a host.
const (
	UnitName     = "kubeinit-apiproxy.service"
	UnitFile     = "/etc/systemd/system/" + UnitName
	ConfigFile   = "/etc/kubeinit/apiproxy.json"
	LearnedFile  = "/etc/kubeinit/apiproxy-learned.json"
	StatusSocket = "/run/kubeinit-apiproxy/status.sock"
	// Port is where the proxy listens on loopback; API servers have 6443.
	Port = 7443
)

// Unit returns the text of the unit that runs "binary agent apiproxy
// ConfigFile". The error says that a path cannot stand in a unit.
//
// The proxy has no privileges and writes nothing but its status socket. It must
// be able to read the binary and ConfigFile as nobody in particular. Everything
// here is understood by systemd 252. StartLimitIntervalSec=0: whatever goes
// wrong, the host is never without a proxy for longer than it takes.
func Unit(binary string) (string, error) {
	if !filepath.IsAbs(binary) || strings.ContainsAny(binary, " \t\n\"'\\%$;") {
		return "", fmt.Errorf("program %q: want an absolute path without special characters", binary)
	}
	return fmt.Sprintf(`# written by kubeinit; changes are overwritten
[Unit]
Description=Way to the nearest API server of the cluster
Documentation=https://github.com/planetmesh/planetmesh
After=network.target
Before=kubelet.service
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart=%s agent apiproxy %s
Restart=always
RestartSec=500ms
TimeoutStartSec=30s
TimeoutStopSec=10s
RuntimeDirectory=%s
UMask=0077
LimitNOFILE=16384
Environment=GOMEMLIMIT=96MiB

DynamicUser=yes
CapabilityBoundingSet=
AmbientCapabilities=
NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
PrivateDevices=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=strict
RemoveIPC=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources

[Install]
WantedBy=multi-user.target
`, binary, ConfigFile, filepath.Base(filepath.Dir(StatusSocket))), nil
}

// Main is "kubeinit agent apiproxy FILE", which serves until ctx ends, and
// "kubeinit agent apiproxy status SOCKET", which prints the status as JSON. It
// logs to stderr, as the journal has the time already without it.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	switch {
	case len(args) == 1:
		return Run(ctx, args[0], slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{ReplaceAttr: withoutTime})))
	case len(args) == 2 && args[0] == "status":
		s, err := ReadStatus(ctx, args[1])
		if err != nil {
			return err
		}
		_, err = stdout.Write(indented(s))
		return err
	}
	return errors.New("want the path of a configuration file, or status and the path of a socket")
}

func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}
