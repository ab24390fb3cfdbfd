package vyos

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/planetmesh/planetmesh/meshd/internal/conf"
)

// newPair is a router with two tunnels for both IP versions.
func newPair() Router {
	first := newTunnel(conf.ModeStatic)
	addIPv6(&first)
	return Router{Version: V14, Tunnels: []Tunnel{first, first.standby()}, Prefixes: meshPrefixes()}
}

func TestCheckScriptIsShellOfAllVersions(t *testing.T) {
	r := newPair()
	script, err := r.CheckScript()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "check.sh", script)
	for v := V12; v <= V15; v++ {
		r := Router{Version: v, Tunnels: []Tunnel{newTunnel(conf.ModeStatic), newTunnel(conf.ModeStatic).standby()}, Prefixes: meshPrefixes()}
		script, err := r.CheckScript()
		if err != nil {
			t.Fatal(err)
		}
		c := exec.CommandContext(t.Context(), "sh", "-n")
		c.Stdin = strings.NewReader(script)
		if out, err := c.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%v: sh -n: %v\n%s", v, err, out)
		}
		if !strings.Contains(script, "tunnels='vtun1,10.90.0.1 vtun2,10.91.0.1'\nprefixes='192.168.10.0/24 192.168.20.0/24'\n") {
			t.Errorf("%v: tunnels and prefixes are not as they should be:\n%s", v, script)
		}
	}
}

func TestCheckScriptNeedsAChoice(t *testing.T) {
	r := newPair()
	r.Tunnels = r.Tunnels[:1]
	out, err := r.CheckScript()
	expectRefusal(t, out, err, "chooses between tunnels")

	first := newTunnel(conf.ModeStatic)
	r = Router{Version: V14, Tunnels: []Tunnel{first, first.standby()}, Prefixes: meshPrefixes()[2:]}
	out, err = r.CheckScript()
	expectRefusal(t, out, err, "no prefix of the mesh fits")
}

func TestCheckScriptRefusesOptionsThatItDoesNotKnow(t *testing.T) {
	r := newPair()
	script, err := r.CheckScript()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"-x"}, {"-r", "many"}, {"-s", "-1"}, {"-t", "1m"}, {"-t", ""}, {"-r"}} {
		c := exec.CommandContext(t.Context(), "sh", append([]string{"-s", "--"}, args...)...)
		c.Stdin = strings.NewReader(script)
		out, err := c.CombinedOutput()
		if c.ProcessState.ExitCode() != 2 || len(out) == 0 {
			t.Errorf("%q: %v %s", args, err, out)
		}
	}
}
