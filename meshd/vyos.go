package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/meshd/internal/conf"
	"github.com/planetmesh/planetmesh/meshd/internal/ctl"
	"github.com/planetmesh/planetmesh/meshd/internal/vyos"
	"github.com/planetmesh/planetmesh/overlay/openvpn"
)

func newVyOS() *cobra.Command {
	v := new(vyosCommand)
	cmd := &cobra.Command{
		Use:   "vyos NAME [NAME] | --import FILE",
		Short: "Print the VyOS commands of an attached router, or read them",
		Long: `Vyos prints the commands for the router's end of the attachment NAME ("openvpn:" in the
configuration). With two attachments of one router, each on a gateway of its own, it also prints
the schedule of a script that moves the router's routes to the tunnel that works; the script itself
comes with --check-script. The first NAME is the preferred one. Keys are not shown unless --show-key
asks for them.

With --import it reads the output of "show configuration commands" of a router ("-" is standard
input) and writes the matching configuration of meshd, with a warning for each pitfall that it sees.`,
		Example: `  meshd vyos r30a --vyos-version 1.4
  meshd vyos r30a r30b --second-config gw30b/meshd.yaml --vyos-version 1.4 --check-script > meshd-check
  meshd vyos --import router.txt -o meshd.yaml`,
		Args: cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := v.usage(cmd, args); err != nil {
				return cli.Hint(err, "meshd vyos --help")
			}
			if v.importFile != "" {
				return v.importRouter(cmd)
			}
			return v.printRouter(cmd, args)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&v.version, "vyos-version", "", "`VERSION` of the router: 1.2, 1.3, 1.4 or 1.5")
	flags.StringVar(&v.places.config, "config", "", "configuration `FILE` (default "+conf.DefaultFile+" if it exists)")
	flags.StringVar(&v.second, "second-config", "", "configuration `FILE` of the second gateway, copied from there")
	flags.StringArrayVar(&v.gateways, "gateway", nil, "`ADDRESS` under which the router reaches the gateway; once for each NAME, in their order")
	flags.StringArrayVar(&v.interfaces, "interface", nil, "`vtunN` on the router; once for each NAME (default vtun1 and vtun2); with --import the one to take over")
	flags.StringArrayVar(&v.prefixWords, "prefix", nil, "`CIDR` of the mesh (default: what the running daemon knows); with --import one behind the router; may be repeated")
	flags.BoolVar(&v.showKey, "show-key", false, "print the shared keys in full: they are secrets")
	flags.BoolVar(&v.checkScript, "check-script", false, "print the script for a router with two tunnels, and nothing else")
	flags.BoolVar(&v.bfd, "bfd", false, "watch the routes with BFD in place of the script (1.4, 1.5); the gateways need a BFD daemon of their own")
	flags.StringVar(&v.importFile, "import", "", "read the router's commands from `FILE`")
	flags.StringVarP(&v.output, "output", "o", "", "write the imported configuration to `FILE`, and its key files beside it; nothing is overwritten")
	flags.StringVar(&v.router, "router", "", "`ADDRESS` of the imported router, as the gateway reaches it")
	v.places.addRun(cmd)
	return cmd
}

// vyosCommand is the flags of one call.
type vyosCommand struct {
	places      places
	version     string
	second      string
	gateways    []string
	interfaces  []string
	prefixWords []string
	showKey     bool
	checkScript bool
	bfd         bool
	importFile  string
	output      string
	router      string

	release  vyos.Version
	prefixes []netip.Prefix
}

// usage finds all that is wrong with the command line, and reads what is not.
func (v *vyosCommand) usage(cmd *cobra.Command, args []string) error {
	var faults faultList
	if v.importFile != "" {
		v.refuseFlags(cmd, &faults, "is not for --import", "second-config", "gateway", "show-key", "check-script", "bfd", "config", "run")
		if len(args) > 0 {
			faults.add("--import reads the names from the router; want no NAME")
		}
		if len(v.interfaces) > 1 {
			faults.add("--import takes over one tunnel; want one --interface")
		}
		if v.output == "-" {
			faults.add("-o - is standard output, which is used without -o")
		}
	} else {
		v.refuseFlags(cmd, &faults, "is for --import", "output", "router")
		if len(args) == 0 {
			faults.add("want the NAME of an attachment, or --import FILE")
		}
		if len(args) == 1 && v.second != "" {
			faults.add("--second-config needs the second NAME")
		}
		if most := max(len(args), 1); len(v.gateways) > most || len(v.interfaces) > most {
			faults.add("want --gateway and --interface at most once for each NAME")
		}
		if v.version == "" && !v.checkScript {
			faults.add("want --vyos-version 1.2, 1.3, 1.4 or 1.5 (show version on the router)")
		}
	}
	if v.version != "" {
		release, err := vyos.ParseVersion(v.version)
		if err != nil {
			faults.add("--vyos-version: %v", err)
		}
		v.release = release
	}
	v.checkHosts(&faults)
	prefixes, err := parsePrefixes(v.prefixWords)
	if err != nil {
		faults = append(faults, strings.Split(err.Error(), "\n")...)
	}
	v.prefixes = prefixes
	return faults.usage()
}

func (v *vyosCommand) refuseFlags(cmd *cobra.Command, faults *faultList, why string, names ...string) {
	for _, name := range names {
		if cmd.Flags().Changed(name) {
			faults.add("--%s %s", name, why)
		}
	}
}

// checkHosts refuses what is neither an address nor a name, because it goes
// into a configuration as it is.
func (v *vyosCommand) checkHosts(faults *faultList) {
	check := func(flag, host string) {
		addr, err := netip.ParseAddr(host)
		foreign := strings.ContainsFunc(host, func(r rune) bool {
			return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && !strings.ContainsRune(".-_", r)
		})
		if err != nil && (host == "" || foreign) || err == nil && (addr.IsUnspecified() || addr.IsMulticast() || addr.Zone() != "") {
			faults.add("--%s %q: want an address or a name without port", flag, host)
		}
	}
	for _, host := range v.gateways {
		check("gateway", host)
	}
	if v.router != "" {
		check("router", v.router)
	}
}

// printRouter prints commands or script.
func (v *vyosCommand) printRouter(cmd *cobra.Command, args []string) error {
	r := &vyos.Router{Version: v.release, BFD: v.bfd}
	notes := cmd.ErrOrStderr()
	for i, name := range args {
		t, err := v.tunnel(notes, r, i, name)
		if err != nil {
			return err
		}
		r.Tunnels = append(r.Tunnels, t)
	}
	var err error
	if r.Prefixes, err = v.meshPrefixes(cmd.Context(), r); err != nil {
		return err
	}
	printer := r.Commands
	if v.checkScript {
		printer = r.CheckScript
	}
	out, err := printer()
	if err != nil {
		return refusals(err)
	}
	if !v.checkScript { // whoever wants the script had the commands, with their warnings
		for _, w := range r.Warnings() {
			fmt.Fprintln(notes, "warning:", w)
		}
	}
	fmt.Fprint(cmd.OutOrStdout(), out)
	return nil
}

// refusals gives each reason its cure as a hint.
func refusals(err error) error {
	found, ok := errors.AsType[vyos.Refusals](err)
	if !ok {
		return err
	}
	var all []error
	for _, r := range found {
		all = append(all, cli.Hint(r, r.Cure))
	}
	return errors.Join(all...)
}

// tunnel finds the attachment of a name and what belongs to it.
func (v *vyosCommand) tunnel(notes io.Writer, r *vyos.Router, i int, name string) (vyos.Tunnel, error) {
	file := v.places.config
	if i == 1 && v.second != "" {
		file = v.second
	}
	c, err := parseConfig(file)
	if err != nil {
		return vyos.Tunnel{}, explain(err, &places{config: file})
	}
	k := slices.IndexFunc(c.OpenVPN, func(o conf.OpenVPN) bool { return o.Name == name })
	if k < 0 {
		return vyos.Tunnel{}, unknownAttachment(c, name, i == 1 && v.second == "")
	}
	t := vyos.Tunnel{OpenVPN: c.OpenVPN[k], Interface: fmt.Sprintf("vtun%d", i+1)}
	if i < len(v.interfaces) {
		t.Interface = v.interfaces[i]
	}
	switch listen := t.Listen.Addr(); {
	case i < len(v.gateways):
		t.Gateway = v.gateways[i]
	case t.Transport == openvpn.TCPConnect: // the router is told nothing about the gateway
	case listen.IsValid() && !listen.IsUnspecified():
		t.Gateway = listen.String()
	case len(c.Endpoints) > 0:
		t.Gateway = c.Endpoints[0].Addr().String()
	}
	if t.TLS != nil {
		v.certificates(notes, r, &t)
	}
	if v.showKey {
		if t.Secrets, err = readSecrets(&t); err != nil {
			return vyos.Tunnel{}, cli.Hint(fmt.Errorf("--show-key: %w", err), "it must be here and readable; without --show-key no key is needed")
		}
	}
	return t, nil
}

func unknownAttachment(c *conf.Config, name string, second bool) error {
	err := fmt.Errorf("%s has no attachment %s", configName(c), name)
	var names []string
	for _, o := range c.OpenVPN {
		names = append(names, o.Name)
	}
	switch {
	case second:
		return cli.Hint(err, "--second-config FILE, a copy of the configuration of the gateway that has it")
	case len(names) > 0:
		return cli.Hint(err, "it has "+strings.Join(names, ", "))
	}
	return cli.Hint(err, "docs/openvpn.md says how to attach a router; meshd vyos --import FILE begins with what the router has")
}

func configName(c *conf.Config) string {
	if c.File == "" {
		return "the configuration (there is no " + conf.DefaultFile + ")"
	}
	return c.File
}

// parseConfig reads a configuration without its key files, which may be out of
// reach of whoever asks.
func parseConfig(file string) (*conf.Config, error) {
	name := file
	if name == "" {
		name = conf.DefaultFile
	}
	b, err := readBounded(name, conf.MaxSize)
	if file == "" && errors.Is(err, os.ErrNotExist) {
		return conf.Default(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return conf.Parse(name, b)
}

// readBounded reads a file and at most one byte more than limit of it.
func readBounded(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit+1))
}

// maxKeyFile bounds key files and certificates, in bytes.
const maxKeyFile = 64 << 10

// certificates reads what is public of the gateway's certificate. What cannot
// be read is named in the output, and here.
func (v *vyosCommand) certificates(notes io.Writer, r *vyos.Router, t *vyos.Tunnel) {
	for _, other := range r.Tunnels {
		// The file of another gateway's configuration would be that of this one.
		if other.TLS != nil && v.second != "" && other.TLS.Cert == t.TLS.Cert {
			fmt.Fprintf(notes, "note: %s and %s name one certificate, %s; keep the copy of the second configuration in a directory of its own, with its certificates\n", other.Name, t.Name, t.TLS.Cert)
			return
		}
	}
	if t.TLS.CA != "" {
		var err error
		if t.CA, err = readBounded(t.TLS.CA, maxKeyFile); err != nil {
			fmt.Fprintf(notes, "note: %s: authority not read: %v\n", t.Name, err)
		}
		return
	}
	text, err := readBounded(t.TLS.Cert, maxKeyFile)
	if err == nil {
		t.Fingerprint, err = fingerprint(text)
	}
	if err != nil {
		fmt.Fprintf(notes, "note: %s: certificate not read: %v\n", t.Name, err)
	}
}

func fingerprint(text []byte) (string, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return "", errors.New("no certificate in PEM form")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", err
	}
	return openvpn.Fingerprint(sha256.Sum256(cert.Raw)).String(), nil
}

// readSecrets reads the keys that both ends share.
func readSecrets(t *vyos.Tunnel) (*vyos.Secrets, error) {
	var err error
	s := new(vyos.Secrets)
	if t.Mode == conf.ModeStatic {
		if s.Static, err = readStaticKey(t.Key); err != nil {
			return nil, err
		}
	}
	if t.TLS != nil && t.TLS.WrapKey != "" {
		if s.Wrap, err = readStaticKey(t.TLS.WrapKey); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func readStaticKey(name string) (openvpn.StaticKey, error) {
	text, err := readBounded(name, maxKeyFile)
	if err != nil {
		return openvpn.StaticKey{}, err
	}
	key, err := openvpn.ParseStaticKey(text)
	if err != nil {
		return key, fmt.Errorf("%s: %w", name, err)
	}
	return key, nil
}

// meshPrefixes are what the router sends to the mesh: those of the command
// line, or of the daemon without those behind the router.
func (v *vyosCommand) meshPrefixes(ctx context.Context, r *vyos.Router) ([]netip.Prefix, error) {
	if len(v.prefixes) > 0 {
		return v.prefixes, nil
	}
	routes, err := v.places.client().Routes(ctx)
	if errors.Is(err, ctl.ErrNotRunning) {
		return nil, cli.Hint(fmt.Errorf("the prefixes of the mesh are not known: %w", err),
			"--prefix CIDR, once for each prefix of the mesh, or start the daemon: meshd run"+v.places.flags()+runFlag(&v.places))
	}
	if err != nil {
		return nil, explain(err, &v.places)
	}
	var out []netip.Prefix
	for _, route := range routes.Routes {
		behind := slices.ContainsFunc(r.Tunnels, func(t vyos.Tunnel) bool {
			return slices.ContainsFunc(t.Prefixes, func(p netip.Prefix) bool { return p.Overlaps(route.Prefix) })
		})
		if !behind {
			out = append(out, route.Prefix)
		}
	}
	if len(out) == 0 {
		return nil, cli.Hint(errors.New("the mesh has no prefix besides those behind the router"), "meshd routes shows what the mesh has; --prefix CIDR names what is still to come")
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return out, nil
}

// importRouter writes a configuration out of a router's.
func (v *vyosCommand) importRouter(cmd *cobra.Command) error {
	text, err := v.readRouter(cmd.InOrStdin())
	if err != nil {
		return err
	}
	o := vyos.ImportOptions{Version: v.release, Router: v.router, Prefixes: v.prefixes, Now: time.Now()}
	if len(v.interfaces) > 0 {
		o.Interface = v.interfaces[0]
	}
	im, err := vyos.Import(text, o)
	notes := cmd.ErrOrStderr()
	v.printWarnings(notes, im)
	switch {
	case errors.Is(err, vyos.ErrNoCommands):
		return cli.Hint(fmt.Errorf("%s: %w", v.importFile, err), "on the router: show configuration commands (what \"show configuration\" prints has braces, and is not read)")
	case err != nil:
		return cli.Hint(fmt.Errorf("%s: %w", v.importFile, err), "the warnings say why; the router's part begins with: set interfaces openvpn")
	}
	if v.output == "" {
		fmt.Fprintf(cmd.OutOrStdout(), "%s", im.Config)
		for _, f := range im.Files {
			fmt.Fprintf(notes, "note: %v is in the router's configuration; -o FILE writes it beside FILE\n", f)
		}
	} else if err := v.writeImported(notes, im); err != nil {
		return err
	}
	for _, m := range im.Missing {
		fmt.Fprintf(notes, "note: %s is needed beside the configuration (mode 0600): %s\n", m.Name, oneLine(m.From))
	}
	return nil
}

// readRouter reads the file or standard input.
func (v *vyosCommand) readRouter(stdin io.Reader) (string, error) {
	var text []byte
	var err error
	if v.importFile == "-" {
		text, err = io.ReadAll(io.LimitReader(stdin, vyos.MaxSize+1))
	} else {
		text, err = readBounded(v.importFile, vyos.MaxSize)
	}
	if err != nil {
		return "", fmt.Errorf("read the router's configuration: %w", err)
	}
	if len(text) > vyos.MaxSize {
		return "", fmt.Errorf("read the router's configuration: %s is larger than %d bytes", v.importFile, vyos.MaxSize)
	}
	return string(text), nil
}

func (v *vyosCommand) printWarnings(w io.Writer, im *vyos.Imported) {
	for _, warning := range im.Warnings {
		place := v.importFile
		if warning.Line > 0 {
			place = fmt.Sprintf("%s:%d", place, warning.Line)
		}
		fmt.Fprintf(w, "warning: %s: %s", place, oneLine(warning.Text))
		if warning.Cure != "" {
			fmt.Fprintf(w, " (%s)", oneLine(warning.Cure))
		}
		fmt.Fprintln(w)
	}
}

// oneLine is s without what would drive a terminal.
func oneLine(s string) string { return text(s).text }

// writeImported writes all files or none. It overwrites nothing.
func (v *vyosCommand) writeImported(notes io.Writer, im *vyos.Imported) (err error) {
	files := []struct {
		name string
		mode os.FileMode
		data []byte
	}{{v.output, 0o644, im.Config}}
	for _, f := range im.Files {
		files = append(files, struct {
			name string
			mode os.FileMode
			data []byte
		}{filepath.Join(filepath.Dir(v.output), f.Name), 0o600, f.Data})
	}
	var done []string
	defer func() {
		if err != nil {
			for _, name := range done {
				err = errors.Join(err, os.Remove(name))
			}
		}
	}()
	for _, f := range files {
		if err = writeNew(f.name, f.data, f.mode); errors.Is(err, os.ErrExist) {
			return cli.Hint(fmt.Errorf("%s exists already; nothing was written", f.name), "name another -o FILE, in a directory of its own")
		}
		if err != nil {
			return err
		}
		done = append(done, f.name)
	}
	for _, name := range done {
		fmt.Fprintf(notes, "wrote %s\n", name)
	}
	fmt.Fprintf(notes, "next: meshd check %s\n", shellWord(v.output))
	return nil
}

// writeNew writes a file that does not exist yet, or none.
func writeNew(name string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return nil
}
