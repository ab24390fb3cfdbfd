//go:build linux

package kubelab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// collectScript says what a host is like; commands that do not work there are part of it.
const collectScript = `
for c in "date" "systemctl list-units --failed --no-pager" "systemctl list-jobs --no-pager" "ip -d address" "ip route show table all" \
	"ip rule" "nft list ruleset" "ss -tanp" "ps auxf" "mount" "cat /etc/hosts" "ls -lR /etc/kubernetes /etc/cni /var/lib/kubeinit /run/kubeinit" \
	"ctr -n k8s.io containers ls" "meshd status" "kubectl get nodes -o wide" "kubectl get pods -A -o wide" "kubectl get events -A" \
	"journalctl --no-pager -o short-precise"; do
	echo "### $c"
	timeout 20 $c 2>&1
done
for log in /var/log/pods/*/*/*.log; do
	[ -e "$log" ] || continue
	echo "### $log"
	tail -n 200 "$log"
done
`

// collectTimeout bounds what is spent on one host.
const collectTimeout = 3 * time.Minute

// Collect writes what a person wants to see after a failure into a folder, a file for every host that has power: journal,
// units, network, pods and their logs, and what the machine's console got. It goes on where a host does not answer, even if
// ctx is done already; the errors are joined.
func (w *World) Collect(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), collectTimeout)
	defer cancel()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return w.each(func(h *Host) error {
		console, err := os.ReadFile(h.box.spec.Console)
		text := fmt.Sprintf("### console\n%s%s", h.box.log(), console)
		if h.On() {
			var out []byte
			var runErr error
			if out, runErr = h.Command(ctx, "sh", "-c", collectScript).CombinedOutput(); runErr != nil {
				err = errors.Join(err, fmt.Errorf("collect from %s: %w", h.Name(), runErr))
			}
			text += string(out)
		}
		return errors.Join(err, os.WriteFile(filepath.Join(dir, h.Name()+".txt"), []byte(text), 0o600))
	})
}

// log is what labinit, and a process 1 other than systemd, have written.
func (b *box) log() string {
	if b.proc == nil {
		return ""
	}
	return b.proc.Log()
}
