package echotel

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/messagingconv"
)

// metrics are the instruments. What they measure is said in docs/telemetry.md.
type metrics struct {
	sent     *tallies
	sending  metric.Float64Histogram // seconds
	consumed *tallies
	process  metric.Float64Histogram // seconds
	dropped  metric.Int64Counter
}

// buckets are the bounds in seconds that the conventions ask for.
var buckets = metric.WithExplicitBucketBoundaries(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)

func newMetrics(m metric.Meter) metrics {
	sent, err1 := newTallies(m, messagingconv.ClientSentMessages{})
	sending, err2 := messagingconv.NewClientOperationDuration(m, buckets)
	consumed, err3 := newTallies(m, messagingconv.ClientConsumedMessages{})
	process, err4 := messagingconv.NewProcessDuration(m, buckets)
	dropped, err5 := m.Int64Counter("messaging.echo.context.dropped_headers", metric.WithUnit("{header}"),
		metric.WithDescription("Number of headers with trace context or baggage that did not fit into a message."))
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		otel.Handle(err)
	}
	return metrics{sent, sending.Inst(), consumed, process.Inst(), dropped}
}

// labels are attributes in the form that instruments take.
type labels struct {
	count    *tally
	duration []metric.RecordOption
}

// sendLabels are those of a send with more attributes: the outcome and, if it
// failed, the type of its error.
func (m *metrics) sendLabels(topic string, more ...attribute.KeyValue) labels {
	kvs := append(common("send", topic), more...)
	return labels{
		m.sent.of(attribute.NewSet(slices.Clone(kvs)...)),
		[]metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(append(kvs, semconv.MessagingOperationTypeSend)...))},
	}
}

// processLabels are those of processing, with the type of its error if it failed.
func (m *metrics) processLabels(topic, group string, more ...attribute.KeyValue) labels {
	kvs := append(append(common("process", topic), inGroup(group)...), more...)
	set := attribute.NewSet(kvs...)
	return labels{m.consumed.of(set), []metric.RecordOption{metric.WithAttributeSet(set)}}
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

// tallies are the counts of an instrument, by their attributes. They are kept
// here and told when somebody asks, as counting must cost nothing.
type tallies struct {
	mu sync.Mutex // guards the rest
	by map[attribute.Distinct]*tally
}

type tally struct {
	n     atomic.Int64
	attrs metric.MeasurementOption
}

// convention is what the conventions say of a counter.
type convention interface {
	Name() string
	Unit() string
	Description() string
}

func newTallies(m metric.Meter, c convention) (*tallies, error) {
	t := &tallies{by: make(map[attribute.Distinct]*tally)}
	inst, err := m.Int64ObservableCounter(c.Name(), metric.WithUnit(c.Unit()), metric.WithDescription(c.Description()))
	if err != nil {
		return t, err
	}
	_, err = m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		t.observe(o, inst)
		return nil
	}, inst) // of the instrument itself, the meter would take those of the first Telemetry alone
	return t, err
}

// of returns the count with some attributes.
func (t *tallies) of(set attribute.Set) *tally {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.by[set.Equivalent()]
	if c == nil {
		c = &tally{attrs: metric.WithAttributeSet(set)}
		t.by[set.Equivalent()] = c
	}
	return c
}

func (t *tallies) observe(o metric.Observer, inst metric.Int64Observable) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.by {
		if n := c.n.Load(); n > 0 {
			o.ObserveInt64(inst, n, c.attrs)
		}
	}
}
