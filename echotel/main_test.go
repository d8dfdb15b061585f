package echotel_test

import (
	"context"
	"log"
	"os"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"github.com/echobus/echo"
	"github.com/echobus/echo/echotel"
	"github.com/echobus/echo/internal/redistest"
)

// shared is a server for tests that do it no harm.
var shared *redistest.Server

func TestMain(m *testing.M) {
	redis.SetLogger(silent{})
	server, err := redistest.New()
	if err != nil {
		log.Fatal(err)
	}
	shared = server
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		server.Close()
		os.Exit(code)
	}), goleak.IgnoreAnyFunction("github.com/echobus/echo/internal/redistest.launch.func1"))
}

// silent keeps go-redis quiet.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

type order struct {
	ID    string
	Total float64
}

var (
	orders   = echo.NewTopic[order]("orders")
	invoices = echo.NewTopic[order]("invoices")
	anOrder  = order{"o-1", 12.5}
)

// watched is telemetry whose spans and metrics a test sees.
type watched struct {
	*echotel.Telemetry
	t      testing.TB
	spans  *tracetest.SpanRecorder
	reader *metric.ManualReader
}

func watch(t testing.TB, opts ...echotel.Option) *watched {
	w := &watched{t: t, spans: tracetest.NewSpanRecorder(), reader: metric.NewManualReader()}
	tracers := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(w.spans), sdktrace.WithSampler(sdktrace.AlwaysSample()))
	meters := metric.NewMeterProvider(metric.WithReader(w.reader))
	w.Telemetry = echotel.New(append([]echotel.Option{echotel.WithTracerProvider(tracers), echotel.WithMeterProvider(meters)}, opts...)...)
	return w
}

// bus returns a bus with the telemetry that the test closes.
func (w *watched) bus(opts ...echo.BusOption) *echo.Bus {
	bus := echo.New(append(w.Options(), opts...)...)
	w.t.Cleanup(func() { bus.Close(context.Background()) })
	return bus
}

// named returns the ended spans with a name, in the order in which they ended.
func (w *watched) named(name string) (spans []sdktrace.ReadOnlySpan) {
	for _, s := range w.spans.Ended() {
		if s.Name() == name {
			spans = append(spans, s)
		}
	}
	return spans
}

// only returns the one ended span with a name.
func (w *watched) only(name string) sdktrace.ReadOnlySpan {
	w.t.Helper()
	spans := w.named(name)
	require.Len(w.t, spans, 1, name)
	return spans[0]
}

// allEnded checks that no span was left open.
func (w *watched) allEnded() {
	w.t.Helper()
	require.Len(w.t, w.spans.Ended(), len(w.spans.Started()), "spans that ended, of those that began")
}

// attrs are the attributes of a span.
func attrs(s sdktrace.ReadOnlySpan) map[string]any { return values(s.Attributes()) }

func values(kvs []attribute.KeyValue) map[string]any {
	m := make(map[string]any)
	for _, kv := range kvs {
		m[string(kv.Key)] = kv.Value.AsInterface()
	}
	return m
}

// linked are the spans that a span has links to.
func linked(s sdktrace.ReadOnlySpan) (ids []trace.SpanID) {
	for _, l := range s.Links() {
		ids = append(ids, l.SpanContext.SpanID())
	}
	return ids
}

// point is a data point: its value, or how often something was measured.
type point struct {
	attrs map[string]any
	value int64
	sum   float64
}

// points returns what an instrument has measured.
func (w *watched) points(name string) (ps []point) {
	w.t.Helper()
	var all metricdata.ResourceMetrics
	require.NoError(w.t, w.reader.Collect(context.Background(), &all))
	for _, s := range all.ScopeMetrics {
		for _, m := range s.Metrics {
			if m.Name != name {
				continue
			}
			switch d := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range d.DataPoints {
					ps = append(ps, point{values(p.Attributes.ToSlice()), p.Value, 0})
				}
			case metricdata.Histogram[float64]:
				for _, p := range d.DataPoints {
					ps = append(ps, point{values(p.Attributes.ToSlice()), int64(p.Count), p.Sum})
				}
			}
		}
	}
	return ps
}

// handle runs h for n messages of a topic, failed attempts included, after
// publish was called, and waits for them.
func handle[M any](t testing.TB, bus *echo.Bus, topic *echo.Topic[M], n int, h echo.Handler[M], publish func()) {
	t.Helper()
	c, err := echo.Subscribe(context.Background(), bus, topic, echo.WithGroup("g"), echo.WithRetry(echo.Retry{Table: []time.Duration{0}}))
	require.NoError(t, err)
	handled := make(chan struct{}, n)
	done := make(chan error, 1)
	go func() {
		done <- c.Run(context.Background(), func(ctx context.Context, m echo.Message[M]) error {
			defer func() { handled <- struct{}{} }()
			return h(ctx, m)
		})
	}()
	publish()
	patience := time.After(10 * time.Second)
	for i := range n {
		select {
		case <-handled:
		case <-patience:
			require.NoError(t, c.Close())
			require.FailNow(t, "too few messages", "%d of %d were handled", i, n)
		}
	}
	require.NoError(t, c.Close())
	require.NoError(t, <-done) // after the middleware
}

// nothing is a handler.
func nothing[M any](context.Context, echo.Message[M]) error { return nil }
