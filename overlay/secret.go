package overlay

import (
	"fmt"
	"log/slog"
)

// Secret is text that must not end up in a log. Every way to print it gives
// "[redacted]"; Reveal gives the text. The zero value holds nothing.
type Secret struct{ text string }

// Reveal returns the secret itself, for the one place that hands it over.
func (s Secret) Reveal() string { return s.text }

// String returns "[redacted]".
func (s Secret) String() string { return "[redacted]" }

// Format implements fmt.Formatter for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[redacted]")) }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// MarshalText implements encoding.TextMarshaler, so that JSON is safe too.
func (s Secret) MarshalText() ([]byte, error) { return []byte("[redacted]"), nil }
