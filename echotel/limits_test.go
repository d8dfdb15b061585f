package echotel_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/echobus/echo"
	"github.com/echobus/echo/echotel"
	"github.com/echobus/echo/memstream"
)

// crowd returns options that add n headers of some bytes each, names included.
func crowd(n, size int) (opts []echo.PublishOption) {
	for i := range n {
		name := fmt.Sprintf("h%03d", i)
		opts = append(opts, echo.WithHeader(name, strings.Repeat("x", size-len(name))))
	}
	return opts
}

// members returns baggage whose header has about some bytes.
func members(t testing.TB, bytes int) baggage.Baggage {
	t.Helper()
	m, err := baggage.NewMemberRaw("b", strings.Repeat("x", bytes-2))
	require.NoError(t, err)
	b, err := baggage.New(m)
	require.NoError(t, err)
	return b
}

// withState returns a context with a span whose state a header carries.
func withState(t testing.TB, ctx context.Context) context.Context {
	t.Helper()
	state, err := trace.ParseTraceState("vendor=" + strings.Repeat("s", 200))
	require.NoError(t, err)
	sc := trace.SpanContextFromContext(ctx).WithTraceID(trace.TraceID{1}).WithSpanID(trace.SpanID{2}).WithTraceState(state)
	return trace.ContextWithSpanContext(ctx, sc)
}

// A message must reach its consumer whatever telemetry would like to add, for
// its consumer checks the limits too.
func TestWhatDoesNotFitIsLeftOutAndCounted(t *testing.T) {
	all := []string{"baggage", "traceparent", "tracestate"}
	for name, c := range map[string]struct {
		headers []echo.PublishOption
		baggage int
		limits  echo.Limits
		carries []string
	}{
		"everything fits":                 {nil, 100, echo.Limits{}, all},
		"baggage of 4 KiB":                {nil, 4 << 10, echo.Limits{}, all},
		"baggage over 4 KiB":              {nil, 4<<10 + 1, echo.Limits{}, []string{"traceparent", "tracestate"}},
		"baggage of 8 KiB":                {nil, 8 << 10, echo.Limits{}, []string{"traceparent", "tracestate"}},
		"61 headers":                      {crowd(61, 10), 100, echo.Limits{}, all},
		"62 headers":                      {crowd(62, 10), 100, echo.Limits{}, []string{"traceparent", "tracestate"}},
		"63 headers":                      {crowd(63, 10), 100, echo.Limits{}, []string{"traceparent"}},
		"64 headers":                      {crowd(64, 10), 100, echo.Limits{}, nil},
		"so many bytes that nothing fits": {crowd(8, 2<<10), 100, echo.Limits{}, nil},
		"just room for the trace":         {append(crowd(7, 2<<10), crowdMore(2<<10-66)), 100, echo.Limits{}, []string{"traceparent"}},
		"one byte less":                   {append(crowd(7, 2<<10), crowdMore(2<<10-65)), 100, echo.Limits{}, nil},
		"limits of the bus's own":         {crowd(2, 10), 100, echo.Limits{Headers: 3}, []string{"traceparent"}},
		"no value may be so long":         {nil, 10, echo.Limits{HeaderValue: 54}, nil},
		"no name may be so long":          {nil, 10, echo.Limits{HeaderName: 10}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := watch(t, echotel.WithLimits(c.limits))
			bus := w.bus(echo.WithLimits(c.limits))
			ctx := withState(t, baggage.ContextWithBaggage(t.Context(), members(t, c.baggage)))
			handle(t, bus, orders, 3, func(_ context.Context, m echo.Message[order]) error {
				maps.DeleteFunc(m.Headers, func(name, _ string) bool { return !slices.Contains(all, name) })
				assert.ElementsMatch(t, c.carries, slices.Collect(maps.Keys(m.Headers)))
				return nil
			}, func() {
				producer := echo.NewProducer(bus, orders)
				require.NoError(t, producer.Publish(ctx, anOrder, c.headers...))
				require.NoError(t, producer.PublishBatch(ctx, make([]order, 2), c.headers...))
			})
			dropped := map[any]int64{}
			for _, p := range w.points("messaging.echo.context.dropped_headers") {
				dropped[p.attrs["messaging.echo.header.name"]] = p.value
			}
			want := map[any]int64{}
			for _, name := range all {
				if !slices.Contains(c.carries, name) {
					want[name] = 3
				}
			}
			assert.Equal(t, want, dropped)
			w.allEnded()
		})
	}
}

// crowdMore adds one more header of so many bytes.
func crowdMore(size int) echo.PublishOption {
	return echo.WithHeader("more", strings.Repeat("x", size-len("more")))
}

// A transport may have bounds beside echo's limits.
func TestMessageThatIsTooLargeWithOurHeadersGoesWithout(t *testing.T) {
	for name, opts := range map[string][]echotel.Option{"create spans": nil, "one context": {echotel.WithoutCreateSpans()}} {
		t.Run(name, func(t *testing.T) {
			w := watch(t, opts...)
			bus := w.bus(echo.WithTransport(memstream.New(memstream.WithMaxBytes(1000))))
			text := echo.NewTopic[string]("orders", echo.WithCodec(echo.Text))
			large, small := strings.Repeat("x", 960), "small"
			var carried []bool
			handle(t, bus, text, 4, func(_ context.Context, m echo.Message[string]) error {
				carried = append(carried, m.Headers["traceparent"] != "")
				return nil
			}, func() {
				producer := echo.NewProducer(bus, text)
				require.NoError(t, producer.Publish(t.Context(), large))
				require.NoError(t, producer.PublishBatch(t.Context(), []string{small, large, small}))
				err := producer.PublishBatch(t.Context(), []string{strings.Repeat("x", 2000), small})
				require.ErrorIs(t, err, echo.ErrTooLarge, "what is too large by itself")
			})
			assert.Equal(t, []bool{false, true, false, true}, carried)
			w.allEnded()
		})
	}
}

// odd is a propagator of somebody else's, who knows nothing of limits.
type odd struct{ propagation.TraceContext }

func (odd) Inject(_ context.Context, c propagation.TextMapCarrier) {
	c.Set("odd name", "v")
	c.Set("x-controls", "a\r\nb")
	c.Set("x-bytes", "\xff")
	c.Set("x-good", "1")
	c.Set("x-good", c.Get("x-good")+"2")
	c.Set("", c.Get("x-nothing"))
	c.Set("x-keys", fmt.Sprint(len(c.Keys())))
}

func TestWhatIsNoHeaderIsLeftOut(t *testing.T) {
	w := watch(t, echotel.WithPropagator(odd{}))
	bus := w.bus()
	handle(t, bus, orders, 1, func(_ context.Context, m echo.Message[order]) error {
		assert.Equal(t, map[string]string{"x-good": "12", "x-keys": "5"}, m.Headers)
		return nil
	}, func() {
		require.NoError(t, echo.NewProducer(bus, orders).Publish(t.Context(), anOrder))
	})
	assert.Len(t, w.points("messaging.echo.context.dropped_headers"), 4)
}

func TestTelemetryIsSharedByBuses(t *testing.T) {
	w := watch(t)
	one, two := w.bus(), w.bus()
	for _, bus := range []*echo.Bus{one, two} {
		handle(t, bus, orders, 1, nothing[order], func() {
			require.NoError(t, echo.NewProducer(bus, orders).Publish(t.Context(), anOrder))
		})
	}
	assert.Len(t, w.named("process orders"), 2)
}
