package vyos

import (
	_ "embed"
	"fmt"
	"net/netip"
	"strings"
	"text/template"
)

//go:embed check.sh.tmpl
var checkText string

var checkTemplate = template.Must(template.New("check").Option("missingkey=error").Parse(checkText))

// CheckScript is a POSIX shell script for the router that tests the tunnels
// and moves the routes to the first one that works. It runs on any Linux with
// ip and ping, so that Version does not matter. The error is a Refusals.
func (r *Router) CheckScript() (string, error) {
	found := r.choice()
	if len(r.Tunnels) < 2 {
		found = append(found, &Refusal{"", "the check script chooses between tunnels, and here is one", "name a second attachment"})
	}
	through, not := r.routed()
	if len(through) == 0 && len(not) > 0 {
		found = append(found, &Refusal{"", fmt.Sprintf("no prefix of the mesh fits the addresses of both tunnels (%s)", joinPrefixes(not)), "\"local6:\" and \"peer6:\" for IPv6 prefixes, \"local:\" and \"peer:\" for IPv4"})
	}
	if len(found) > 0 {
		return "", found
	}
	var tunnels []string
	for _, t := range r.Tunnels {
		far := t.Tunnel.Local
		if !far.IsValid() {
			far = t.Tunnel.Local6
		}
		tunnels = append(tunnels, t.Interface+","+far.String())
	}
	var b strings.Builder
	err := checkTemplate.Execute(&b, map[string]string{
		"Names":    r.names(),
		"Tunnels":  strings.Join(tunnels, " "),
		"Prefixes": joinPrefixes(through),
	})
	return b.String(), err
}

func joinPrefixes(list []netip.Prefix) string {
	words := make([]string, len(list))
	for i, p := range list {
		words[i] = p.String()
	}
	return strings.Join(words, " ")
}
