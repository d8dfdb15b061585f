package echotel

import (
	"context"
	"errors"
	"slices"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/messagingconv"
)

// metrics are the instruments. What they measure is said in docs/telemetry.md.
type metrics struct {
	sent     metric.Int64Counter
	sending  metric.Float64Histogram // seconds
	consumed metric.Int64Counter
	process  metric.Float64Histogram // seconds
	dropped  metric.Int64Counter
}

// buckets are the bounds in seconds that the conventions ask for.
var buckets = metric.WithExplicitBucketBoundaries(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)

func newMetrics(m metric.Meter) metrics {
	sent, err1 := messagingconv.NewClientSentMessages(m)
	sending, err2 := messagingconv.NewClientOperationDuration(m, buckets)
	consumed, err3 := messagingconv.NewClientConsumedMessages(m)
	process, err4 := messagingconv.NewProcessDuration(m, buckets)
	dropped, err5 := m.Int64Counter("messaging.echo.context.dropped_headers", metric.WithUnit("{header}"),
		metric.WithDescription("Number of headers with trace context or baggage that did not fit into a message."))
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		otel.Handle(err)
	}
	return metrics{sent.Inst(), sending.Inst(), consumed.Inst(), process.Inst(), dropped}
}

// labels are attributes in the form that instruments take.
type labels struct {
	count    []metric.AddOption
	duration []metric.RecordOption
}

// sendLabels are those of a send with more attributes: the outcome and, if it
// failed, the type of its error.
func sendLabels(topic string, more ...attribute.KeyValue) labels {
	kvs := append(common("send", topic), more...)
	return labels{
		[]metric.AddOption{metric.WithAttributeSet(attribute.NewSet(slices.Clone(kvs)...))},
		[]metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(append(kvs, semconv.MessagingOperationTypeSend)...))},
	}
}

// processLabels are those of processing, with the type of its error if it failed.
func processLabels(topic, group string, more ...attribute.KeyValue) labels {
	kvs := append(append(common("process", topic), inGroup(group)...), more...)
	set := metric.WithAttributeSet(attribute.NewSet(kvs...))
	return labels{[]metric.AddOption{set}, []metric.RecordOption{set}}
}

// drop counts a header that did not fit into a message.
func (m *metrics) drop(ctx context.Context, topic, header string) {
	if m.dropped.Enabled(ctx) {
		m.dropped.Add(ctx, 1, metric.WithAttributes(
			semconv.MessagingSystemKey.String(system),
			semconv.MessagingDestinationName(topic),
			attribute.String("messaging.echo.header.name", header)))
	}
}
