package cli

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"syscall"
)

// Signals derives a context that SIGINT or SIGTERM cancels; context.Cause then names the signal. The second signal is
// not caught any more and ends the process, whatever it is busy with. A signal that the process was started with
// ignored (nohup, a shell's background job) stays ignored. The returned function ends the watch and must be called.
func Signals(parent context.Context) (context.Context, context.CancelFunc) {
	watched := slices.DeleteFunc([]os.Signal{os.Interrupt, syscall.SIGTERM}, signal.Ignored)
	if len(watched) == 0 {
		return context.WithCancel(parent) // no signals would mean all signals to NotifyContext
	}
	ctx, stop := signal.NotifyContext(parent, watched...)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}
