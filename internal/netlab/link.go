package netlab

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// Link is what one direction of the link between a host and its network does to packets. The zero value is a link without
// faults, which costs nothing. It is plain data and may be compared with ==.
//
// Packets pass the parts in this order: Rate, Reorder, Delay with Jitter; then Loss and MTU. (On the way to the host Loss
// and MTU stand behind the others too.)
type Link struct {
	// Delay is the time that each packet travels, up to a minute.
	Delay time.Duration
	// Jitter varies the delay: each packet's is drawn evenly from Delay-Jitter to Delay+Jitter, and is never below zero.
	// Packets keep their order, so in a dense stream, where one waits for the one before it, most delays are near the upper end.
	Jitter time.Duration
	// Loss is the share of the packets that is dropped at random, each by itself: 0.01 is one of a hundred, 1 is all
	// of them. What is below one in a million is none.
	Loss float64
	// Reorder is the share of the packets that three later ones overtake: enough for TCP to take them for lost. Where
	// fewer follow, the packet is held back for 10 ms.
	Reorder float64
	// Rate is the capacity in bits per second, counted in Ethernet frames without preamble and checksum; 0 means
	// unlimited. What comes in faster waits, up to 100 ms or 16 full packets, whichever is more, and is dropped
	// beyond that.
	Rate int64
	// MTU is the length in bytes of the largest IP packet that passes; larger ones vanish without an error to anybody, as
	// on paths that block ICMP. 0 means no limit below that of the interface.
	MTU int
}

// Cut is a link that nothing passes. The interface stays up: a host does not see that it is cut off.
var Cut = Link{Loss: 1}

// Limits of a link.
const (
	maxLinkDelay = time.Minute
	minLinkRate  = 1000      // slower than any modem: more likely a mistaken unit
	lossSteps    = 1_000_000 // resolution of Loss
)

// faults says what is wrong with the values, each with the name of the field.
func (l Link) faults() []string {
	var faults []string
	note := func(bad bool, format string, args ...any) {
		if bad {
			faults = append(faults, fmt.Sprintf(format, args...))
		}
	}
	note(l.Delay < 0 || l.Delay > maxLinkDelay, "Delay %v is not within 0 to %v", l.Delay, maxLinkDelay)
	note(l.Jitter < 0 || l.Jitter > maxLinkDelay, "Jitter %v is not within 0 to %v", l.Jitter, maxLinkDelay)
	note(math.IsNaN(l.Loss) || l.Loss < 0 || l.Loss > 1, "Loss %v is not within 0 to 1", l.Loss)
	note(math.IsNaN(l.Reorder) || l.Reorder < 0 || l.Reorder > 1, "Reorder %v is not within 0 to 1", l.Reorder)
	note(l.Rate != 0 && l.Rate < minLinkRate, "Rate %d is not 0 and not at least %d bits per second", l.Rate, minLinkRate)
	note(l.MTU != 0 && (l.MTU < 68 || l.MTU > 65535), "MTU %d is not 0 and not within 68 to 65535", l.MTU)
	return faults
}

// shaped reports whether packets have to pass a forwarder, for the kernel can only drop them.
func (l Link) shaped() bool { return l.Delay != 0 || l.Jitter != 0 || l.Reorder != 0 || l.Rate != 0 }

// String is "delay 20ms ±5ms, loss 1%, reorder 2%, 10 Mbit/s, mtu 1300", or "no faults".
func (l Link) String() string {
	var parts []string
	if l.Delay != 0 || l.Jitter != 0 {
		part := fmt.Sprintf("delay %v", l.Delay)
		if l.Jitter != 0 {
			part += fmt.Sprintf(" ±%v", l.Jitter)
		}
		parts = append(parts, part)
	}
	if l.Loss != 0 {
		parts = append(parts, fmt.Sprintf("loss %.4g%%", l.Loss*100))
	}
	if l.Reorder != 0 {
		parts = append(parts, fmt.Sprintf("reorder %.4g%%", l.Reorder*100))
	}
	if l.Rate != 0 {
		parts = append(parts, fmt.Sprintf("%.4g Mbit/s", float64(l.Rate)/1e6))
	}
	if l.MTU != 0 {
		parts = append(parts, fmt.Sprintf("mtu %d", l.MTU))
	}
	if parts == nil {
		return "no faults"
	}
	return strings.Join(parts, ", ")
}

// rules are the nftables statements behind a match on the interface that packets of this link arrive on.
func (l Link) rules() []string {
	var rules []string
	switch n := int(math.Round(l.Loss * lossSteps)); {
	case n >= lossSteps:
		rules = append(rules, "drop")
	case n > 0:
		rules = append(rules, fmt.Sprintf("numgen random mod %d < %d drop", lossSteps, n))
	}
	if l.MTU != 0 {
		rules = append(rules, fmt.Sprintf("meta length > %d drop", l.MTU))
	}
	return rules
}
