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

// topic is what the spans and metrics of one topic have in common.
type topic struct {
	name    string
	create  operation
	send    operation // its context goes with a message
	relay   operation // a send of messages that carry other contexts
	process operation

	stored    labels
	processed labels
}

// operation is how spans of a kind begin.
type operation struct {
	span  string
	begin []trace.SpanStartOption // not to be appended to
}

// with returns the options that begin a span, and one more.
func (o *operation) with(opt trace.SpanStartOption) []trace.SpanStartOption {
	return append(o.begin[:len(o.begin):len(o.begin)], opt)
}

func newTopic(name string) *topic {
	return &topic{
		name:      name,
		create:    newOperation("create", semconv.MessagingOperationTypeCreate, name, trace.SpanKindProducer),
		send:      newOperation("send", semconv.MessagingOperationTypeSend, name, trace.SpanKindProducer),
		relay:     newOperation("send", semconv.MessagingOperationTypeSend, name, trace.SpanKindClient),
		process:   newOperation("process", semconv.MessagingOperationTypeProcess, name, trace.SpanKindConsumer),
		stored:    sendLabels(name, outcomeKey.String(stored)),
		processed: processLabels(name),
	}
}

func newOperation(verb string, kind attribute.KeyValue, topic string, span trace.SpanKind) operation {
	return operation{verb + " " + topic, []trace.SpanStartOption{
		trace.WithSpanKind(span),
		trace.WithAttributes(append(common(verb, topic), kind)...),
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

// topic returns the topic of a name. Who asks keeps the last answer, as most
// ask for one topic only.
func (t *Telemetry) topic(last *atomic.Pointer[topic], name string) *topic {
	if tp := last.Load(); tp != nil && tp.name == name {
		return tp
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	tp := t.topics[name]
	if tp == nil {
		tp = newTopic(name)
		t.topics[name] = tp
	}
	last.Store(tp)
	return tp
}
