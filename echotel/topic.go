package echotel

import (
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// The system that spans and metrics name, and attributes that the conventions
// have no name for.
const (
	system     = "echo"
	attemptKey = attribute.Key("messaging.echo.message.delivery_attempt")
	outcomeKey = attribute.Key("messaging.echo.outcome")
)

// Outcomes of a publish.
const (
	stored  = "stored"
	refused = "refused"
	unknown = "unknown"
)

// topic is what the spans and metrics of one topic, and one group that consumes
// it, have in common.
type topic struct {
	name    string
	group   string // "" for publishing and broadcasts
	create  operation
	send    operation // its context goes with a message
	relay   operation // a send of messages that carry other contexts
	process operation

	stored    labels
	processed labels
}

// consumed names a topic and a group.
type consumed struct{ topic, group string }

// operation is how spans of a kind begin.
type operation struct {
	span  string
	begin []trace.SpanStartOption // not to be appended to
}

// with returns the options that begin a span, and one more.
func (o *operation) with(opt trace.SpanStartOption) []trace.SpanStartOption {
	return append(o.begin[:len(o.begin):len(o.begin)], opt)
}

func newTopic(m *metrics, name, group string) *topic {
	return &topic{
		name:      name,
		group:     group,
		create:    newOperation("create", semconv.MessagingOperationTypeCreate, name, trace.SpanKindProducer),
		send:      newOperation("send", semconv.MessagingOperationTypeSend, name, trace.SpanKindProducer),
		relay:     newOperation("send", semconv.MessagingOperationTypeSend, name, trace.SpanKindClient),
		process:   newOperation("process", semconv.MessagingOperationTypeProcess, name, trace.SpanKindConsumer, inGroup(group)...),
		stored:    m.sendLabels(name, outcomeKey.String(stored)),
		processed: m.processLabels(name, group),
	}
}

func newOperation(verb string, kind attribute.KeyValue, topic string, span trace.SpanKind, more ...attribute.KeyValue) operation {
	return operation{verb + " " + topic, []trace.SpanStartOption{
		trace.WithSpanKind(span),
		trace.WithAttributes(append(append(common(verb, topic), kind), more...)...),
	}}
}

// common are the attributes that all spans and metrics have.
func common(verb, topic string) []attribute.KeyValue {
	return []attribute.KeyValue{
		semconv.MessagingSystemKey.String(system),
		semconv.MessagingOperationName(verb),
		semconv.MessagingDestinationName(topic),
	}
}

// inGroup is the attribute that names a group, if there is one.
func inGroup(name string) []attribute.KeyValue {
	if name == "" {
		return nil
	}
	return []attribute.KeyValue{semconv.MessagingConsumerGroupName(name)}
}

// topic returns the topic of a name, as a group consumes it. Who asks keeps the last answer, as most
// ask for one topic only.
func (t *Telemetry) topic(last *atomic.Pointer[topic], name, group string) *topic {
	if tp := last.Load(); tp != nil && tp.name == name && tp.group == group {
		return tp
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	tp := t.topics[consumed{name, group}]
	if tp == nil {
		tp = newTopic(&t.metrics, name, group)
		t.topics[consumed{name, group}] = tp
	}
	last.Store(tp)
	return tp
}
