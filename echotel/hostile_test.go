package echotel_test

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/echobus/echo"
	"github.com/echobus/echo/echotel"
)

const good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// receive handles a message with headers that another program wrote, and
// returns the span of that.
func receive(t testing.TB, header map[string]string, opts ...echotel.Option) sdktrace.ReadOnlySpan {
	t.Helper()
	w := watch(t, opts...)
	bus := w.bus()
	var options []echo.PublishOption
	for name, value := range header {
		options = append(options, echo.WithHeader(name, value))
	}
	handle(t, bus, orders, 1, func(_ context.Context, m echo.Message[order]) error {
		for name, value := range header {
			assert.Equal(t, value, m.Headers[name], "what the publisher wrote")
		}
		return nil
	}, func() {
		require.NoError(t, echo.NewProducer(bus, orders).Publish(t.Context(), anOrder, options...))
	})
	w.allEnded()
	return w.only("process orders")
}

func TestMalformedContextIsIgnored(t *testing.T) {
	for name, value := range map[string]string{
		"empty":              "",
		"rubbish":            "rubbish",
		"too short":          good[:54],
		"too long":           good + "0",
		"more than there is": good + "-extra",
		"the last version":   "ff" + good[2:],
		"no trace":           "00-00000000000000000000000000000000-b7ad6b7169203331-01",
		"no span":            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
		"upper case":         strings.ToUpper(good),
		"not hexadecimal":    strings.Replace(good, "0af7", "0gf7", 1),
		"unknown flags":      good[:53] + "ff",
		"spaces":             " " + good,
		"other characters":   strings.Replace(good, "0af7", "0éf7", 1),
		"as long as may be":  strings.Repeat("0", 4<<10),
	} {
		t.Run(name, func(t *testing.T) {
			for _, opts := range [][]echotel.Option{nil, {echotel.WithProducerParent()}} {
				s := receive(t, map[string]string{"traceparent": value, "tracestate": "a=1"}, opts...)
				assert.Empty(t, s.Links())
				assert.False(t, s.Parent().IsValid())
				assert.Equal(t, codes.Unset, s.Status().Code)
			}
		})
	}
}

func TestHostileStateAndBaggageLeaveTheTraceAlone(t *testing.T) {
	defer otel.SetErrorHandler(otel.GetErrorHandler())
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(error) {}))
	for name, header := range map[string]map[string]string{
		"a malformed state":                   {"tracestate": "=,=,=;;;"},
		"a state of 4 KiB":                    {"tracestate": "a=" + strings.Repeat("x", 4<<10-2)},
		"a state of more members than may be": {"tracestate": strings.Repeat("a=1,", 500)},
		"malformed baggage":                   {"baggage": ";;;=,%%%"},
		"baggage of 4 KiB":                    {"baggage": "a=" + strings.Repeat("x", 4<<10-2)},
		"baggage of many properties":          {"baggage": "a=1" + strings.Repeat(";b", 2000)},
		"a version to come":                   {"traceparent": "01" + good[2:] + "-what-comes-after"},
	} {
		t.Run(name, func(t *testing.T) {
			if header["traceparent"] == "" {
				header["traceparent"] = good
			}
			s := receive(t, header)
			require.Len(t, s.Links(), 1)
			assert.Equal(t, good[3:35], s.Links()[0].SpanContext.TraceID().String())
			assert.Equal(t, good[36:52], s.Links()[0].SpanContext.SpanID().String())
		})
	}
}

// Whoever publishes must not decide what is sampled, unless told so.
func TestForeignFlagsDoNotSample(t *testing.T) {
	for name, c := range map[string]struct {
		opts  []echotel.Option
		spans int
	}{
		"by default":        {nil, 0},
		"as parent they do": {[]echotel.Option{echotel.WithProducerParent()}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := watch(t)
			tracers := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(w.spans), sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.NeverSample())))
			w.Telemetry = echotel.New(append(c.opts, echotel.WithTracerProvider(tracers))...)
			bus := w.bus()
			handle(t, bus, orders, 1, nothing[order], func() {
				require.NoError(t, echo.NewProducer(bus, orders).Publish(t.Context(), anOrder, echo.WithHeader("traceparent", good)))
			})
			assert.Len(t, w.named("process orders"), c.spans)
		})
	}
}

// What a program that is not sampled publishes says so.
func TestContextThatIsNotSampledIsCarried(t *testing.T) {
	w := watch(t)
	w.Telemetry = echotel.New(echotel.WithTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample()))))
	bus := w.bus()
	handle(t, bus, orders, 3, func(ctx context.Context, m echo.Message[order]) error {
		assert.Regexp(t, `^00-[0-9a-f]{32}-[0-9a-f]{16}-00$`, m.Headers["traceparent"])
		assert.False(t, trace.SpanFromContext(ctx).IsRecording())
		return nil
	}, func() {
		producer := echo.NewProducer(bus, orders)
		require.NoError(t, producer.Publish(t.Context(), anOrder))
		require.NoError(t, producer.PublishBatch(t.Context(), make([]order, 2)))
	})
}

func TestWithoutProvidersMessagesAreLeftAlone(t *testing.T) {
	bus := echo.New(echotel.New(echotel.WithTracerProvider(nil), echotel.WithMeterProvider(nil), echotel.WithPropagator(nil)).Options()...)
	defer bus.Close(t.Context())
	handle(t, bus, orders, 3, func(_ context.Context, m echo.Message[order]) error {
		assert.Nil(t, m.Headers)
		return nil
	}, func() {
		producer := echo.NewProducer(bus, orders)
		require.NoError(t, producer.Publish(t.Context(), anOrder))
		require.NoError(t, producer.PublishBatch(t.Context(), make([]order, 2)))
	})
}

// FuzzHeaders has any headers published and received.
func FuzzHeaders(f *testing.F) {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(error) {}))
	f.Add(good, "a=1,b=2", "user=u-7;p", true)
	f.Add("", "", "", false)
	f.Add("00-\xff", "=", "%", true)
	f.Fuzz(func(t *testing.T, parent, state, bag string, asParent bool) {
		w := watch(t)
		if asParent {
			w = watch(t, echotel.WithProducerParent())
		}
		bus := w.bus()
		consumer, err := echo.Subscribe(t.Context(), bus, orders)
		require.NoError(t, err)
		err = echo.NewProducer(bus, orders).Publish(t.Context(), anOrder,
			echo.WithHeader("traceparent", parent), echo.WithHeader("tracestate", state), echo.WithHeader("baggage", bag))
		if err != nil {
			return // no header for echo itself
		}
		require.NoError(t, consumer.Run(t.Context(), func(_ context.Context, m echo.Message[order]) error {
			assert.Equal(t, map[string]string{"traceparent": parent, "tracestate": state, "baggage": bag}, m.Headers)
			return consumer.Close()
		}))
		s := w.only("process orders")
		for _, l := range s.Links() {
			assert.True(t, l.SpanContext.IsValid())
		}
		w.allEnded()
	})
}
