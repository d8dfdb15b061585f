package echotel

import (
	"context"
	"maps"
	"slices"
	"sync"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// headers of W3C Trace Context and W3C Baggage.
const (
	traceparent = "traceparent"
	tracestate  = "tracestate"
	baggage     = "baggage"
)

// field is a header that carries a part of a context.
type field struct{ name, value string }

// fields are what a propagator wrote, what matters most first.
type fields []field

// written lends out the memory for fields.
var written = sync.Pool{New: func() any { return new(fields) }}

var _ propagation.TextMapCarrier = (*fields)(nil)

// Get implements [propagation.TextMapCarrier].
func (f *fields) Get(name string) string {
	for i := range *f {
		if (*f)[i].name == name {
			return (*f)[i].value
		}
	}
	return ""
}

// Set implements [propagation.TextMapCarrier].
func (f *fields) Set(name, value string) {
	for i := range *f {
		if (*f)[i].name == name {
			(*f)[i].value = value
			return
		}
	}
	*f = append(*f, field{name, value})
}

// Keys implements [propagation.TextMapCarrier].
func (f *fields) Keys() []string {
	names := make([]string, len(*f))
	for i := range *f {
		names[i] = (*f)[i].name
	}
	return names
}

// write returns what a context is in headers; free takes it back.
func (t *Telemetry) write(ctx context.Context) *fields {
	f := written.Get().(*fields)
	t.propagator.Inject(ctx, f)
	if len(*f) > 1 {
		slices.SortStableFunc(*f, func(a, b field) int { return rank(a.name) - rank(b.name) })
	}
	return f
}

func (f *fields) free() {
	clear(*f)
	*f = (*f)[:0]
	written.Put(f)
}

// rank orders headers by what is to be kept when not all fit.
func rank(name string) int {
	switch name {
	case traceparent:
		return 0
	case tracestate:
		return 1
	case baggage:
		return 3
	}
	return 2
}

// add returns header with the fields that it does not have yet and that fit
// into the limits. It changes no map that it was given, as others may have it
// too.
func (t *Telemetry) add(ctx context.Context, topic string, header map[string]string, fs fields) map[string]string {
	if len(fs) == 0 {
		return header
	}
	r := t.room(header)
	out := header
	for i, f := range fs {
		if _, given := header[f.name]; given {
			continue
		}
		if !t.valid(f) || !r.take(f) {
			t.metrics.drop(ctx, topic, f.name)
			if f.name != traceparent {
				continue
			}
			for _, f := range fs[i+1:] { // what belongs to it goes with it
				t.metrics.drop(ctx, topic, f.name)
			}
			return header
		}
		if len(out) == len(header) { // the first one
			out = make(map[string]string, len(header)+len(fs)-i)
			maps.Copy(out, header)
		}
		out[f.name] = f.value
	}
	return out
}

// read returns ctx with what a header carries besides a span, and the context
// of that span, which is not valid if there is none.
func (t *Telemetry) read(ctx context.Context, header map[string]string) (context.Context, trace.SpanContext) {
	if !t.carried(header) {
		return ctx, trace.SpanContext{}
	}
	here := trace.SpanFromContext(ctx)
	if here.SpanContext().IsValid() {
		ctx = trace.ContextWithSpanContext(ctx, trace.SpanContext{})
	}
	ctx = t.propagator.Extract(ctx, propagation.MapCarrier(header))
	carried := trace.SpanContextFromContext(ctx)
	if carried.IsValid() || here.SpanContext().IsValid() {
		ctx = trace.ContextWithSpan(ctx, here)
	}
	return ctx, carried
}

// carried reports whether a header has any of the propagator's fields.
func (t *Telemetry) carried(header map[string]string) bool {
	if len(header) == 0 {
		return false
	}
	for _, name := range t.fields {
		if _, ok := header[name]; ok {
			return true
		}
	}
	return false
}

// onlyTrace reports whether a header carries no more of a context than W3C Trace
// Context does: no baggage, and nothing of other propagators.
func (t *Telemetry) onlyTrace(header map[string]string) bool {
	for _, name := range t.fields {
		if name != traceparent && name != tracestate {
			if _, ok := header[name]; ok {
				return false
			}
		}
	}
	return true
}
