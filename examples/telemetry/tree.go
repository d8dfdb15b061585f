package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// tree keeps the spans that ended and prints them as what they are.
type tree struct {
	mu    sync.Mutex // guards the rest
	spans []sdktrace.ReadOnlySpan
}

var _ sdktrace.SpanProcessor = (*tree)(nil)

// OnEnd implements [sdktrace.SpanProcessor].
func (t *tree) OnEnd(s sdktrace.ReadOnlySpan) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.spans = append(t.spans, s)
}

// OnStart implements [sdktrace.SpanProcessor].
func (t *tree) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

// ForceFlush implements [sdktrace.SpanProcessor].
func (t *tree) ForceFlush(context.Context) error { return nil }

// Shutdown implements [sdktrace.SpanProcessor].
func (t *tree) Shutdown(context.Context) error { return nil }

// print prints the spans, those with a parent below it, in the order in which
// they began.
func (t *tree) print(w io.Writer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	slices.SortFunc(t.spans, func(a, b sdktrace.ReadOnlySpan) int { return a.StartTime().Compare(b.StartTime()) })
	t.below(w, trace.SpanID{}, 0)
}

func (t *tree) below(w io.Writer, parent trace.SpanID, depth int) {
	for _, s := range t.spans {
		if s.Parent().SpanID() == parent {
			fmt.Fprintf(w, "%s%s%s\n", strings.Repeat("  ", depth), s.Name(), remarks(s))
			t.below(w, s.SpanContext().SpanID(), depth+1)
		}
	}
}

// remarks says what is worth saying of a span beside its name.
func remarks(s sdktrace.ReadOnlySpan) string {
	var b strings.Builder
	for _, a := range s.Attributes() {
		switch a.Key {
		case "messaging.echo.message.delivery_attempt":
			fmt.Fprintf(&b, ", attempt %d", a.Value.AsInt64())
		case "messaging.echo.outcome":
			fmt.Fprintf(&b, ", %s", a.Value.AsString())
		}
	}
	if text := s.Status().Description; text != "" {
		fmt.Fprintf(&b, ", error: %s", text)
	}
	return b.String()
}
