package phase

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
)

// Lock keeps others from changing the same cluster. It is a file on the first
// control plane, in a directory that a reboot empties:
//
//	LEASE TOKEN SINCE HOLDER
//	60 C3UTRW… 2026-11-23T02:00:00Z alice@laptop
//
// The holder touches it three times per lease. One that was not touched for its
// lease belongs to a program that was killed, and is taken over. Only the host's
// clock is used. Every act on the file happens under flock(1) on its directory, so
// that two who want to take over cannot both succeed, and a killed one holds up
// nobody.
type Lock struct {
	h     host.Host
	path  string
	token string
	lease time.Duration
}

// LockOptions say how to lock.
type LockOptions struct {
	// Cluster is the cluster's name.
	Cluster string
	// Holder tells others who it is, such as alice@laptop.
	Holder string
	// Lease is how long the lock of a program that was killed lasts; 0 means one
	// minute. It is rounded up to whole seconds.
	Lease time.Duration
	// Break takes the lock from a holder that is alive (--break-lock).
	Break bool
	// Dir is where the file is; empty means /run.
	Dir string
}

// defaultLease bears the loss of two touches in a row and a slow line between.
const defaultLease = time.Minute

// LockedError says that somebody else changes the cluster.
type LockedError struct {
	Host, Holder string
	Since        string        // when they began, as they wrote it
	Age          time.Duration // since they last said that they are alive
	Lease        time.Duration
}

// Error names the holder.
func (e *LockedError) Error() string {
	return fmt.Sprintf("%s: the cluster is locked by %s since %s, heard of %v ago", e.Host, e.Holder, e.Since, e.Age)
}

// ErrLockLost is the cause of a context of Hold that ended because somebody else
// took the lock.
var ErrLockLost = errors.New("somebody else took the cluster's lock")

// The scripts get the file's name as $1 and the token as $2. Their exit status 75
// (EX_TEMPFAIL of sysexits.h) means that somebody else has the lock.
const (
	lockedCode = 75

	lockScript = `set -eu
umask 077
new=$(cat)
if [ -e "$1" ]; then
	read -r lease token rest <"$1" || lease=0 # its maker was killed meanwhile
	[ "$token" != "$2" ] || exit 0 # the answer was lost
	age=$(($(date +%s) - $(stat -c %Y -- "$1")))
	echo "$age $lease $token $rest"
	[ "$3" = break ] || [ "$age" -ge "$lease" ] || exit 75
	rm -f -- "$1"
fi
set -C
printf '%s\n' "$new" >"$1"
`
	touchScript = `read -r lease token rest <"$1" && [ "$token" = "$2" ] || exit 75
touch -c -- "$1"
`
	unlockScript = `read -r lease token rest <"$1" && [ "$token" = "$2" ] || exit 75
rm -f -- "$1"
`
)

// Acquire takes the cluster's lock. The error is *LockedError if somebody else
// has it and is alive. A warning tells from whom it was taken, and is empty if it
// was free.
func Acquire(ctx context.Context, h host.Host, o LockOptions) (l *Lock, warning string, err error) {
	if o.Lease <= 0 {
		o.Lease = defaultLease
	}
	seconds := (o.Lease + time.Second - 1) / time.Second
	l = &Lock{h: h, path: path.Join(cmp.Or(o.Dir, "/run"), "kubeinit-"+o.Cluster+".lock"), token: rand.Text(), lease: seconds * time.Second}
	if strings.ContainsAny(o.Cluster, "/\x00") {
		return nil, "", fmt.Errorf("%q cannot be the name of a cluster", o.Cluster)
	}
	how := "wait"
	if o.Break {
		how = "break"
	}
	holder := strings.Join(strings.Fields(o.Holder), " ")
	content := fmt.Sprintf("%d %s %s %s", seconds, l.token, time.Now().UTC().Format(time.RFC3339), holder)
	var out string
	err = persist(ctx, func() (err error) {
		out, err = l.script(ctx, lockScript, content, how)
		return err
	})
	other := parseLock(h.Name(), out)
	switch {
	case isLocked(err) && other != nil:
		return nil, "", cli.Hint(other, fmt.Sprintf("wait for it to end; a killed one gives way after %v; kubeinit --break-lock takes the lock by force", other.Lease))
	case err != nil:
		return nil, "", fmt.Errorf("lock the cluster: %w", err)
	case other != nil && other.Age < other.Lease:
		warning = fmt.Sprintf("the lock of %s was broken; they were heard of %v ago", other.Holder, other.Age)
	case other != nil:
		warning = fmt.Sprintf("the lock of %s since %s was taken over: they were not heard of for %v", other.Holder, other.Since, other.Age)
	}
	return l, warning, nil
}

// script runs a script under flock(1).
func (l *Lock) script(ctx context.Context, script, stdin string, more ...string) (string, error) {
	args := []string{"flock", "-w", "30", path.Dir(l.path), "sh", "-c", script, "kubeinit-lock", l.path, l.token}
	out, err := l.h.Run(ctx, host.Command{Args: append(args, more...), Stdin: strings.NewReader(stdin)})
	if exit, ran := errors.AsType[*host.ExitError](err); ran && out.Stdout == "" {
		return strings.Join(exit.Tail, "\n"), err
	}
	return out.Stdout, err
}

// parseLock reads what the script says about another's lock: its age in seconds
// and its content. It is nil if there was none.
func parseLock(name, text string) *LockedError {
	fields := strings.Fields(text)
	if len(fields) == 0 {
		return nil
	}
	e := &LockedError{Host: name, Holder: "somebody", Since: "some time"}
	for i, to := range []*time.Duration{&e.Age, &e.Lease} {
		if len(fields) > i {
			n, _ := strconv.ParseInt(fields[i], 10, 32) // rubbish counts as 0
			*to = time.Duration(n) * time.Second
		}
	}
	if len(fields) > 4 {
		e.Since, e.Holder = fields[3], strings.Join(fields[4:], " ")
	}
	return e
}

func isLocked(err error) bool {
	exit, ran := errors.AsType[*host.ExitError](err)
	return ran && exit.Code == lockedCode
}

// Hold keeps the lock until release is called, which gives it up. The context
// that Hold returns ends when ctx does, or with cause ErrLockLost when somebody
// else took the lock, or when the host could not be reached for a whole lease.
func (l *Lock) Hold(ctx context.Context) (held context.Context, release func() error) {
	held, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	stop := make(chan struct{})
	go func() { // ends with release or with held
		defer close(done)
		l.touch(held, stop, cancel)
	}()
	return held, func() error {
		close(stop)
		<-done
		cancel(nil)
		return l.Release(context.WithoutCancel(ctx))
	}
}

// touch says again and again that the holder is alive.
func (l *Lock) touch(ctx context.Context, stop <-chan struct{}, lost context.CancelCauseFunc) {
	tick := time.NewTicker(l.lease / 3)
	defer tick.Stop()
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-stop:
			return
		case <-tick.C:
		}
		try, cancel := context.WithTimeout(ctx, l.lease*2/3) // one that hangs ends with the lease
		_, err := l.script(try, touchScript, "")
		cancel()
		switch {
		case err == nil:
			last = time.Now()
		case isLocked(err):
			lost(ErrLockLost)
		case time.Since(last) >= l.lease:
			lost(fmt.Errorf("the cluster's lock could not be kept: %w", err))
		}
	}
}

// Release gives the lock up. It is no error if somebody else has it by now.
func (l *Lock) Release(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, l.lease)
	defer cancel()
	err := persist(ctx, func() error {
		_, err := l.script(ctx, unlockScript, "")
		return err
	})
	if err != nil && !isLocked(err) {
		return fmt.Errorf("unlock the cluster: %w", err)
	}
	return nil
}
