package kubeadm

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// The minor versions of Kubernetes 1 that kubeinit builds.
const (
	MinMinor = 34
	MaxMinor = 37
)

// Version is a version of Kubernetes 1, with its patch.
type Version struct {
	Minor, Patch int
	Pre          string // "rc.1"; empty for a release
}

var versionForm = regexp.MustCompile(`^v1\.(0|[1-9][0-9]{0,3})\.(0|[1-9][0-9]{0,3})(?:-([0-9A-Za-z.-]{1,40}))?(?:\+[0-9A-Za-z.-]{1,40})?$`)

// ParseVersion reads what "kubeadm version -o short" prints, such as "v1.37.2"
// and a line end. "kubelet --version" prints the same after "Kubernetes ".
func ParseVersion(text string) (Version, error) {
	text = strings.TrimPrefix(strings.TrimSpace(text), "Kubernetes ")
	m := versionForm.FindStringSubmatch(text)
	if m == nil {
		return Version{}, fmt.Errorf("version %.60q: want one like v1.37.2", text)
	}
	minor, _ := strconv.Atoi(m[1]) // the form has at most four digits
	patch, _ := strconv.Atoi(m[2])
	return Version{minor, patch, m[3]}, nil
}

// String returns it as kubeadm writes it: "v1.37.2".
func (v Version) String() string {
	text := fmt.Sprintf("v1.%d.%d", v.Minor, v.Patch)
	if v.Pre != "" {
		text += "-" + v.Pre
	}
	return text
}

func (v Version) check() error {
	if v.Minor < MinMinor || v.Minor > MaxMinor {
		return fmt.Errorf("kubernetes %s: want 1.%d to 1.%d", v, MinMinor, MaxMinor)
	}
	return nil
}

// PauseImage returns the image of the container that holds a pod together, as
// kubeadm of this version would pull it. repository is empty for kubeadm's
// default.
func PauseImage(v Version, repository string) string {
	if repository == "" {
		repository = "registry.k8s.io"
	}
	// PauseVersion in cmd/kubeadm/app/constants of Kubernetes' source.
	tag := "3.10.1"
	if v.Minor >= 36 {
		tag = "3.10.2"
	}
	return repository + "/pause:" + tag
}
