// Package echotel gives a bus OpenTelemetry: spans for what is published and
// processed, a trace context that travels with each message, and metrics.
//
//	tel := echotel.New()
//	bus := echo.New(tel.Options()...)
//
// Names and attributes are those of the OpenTelemetry semantic conventions for
// messaging, version 1.43. They are in development there, and may change with it.
//
// # Spans
//
// Publish makes a span "send <topic>", whose context the message carries in the
// headers traceparent, tracestate and baggage. PublishBatch makes a span
// "create <topic>" for each message, whose context that message carries, and
// one span "send <topic>" with links to them; [WithoutCreateSpans] leaves the
// former out. A message that the publisher gave the headers of a context keeps
// them: it gets no span of its own, and "send" has a link to that context.
//
// A handler of Consumer.Run is called in a span "process <topic>", one for each
// attempt, with a link to the context of the message. It belongs to the trace
// of Run's context, or begins one; [WithProducerParent] makes it a child of the
// message's context instead. [Start] and [StartBatch] make this span in loops
// over Messages and Batches.
//
// # Hostile messages
//
// Headers that come from outside are data: what is no context is ignored. What
// is one says nothing about sampling here, unless [WithProducerParent] is given.
// Baggage goes into the handler's context, and with it wherever the program
// propagates that; give [WithPropagator] propagation.TraceContext{} alone where
// publishers are not trusted so far.
//
// Publishing does not fail because of this package: what does not fit into the
// limits of a message is left out and counted.
package echotel

import (
	"sync"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/echobus/echo"
)

// scope names this package as the one that makes spans and metrics.
const scope = "github.com/echobus/echo/echotel"

// Telemetry makes spans and metrics of buses. It holds no resources but a few
// kilobytes for each topic, and is safe for concurrent use.
type Telemetry struct {
	tracer     trace.Tracer
	meter      metric.Meter
	propagator propagation.TextMapPropagator
	fields     []string // the headers that the propagator uses
	limits     echo.Limits
	creates    bool    // a batch has a span for each message
	parent     bool    // the message's context is the parent of its processing
	ratio      float64 // of what is looked at that belongs to no trace
	metrics    metrics

	mu     sync.Mutex // guards the rest
	topics map[consumed]*topic
}

// New returns the telemetry of one or more buses. By default it uses the
// global providers of package otel, also those that are set later, and
// propagates trace context and baggage as the W3C says.
//
// An instrument that the meter provider refuses is reported to otel.Handle and
// stays silent.
func New(opts ...Option) *Telemetry {
	cfg := config{
		tracers:    otel.GetTracerProvider(),
		meters:     otel.GetMeterProvider(),
		propagator: propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}),
		creates:    true,
		ratio:      1,
	}
	for _, o := range opts {
		o(&cfg)
	}
	meter := cfg.meters.Meter(scope, metric.WithSchemaURL(semconv.SchemaURL))
	return &Telemetry{
		meter:      meter,
		tracer:     cfg.tracers.Tracer(scope, trace.WithSchemaURL(semconv.SchemaURL)),
		propagator: cfg.propagator,
		fields:     cfg.propagator.Fields(),
		limits:     withDefaults(cfg.limits),
		creates:    cfg.creates,
		parent:     cfg.parent,
		ratio:      min(cfg.ratio, 1),
		metrics:    newMetrics(meter),
		topics:     make(map[consumed]*topic),
	}
}

// Options returns what a bus needs: a hook around publishing and a middleware
// around handlers. Give them to [echo.New] before other hooks and middleware,
// so that the spans cover what those do.
func (t *Telemetry) Options() []echo.BusOption {
	return []echo.BusOption{echo.WithPublishHook(t.hook), echo.WithMiddleware(t.middleware)}
}

// Option is an option of [New].
type Option func(*config)

type config struct {
	tracers    trace.TracerProvider
	meters     metric.MeterProvider
	propagator propagation.TextMapPropagator
	limits     echo.Limits
	creates    bool
	parent     bool
	ratio      float64
}

// WithTracerProvider sets who makes spans; the default, also for nil, is
// otel.GetTracerProvider.
func WithTracerProvider(p trace.TracerProvider) Option {
	return func(c *config) {
		if p != nil {
			c.tracers = p
		}
	}
}

// WithMeterProvider sets who makes instruments; the default, also for nil, is
// otel.GetMeterProvider.
func WithMeterProvider(p metric.MeterProvider) Option {
	return func(c *config) {
		if p != nil {
			c.meters = p
		}
	}
}

// WithPropagator sets how a context is written to headers and read from them;
// the default, also for nil, is W3C trace context and baggage. It is not
// otel.GetTextMapPropagator, which does nothing until it is set.
func WithPropagator(p propagation.TextMapPropagator) Option {
	return func(c *config) {
		if p != nil {
			c.propagator = p
		}
	}
}

// WithLimits says which limits the bus has, if [echo.WithLimits] was given and
// bounds headers more tightly than the defaults: a header too many would make
// the message unreadable at its consumers. Zero fields mean the defaults.
func WithLimits(l echo.Limits) Option {
	return func(c *config) { c.limits = l }
}

// WithoutCreateSpans makes PublishBatch have one span, whose context all of its
// messages carry. The default is a span for each message beside it.
func WithoutCreateSpans() Option {
	return func(c *config) { c.creates = false }
}

// WithSampleRatio has only a part of the messages looked at, such as 0.01 for one
// in a hundred: by chance, where it is published and where it is handled, unless
// it belongs to a trace that is sampled. The others are counted, and neither
// traced nor timed, which costs a fraction of what an SDK takes to find out that
// a span is not sampled: that matters where a message takes less than some
// microseconds. The sampler of the tracer provider decides about those that are
// looked at. The default is 1; less than 0 means 0.
func WithSampleRatio(part float64) Option {
	return func(c *config) { c.ratio = part }
}

// WithProducerParent makes the context that a message carries the parent of
// its "process" span, so that one trace shows a message's whole way, through
// many hops; the span that Run's context has, if any, becomes a link. It lets
// publishers decide what is sampled here, if the sampler follows the parent.
// The default is a link to the message's context. Batches have links always.
func WithProducerParent() Option {
	return func(c *config) { c.parent = true }
}
