package containerd

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Version is a version of containerd.
type Version struct{ Major, Minor, Patch int }

var versionForm = regexp.MustCompile(`^v?([0-9]{1,4})\.([0-9]{1,4})\.([0-9]{1,4})([^0-9].*)?$`)

// ParseVersion reads what "containerd --version" prints: the program's name,
// its module, the version and sometimes more.
func ParseVersion(output string) (Version, error) {
	fields := strings.Fields(output)
	if len(fields) < 3 || fields[0] != "containerd" {
		return Version{}, fmt.Errorf("version %.80q: want one of containerd", output)
	}
	m := versionForm.FindStringSubmatch(fields[2])
	if m == nil {
		return Version{}, fmt.Errorf("version %.80q: want one like 1.7.2 or v2.0.1", fields[2])
	}
	var n [3]int
	for i := range n {
		n[i], _ = strconv.Atoi(m[i+1]) // the form has at most four digits
	}
	return Version{n[0], n[1], n[2]}, nil
}

// String returns it as "2.0.1".
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch) }

// Schema is the version of config.toml that is written for it: 2 for 1.6 and
// 1.7, 3 for 2.x (2.3 and later read it too); 0 if kubeinit knows none.
func (v Version) Schema() int {
	switch {
	case v.Major == 1 && v.Minor >= 6:
		return 2
	case v.Major == 2:
		return 3
	}
	return 0
}

// Supported returns why Kubernetes 1.minor cannot run on this containerd, or
// nil. 1.35 is the last that works with containerd 1.
func Supported(minor int, v Version) error {
	switch {
	case v.Schema() == 0:
		return fmt.Errorf("containerd %s: want 1.6, 1.7 or 2", v)
	case minor >= 36 && v.Major < 2:
		return fmt.Errorf("containerd %s: Kubernetes 1.%d wants 2.0 or later", v, minor)
	}
	return nil
}
