package actiontest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
)

// program finds what a command does. Commands of Handle come first.
func (m *Machine) program(name string) (Program, bool) {
	if p, found := m.commands[name]; found {
		return p, true
	}
	p, found := map[string]Program{
		"install": m.install, "sync": quiet, "sh": m.sh, "ln": m.ln, "mv": m.mv, "rm": m.rm, "rmdir": m.rmdir,
		"chmod": m.chmod, "chown": m.chown, "sha256sum": m.sha256sum, "sysctl": m.sysctl, "modprobe": m.modprobe,
		"systemctl": m.systemctl, "apt-get": m.aptGet, "apt-mark": m.aptMark, "dpkg-query": m.dpkgQuery,
		"ctr": m.ctr, "true": quiet, "false": func([]string, []byte) (string, int) { return "", 1 },
	}[name]
	return p, found
}

func quiet([]string, []byte) (string, int) { return "", 0 }

// options parts arguments into flags, with the values of those that take one,
// and the rest.
func options(args []string, valued string) (flags map[string]string, rest []string) {
	flags = map[string]string{}
	for i := 0; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "--":
			return flags, append(rest, args[i+1:]...)
		case strings.HasPrefix(a, "--"):
			key, value, _ := strings.Cut(a, "=")
			flags[key] = value
		case strings.HasPrefix(a, "-") && strings.Contains(valued, a[1:]) && i+1 < len(args):
			flags[a] = args[i+1]
			i++
		case strings.HasPrefix(a, "-") && len(a) > 1:
			flags[a] = ""
		default:
			rest = append(rest, a)
		}
	}
	return flags, rest
}

func octal(s string) fs.FileMode {
	n, _ := strconv.ParseUint(s, 8, 32)
	mode := fs.FileMode(n & 0o777)
	for bit, flag := range map[uint64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if n&bit != 0 {
			mode |= flag
		}
	}
	return mode
}

func (m *Machine) install(args []string, _ []byte) (string, int) {
	flags, rest := options(args, "mog")
	uid, _ := strconv.Atoi(flags["-o"])
	gid, _ := strconv.Atoi(flags["-g"])
	mode := octal(flags["-m"])
	if _, dir := flags["-d"]; dir {
		for _, d := range rest {
			m.parents(d)
			if n, found := m.files[d]; found && !n.mode.IsDir() {
				return "install: not a directory", 1
			}
			m.files[d] = node{mode: fs.ModeDir | mode, uid: uid, gid: gid}
		}
		return "", 0
	}
	from, found := m.files[rest[0]]
	if !found {
		return "install: cannot stat " + rest[0] + ": No such file or directory", 1
	}
	if _, found := m.files[path.Dir(rest[1])]; !found {
		if _, makes := flags["-D"]; !makes {
			return "install: cannot create " + rest[1], 1
		}
		m.parents(rest[1])
	}
	m.files[rest[1]] = node{mode: mode, uid: uid, gid: gid, data: from.data}
	return "", 0
}

// sh knows only the script that adds to the journal.
func (m *Machine) sh(args []string, stdin []byte) (string, int) {
	if len(args) != 5 || args[2] != "kubeinit-journal" {
		return "sh: unknown script", 127
	}
	if args[4] != strconv.Itoa(len(stdin)) {
		return "", 74
	}
	m.append(args[3], stdin)
	return "", 0
}

func (m *Machine) ln(args []string, _ []byte) (string, int) {
	flags, rest := options(args, "")
	if _, symbolic := flags["-s"]; !symbolic {
		return "ln: no hard links here", 1
	}
	m.files[rest[1]] = node{mode: fs.ModeSymlink | 0o777, link: rest[0]}
	return "", 0
}

func (m *Machine) mv(args []string, _ []byte) (string, int) {
	_, rest := options(args, "")
	n, found := m.files[rest[0]]
	if !found {
		return "mv: cannot stat " + rest[0], 1
	}
	delete(m.files, rest[0])
	m.files[rest[1]] = n
	return "", 0
}

func (m *Machine) rm(args []string, _ []byte) (string, int) {
	_, rest := options(args, "")
	for _, name := range rest {
		for _, b := range m.below(name) {
			delete(m.files, b)
		}
		delete(m.files, name)
	}
	return "", 0
}

func (m *Machine) rmdir(args []string, _ []byte) (string, int) {
	_, rest := options(args, "")
	for _, name := range rest {
		if n, found := m.files[name]; !found || !n.mode.IsDir() {
			return "rmdir: no directory " + name, 1
		}
		if len(m.below(name)) == 0 {
			delete(m.files, name)
		}
	}
	return "", 0
}

func (m *Machine) chmod(args []string, _ []byte) (string, int) {
	_, rest := options(args, "")
	n, found := m.files[rest[1]]
	if !found {
		return "chmod: cannot access " + rest[1], 1
	}
	n.mode = n.mode.Type() | octal(rest[0])
	m.files[rest[1]] = n
	return "", 0
}

func (m *Machine) chown(args []string, _ []byte) (string, int) {
	_, rest := options(args, "")
	n, found := m.files[rest[1]]
	if !found {
		return "chown: cannot access " + rest[1], 1
	}
	u, g, _ := strings.Cut(rest[0], ":")
	n.uid, _ = strconv.Atoi(u)
	n.gid, _ = strconv.Atoi(g)
	m.files[rest[1]] = n
	return "", 0
}

func (m *Machine) sha256sum(args []string, _ []byte) (string, int) {
	_, rest := options(args, "")
	n, found := m.files[rest[0]]
	if !found {
		return "sha256sum: " + rest[0] + ": No such file or directory", 1
	}
	sum := sha256.Sum256([]byte(n.data))
	return hex.EncodeToString(sum[:]) + "  " + rest[0] + "\n", 0
}

func (m *Machine) sysctl(args []string, _ []byte) (string, int) {
	flags, rest := options(args, "")
	_, ignores := flags["-e"]
	_, writes := flags["-w"]
	var out strings.Builder
	for _, arg := range rest {
		key, value, _ := strings.Cut(arg, "=")
		old, found := m.sysctls[key]
		switch {
		case !found && ignores:
		case !found:
			return "sysctl: cannot stat /proc/sys/" + strings.ReplaceAll(key, ".", "/"), 255
		case writes:
			m.sysctls[key] = strings.Join(strings.Fields(value), "\t") // as the kernel prints numbers
		default:
			out.WriteString(key + " = " + old + "\n")
		}
	}
	return out.String(), 0
}

func (m *Machine) modprobe(args []string, _ []byte) (string, int) {
	flags, rest := options(args, "")
	name := strings.ReplaceAll(rest[0], "-", "_")
	_, looks := flags["-n"]
	if _, removes := flags["-r"]; removes {
		delete(m.modules, name)
		delete(m.files, "/sys/module/"+name)
		return "", 0
	}
	if name == "nonexistent" {
		return "modprobe: FATAL: Module nonexistent not found in directory /lib/modules/6.12", 1
	}
	_, loaded := m.files["/sys/module/"+name]
	if looks && !loaded && name != "silent" { // silent is built in and shows nowhere
		return "insmod /lib/modules/6.12/" + name + ".ko\n", 0
	}
	if !looks && !loaded {
		m.modules[name] = true
		m.files["/sys/module/"+name] = node{mode: fs.ModeDir | 0o755}
	}
	return "", 0
}

func (m *Machine) systemctl(args []string, _ []byte) (string, int) {
	_, rest := options(args, "")
	verb := rest[0]
	if verb == "daemon-reload" {
		for name, u := range m.units {
			u.loaded = m.files["/etc/systemd/system/"+name].data
			m.units[name] = u
		}
		return "", 0
	}
	name := rest[1]
	file, found := m.files["/etc/systemd/system/"+name]
	u := m.units[name]
	if verb == "show" {
		return showUnit(u, found), 0
	}
	if !found && !u.active {
		return "Unit " + name + " not found.", 5
	}
	if code := u.do(verb, file.data); code != 0 {
		return "Job for " + name + " failed.", code
	}
	m.units[name] = u
	return "", 0
}

func showUnit(u unit, found bool) string {
	load, file, active := "not-found", "", "inactive"
	if found {
		load, file = "loaded", "disabled"
	}
	if u.enabled {
		file = "enabled"
	}
	if u.masked {
		load, file = "masked", "masked"
	}
	if u.active {
		active = "active"
	}
	return fmt.Sprintf("LoadState=%s\nActiveState=%s\nUnitFileState=%s\n", load, active, file)
}

// do carries out a verb. A unit whose file says "broken" does not start.
func (u *unit) do(verb, file string) int {
	switch verb {
	case "enable", "disable":
		u.enabled = verb == "enable"
	case "stop":
		u.active = false
	case "start", "restart":
		if strings.Contains(file, "broken") {
			u.active = false
			return 1
		}
		if verb == "restart" || !u.active {
			u.starts++
		}
		if u.loaded == "" {
			u.loaded = file
		}
		u.active = true
	default:
		return 1
	}
	return 0
}

func (m *Machine) aptGet(args []string, _ []byte) (string, int) {
	flags, rest := options(args, "o")
	_, simulate := flags["--simulate"]
	var out strings.Builder
	for _, spec := range rest[min(1, len(rest)):] {
		name, version, _ := strings.Cut(spec, "=")
		if rest[0] == "purge" {
			delete(m.packages, name)
			continue
		}
		if !slices.Contains(m.archive[name], version) {
			return "E: Version '" + version + "' for '" + name + "' was not found", 100
		}
		if m.packages[name] != version {
			m.inst(&out, name, version, simulate)
		}
		for _, d := range m.depends[name] {
			if m.packages[d] == "" {
				m.inst(&out, d, m.archive[d][0], simulate)
			}
		}
	}
	return out.String(), 0
}

func (m *Machine) inst(out *strings.Builder, name, version string, simulate bool) {
	old := ""
	if v := m.packages[name]; v != "" {
		old = "[" + v + "] "
	}
	fmt.Fprintf(out, "Inst %s %s(%s test:1 [amd64])\n", name, old, version)
	if !simulate {
		m.packages[name] = version
	}
}

func (m *Machine) aptMark(args []string, _ []byte) (string, int) {
	for _, name := range args[1:] {
		switch args[0] {
		case "hold":
			m.held[name] = true
		case "unhold":
			delete(m.held, name)
		}
	}
	if args[0] == "showhold" {
		return strings.Join(slices.Sorted(maps.Keys(m.held)), "\n"), 0
	}
	return "", 0
}

func (m *Machine) dpkgQuery(args []string, _ []byte) (string, int) {
	_, rest := options(args, "f")
	if len(rest) == 0 {
		rest = slices.Sorted(maps.Keys(m.packages))
	}
	var out strings.Builder
	code := 0
	for _, name := range rest {
		v, found := m.packages[name]
		if !found {
			out.WriteString("dpkg-query: no packages found matching " + name + "\n")
			code = 1
			continue
		}
		out.WriteString(name + " " + v + " installed\n")
	}
	return out.String(), code
}

func (m *Machine) ctr(args []string, stdin []byte) (string, int) {
	_, rest := options(args, "n")
	switch strings.Join(rest[:2], " ") {
	case "images ls":
		var out strings.Builder
		for ref := range m.images {
			out.WriteString(ref + "\n")
		}
		return out.String(), 0
	case "images import":
		data := string(stdin)
		if rest[2] != "-" {
			n, found := m.files[rest[2]]
			if !found {
				return "ctr: open " + rest[2] + ": no such file or directory", 1
			}
			data = n.data
		}
		for ref := range strings.FieldsSeq(data) {
			m.images[ref] = true
		}
		return "", 0
	case "images rm":
		for _, ref := range rest[2:] {
			delete(m.images, ref)
		}
		return "", 0
	}
	return "ctr: unknown command", 1
}
