package echotel_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/echobus/echo"
	"github.com/echobus/echo/echotel"
)

var greetings = echo.NewTopic[string]("greetings")

// handleOne handles a greeting that is published first.
func handleOne(bus *echo.Bus, h echo.Handler[string]) {
	ctx := context.Background()
	consumer, err := echo.Subscribe(ctx, bus, greetings)
	if err != nil {
		panic(err)
	}
	if err := echo.NewProducer(bus, greetings).Publish(ctx, "hello"); err != nil {
		panic(err)
	}
	consumer.Run(ctx, func(ctx context.Context, m echo.Message[string]) error {
		defer consumer.Close() // one is enough for an example
		return h(ctx, m)
	})
}

// printSpans prints what was recorded.
func printSpans(r *tracetest.SpanRecorder) {
	for _, s := range r.Ended() {
		fmt.Printf("%s: %d links, status %s\n", s.Name(), len(s.Links()), s.Status().Code)
	}
}

func Example() {
	recorder := tracetest.NewSpanRecorder() // in place of an exporter
	tracers := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))

	tel := echotel.New(echotel.WithTracerProvider(tracers))
	bus := echo.New(tel.Options()...)
	defer bus.Close(context.Background())

	handleOne(bus, func(_ context.Context, m echo.Message[string]) error {
		fmt.Println(m.Value)
		return nil
	})
	printSpans(recorder)
	// Output:
	// hello
	// send greetings: 0 links, status Unset
	// process greetings: 1 links, status Unset
}

func ExampleNew_metrics() {
	reader := metric.NewManualReader() // in place of an exporter
	meters := metric.NewMeterProvider(metric.WithReader(reader))
	bus := echo.New(echotel.New(echotel.WithMeterProvider(meters)).Options()...)
	defer bus.Close(context.Background())

	handleOne(bus, func(context.Context, echo.Message[string]) error { return nil })

	var all metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &all); err != nil {
		panic(err)
	}
	for _, m := range all.ScopeMetrics[0].Metrics {
		fmt.Println(m.Name, m.Unit)
	}
	// Unordered output:
	// messaging.client.sent.messages {message}
	// messaging.client.operation.duration s
	// messaging.client.consumed.messages {message}
	// messaging.process.duration s
}

func ExampleTelemetry_Options() {
	recorder := tracetest.NewSpanRecorder()
	tracers := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	tel := echotel.New(echotel.WithTracerProvider(tracers), echotel.WithProducerParent())

	// Other options come after, and so inside of the spans.
	bus := echo.New(append(tel.Options(), echo.WithLimits(echo.Limits{Payload: 1 << 10}))...)
	defer bus.Close(context.Background())

	handleOne(bus, func(context.Context, echo.Message[string]) error { return nil })
	spans := recorder.Ended()
	fmt.Println(spans[1].Name(), "is a child of", spans[0].Name(), "-", spans[1].Parent().SpanID() == spans[0].SpanContext().SpanID())
	// Output: process greetings is a child of send greetings - true
}

func ExampleStart() {
	ctx := context.Background()
	recorder := tracetest.NewSpanRecorder()
	tel := echotel.New(echotel.WithTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))))
	bus := echo.New(tel.Options()...)
	defer bus.Close(ctx)

	consumer, err := echo.Subscribe(ctx, bus, greetings)
	if err != nil {
		panic(err)
	}
	if err := echo.NewProducer(bus, greetings).Publish(ctx, "hello"); err != nil {
		panic(err)
	}
	greet := func(context.Context, string) error { return errors.New("nobody is at home") }
	for m, err := range consumer.Messages(ctx) {
		if err != nil {
			panic(err)
		}
		ctx, end := echotel.Start(ctx, tel, m)
		err := greet(ctx, m.Value)
		end(err)
		m.Ack(ctx) // whatever came of it
		break
	}
	printSpans(recorder)
	// Output:
	// send greetings: 0 links, status Unset
	// process greetings: 1 links, status Error
}

func ExampleStartBatch() {
	ctx := context.Background()
	recorder := tracetest.NewSpanRecorder()
	tel := echotel.New(echotel.WithTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))))
	bus := echo.New(tel.Options()...)
	defer bus.Close(ctx)

	consumer, err := echo.Subscribe(ctx, bus, greetings)
	if err != nil {
		panic(err)
	}
	if err := echo.NewProducer(bus, greetings).PublishBatch(ctx, []string{"hello", "hi"}); err != nil {
		panic(err)
	}
	for b, err := range consumer.Batches(ctx, 2, time.Second) {
		if err != nil {
			panic(err)
		}
		ctx, end := echotel.StartBatch(ctx, tel, b)
		end(b.Ack(ctx))
		break
	}
	printSpans(recorder)
	// Output:
	// create greetings: 0 links, status Unset
	// create greetings: 0 links, status Unset
	// send greetings: 2 links, status Unset
	// process greetings: 2 links, status Unset
}

func ExampleWithoutCreateSpans() {
	ctx := context.Background()
	recorder := tracetest.NewSpanRecorder()
	tracers := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	bus := echo.New(echotel.New(echotel.WithTracerProvider(tracers), echotel.WithoutCreateSpans()).Options()...)
	defer bus.Close(ctx)

	if err := echo.NewProducer(bus, greetings).PublishBatch(ctx, []string{"hello", "hi"}); err != nil {
		panic(err)
	}
	printSpans(recorder)
	// Output: send greetings: 0 links, status Unset
}

// What Observe tells is asked for whenever metrics are collected.
func ExampleTelemetry_Observe() {
	reader := metric.NewManualReader() // in place of an exporter
	tel := echotel.New(echotel.WithMeterProvider(metric.NewMeterProvider(metric.WithReader(reader))))
	ctx := context.Background()
	bus := echo.New(tel.Options()...)
	defer bus.Close(ctx)
	stop, err := tel.Observe(bus, greetings.Name())
	if err != nil {
		panic(err)
	}
	defer stop()
	if err := echo.NewProducer(bus, greetings).PublishBatch(ctx, []string{"hello", "hi"}); err != nil {
		panic(err)
	}

	var all metricdata.ResourceMetrics
	if err := reader.Collect(ctx, &all); err != nil {
		panic(err)
	}
	for _, m := range all.ScopeMetrics[0].Metrics {
		if g, ok := m.Data.(metricdata.Gauge[int64]); ok && m.Name == "messaging.echo.topic.messages" {
			fmt.Println(m.Name, g.DataPoints[0].Value)
		}
	}
	// Output: messaging.echo.topic.messages 2
}

// All messages are counted; those that are looked at are traced and timed.
func ExampleWithSampleRatio() {
	recorder := tracetest.NewSpanRecorder()
	reader := metric.NewManualReader()
	tel := echotel.New(
		echotel.WithTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))),
		echotel.WithMeterProvider(metric.NewMeterProvider(metric.WithReader(reader))),
		echotel.WithSampleRatio(0), // 0.01 for one in a hundred
	)
	bus := echo.New(tel.Options()...)
	defer bus.Close(context.Background())
	handleOne(bus, func(context.Context, echo.Message[string]) error { return nil })

	fmt.Println(len(recorder.Ended()), "spans")
	var all metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &all); err != nil {
		panic(err)
	}
	for _, m := range all.ScopeMetrics[0].Metrics {
		fmt.Println(m.Name)
	}
	// Unordered output:
	// 0 spans
	// messaging.client.sent.messages
	// messaging.client.consumed.messages
}
