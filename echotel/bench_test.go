package echotel_test

import (
	"context"
	"testing"

	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/echobus/echo"
	"github.com/echobus/echo/echotel"
)

// BenchmarkPublishToHandler measures what telemetry adds to a message in memory.
func BenchmarkPublishToHandler(b *testing.B) {
	meters := metric.NewMeterProvider(metric.WithReader(metric.NewManualReader()))
	never := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample()))
	exporter := tracetest.NewInMemoryExporter()
	always := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
	with := func(opts ...echotel.Option) []echo.BusOption { return echotel.New(opts...).Options() }
	nothing := echotel.WithMeterProvider(metricnoop.NewMeterProvider())
	for _, c := range []struct {
		name string
		opts []echo.BusOption
	}{
		{"bare", nil},
		{"hook and middleware that do nothing", []echo.BusOption{
			echo.WithPublishHook(func(next echo.SendFunc) echo.SendFunc { return next }),
			echo.WithMiddleware(func(next echo.Handler[any]) echo.Handler[any] { return next }),
		}},
		{"providers that do nothing", with(echotel.WithTracerProvider(tracenoop.NewTracerProvider()), nothing)},
		{"never sampled, no metrics", with(echotel.WithTracerProvider(never), nothing)},
		{"metrics, no tracer", with(echotel.WithTracerProvider(tracenoop.NewTracerProvider()), echotel.WithMeterProvider(meters))},
		{"never sampled, metrics", with(echotel.WithTracerProvider(never), echotel.WithMeterProvider(meters))},
		{"all exported in memory, metrics", with(echotel.WithTracerProvider(always), echotel.WithMeterProvider(meters))},
	} {
		b.Run(c.name, func(b *testing.B) {
			bus := echo.New(c.opts...)
			defer bus.Close(context.Background())
			b.Cleanup(exporter.Reset)
			publishToHandler(b, bus)
		})
	}
}

func publishToHandler(b *testing.B, bus *echo.Bus) {
	ctx := context.Background()
	consumer, err := echo.Subscribe(ctx, bus, orders)
	if err != nil {
		b.Fatal(err)
	}
	handled, done := 0, make(chan struct{})
	end := make(chan int, 1)
	go func() {
		defer close(done)
		n := -1
		consumer.Run(ctx, func(context.Context, echo.Message[order]) error {
			handled++
			if n < 0 {
				select {
				case n = <-end:
				default:
				}
			}
			if handled == n {
				consumer.Close()
			}
			return nil
		})
	}()
	producer := echo.NewProducer(bus, orders)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		producer.Publish(ctx, anOrder)
		n++
	}
	end <- n + 1
	producer.Publish(ctx, anOrder)
	<-done
}
