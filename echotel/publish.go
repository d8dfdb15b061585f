package echotel

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/echobus/echo"
	"github.com/echobus/echo/transport"
)

// hook is around the publishing of one producer.
func (t *Telemetry) hook(next echo.SendFunc) echo.SendFunc {
	last := new(atomic.Pointer[topic])
	chance := newSampler(t.ratio)
	return func(ctx context.Context, name string, msgs []transport.Message) (int, error) {
		switch tp := t.topic(last, name, ""); len(msgs) {
		case 0:
			return next(ctx, name, msgs)
		case 1:
			return t.publish(ctx, tp, msgs, next, chance)
		default:
			return t.publishBatch(ctx, tp, msgs, next, chance)
		}
	}
}

// publish sends one message, in a span whose context it carries unless it has one.
func (t *Telemetry) publish(ctx context.Context, tp *topic, msgs []transport.Message, next echo.SendFunc, chance *sampler) (int, error) {
	m := &msgs[0]
	own := m.Header
	if own == nil && !chance.looks(ctx) {
		n, err := next(ctx, tp.name, msgs)
		if n == 1 {
			tp.stored.count.n.Add(1)
			return n, err
		}
		s := sending{t: t, topic: tp, total: 1, ctx: ctx, span: noSpan, n: n, err: err}
		s.end()
		return n, err
	}
	op, opts := &tp.send, tp.send.begin
	if _, carried := t.read(ctx, own); carried.IsValid() {
		op, opts = &tp.relay, tp.relay.with(trace.WithLinks(link(carried, m)))
	}
	s := sending{t: t, topic: tp, total: 1, begun: t.clock(ctx)}
	s.ctx, s.span = t.tracer.Start(ctx, op.span, opts...)
	if s.span.IsRecording() {
		s.span.SetAttributes(semconv.MessagingMessageID(m.ID))
	}
	defer s.end()
	if op == &tp.send {
		f := t.write(s.ctx)
		m.Header = t.add(ctx, tp.name, own, *f)
		f.free()
	}
	s.n, s.err = next(s.ctx, tp.name, msgs)
	if s.n < 1 && tooLarge(s.err) && len(m.Header) > len(own) {
		t.undo(ctx, tp, m, own)
		s.n, s.err = next(s.ctx, tp.name, msgs)
	}
	return s.n, s.err
}

// noSpan is the span of what is not looked at.
var noSpan = trace.SpanFromContext(context.Background())

// publishBatch sends messages in one span. Each carries the context of a span
// of its own, if there are such spans, or the context of the one.
func (t *Telemetry) publishBatch(ctx context.Context, tp *topic, msgs []transport.Message, next echo.SendFunc, chance *sampler) (int, error) {
	if !slices.ContainsFunc(msgs, func(m transport.Message) bool { return m.Header != nil }) && !chance.looks(ctx) {
		s := sending{t: t, topic: tp, total: len(msgs), ctx: ctx, span: noSpan}
		s.n, s.err = next(ctx, tp.name, msgs)
		s.end()
		return s.n, s.err
	}
	own := make([]map[string]string, len(msgs))
	for i := range msgs {
		own[i] = msgs[i].Header
	}
	links, left := t.contexts(ctx, tp, msgs)
	op := &tp.send
	if left == 0 {
		op = &tp.relay
	}
	opts := op.with(trace.WithAttributes(semconv.MessagingBatchMessageCount(len(msgs))))
	if len(links) > 0 {
		opts = append(opts, trace.WithLinks(links...))
	}
	s := sending{t: t, topic: tp, total: len(msgs), begun: t.clock(ctx)}
	s.ctx, s.span = t.tracer.Start(ctx, op.span, opts...)
	defer s.end()
	if left > 0 {
		f := t.write(s.ctx)
		for i := range msgs {
			if _, carried := t.read(ctx, own[i]); !carried.IsValid() {
				msgs[i].Header = t.add(ctx, tp.name, own[i], *f)
			}
		}
		f.free()
	}
	s.n, s.err = next(s.ctx, tp.name, msgs)
	for s.n < len(msgs) && tooLarge(s.err) && len(msgs[s.n].Header) > len(own[s.n]) {
		t.undo(ctx, tp, &msgs[s.n], own[s.n])
		n, err := next(s.ctx, tp.name, msgs[s.n:])
		s.n, s.err = s.n+n, err
	}
	return s.n, s.err
}

// contexts makes a span for each message of a batch that carries no context,
// and has it carried. It returns links to what the messages carry, and how many
// carry nothing yet, because there are no such spans.
func (t *Telemetry) contexts(ctx context.Context, tp *topic, msgs []transport.Message) (links []trace.Link, left int) {
	for i := range msgs {
		m := &msgs[i]
		_, carried := t.read(ctx, m.Header)
		switch {
		case carried.IsValid():
		case !t.creates:
			left++
			continue
		default:
			created, span := t.tracer.Start(ctx, tp.create.span, tp.create.begin...)
			if span.IsRecording() {
				span.SetAttributes(semconv.MessagingMessageID(m.ID))
			}
			f := t.write(created)
			m.Header = t.add(ctx, tp.name, m.Header, *f)
			f.free()
			span.End()
			carried = span.SpanContext()
		}
		if carried.IsValid() {
			links = append(links, link(carried, m))
		}
	}
	return links, left
}

// tooLarge reports whether a message was refused for its size, so that it may
// pass without our headers: a transport may have bounds beside echo's limits.
func tooLarge(err error) bool {
	return errors.Is(err, echo.ErrTooLarge) && errors.Is(err, echo.ErrNotPublished)
}

// undo gives a message the headers again that it came with.
func (t *Telemetry) undo(ctx context.Context, tp *topic, m *transport.Message, own map[string]string) {
	for name := range m.Header {
		if _, ok := own[name]; !ok {
			t.metrics.drop(ctx, tp.name, name)
		}
	}
	m.Header = own
}

// link is a link to the context that a message carries.
func link(sc trace.SpanContext, m *transport.Message) trace.Link {
	return trace.Link{SpanContext: sc, Attributes: []attribute.KeyValue{semconv.MessagingMessageID(m.ID)}}
}

// sending is a send under way.
type sending struct {
	t     *Telemetry
	topic *topic
	ctx   context.Context
	span  trace.Span
	begun time.Time // zero when nobody measures
	total int

	n   int // messages stored
	err error
}

// clock returns the time, if a send is to be measured.
func (t *Telemetry) clock(ctx context.Context) time.Time {
	if t.metrics.sending.Enabled(ctx) {
		return time.Now()
	}
	return time.Time{}
}

// end tells what became of the send. One that did not return, as its transport
// panicked, has an unknown outcome.
func (s *sending) end() {
	outcome, kind := outcomeKey.String(stored), attribute.KeyValue{}
	if s.n < s.total {
		outcome, kind = s.failed()
	}
	if s.span.IsRecording() {
		s.span.SetAttributes(outcome)
	}
	s.measure(outcome, kind)
	s.span.End()
}

// failed says in the span why not everything was stored, and returns the
// outcome and the type of the error.
func (s *sending) failed() (outcome, kind attribute.KeyValue) {
	err := s.err
	if err == nil {
		err = errors.New("the transport sent less than it was given and returned no error")
	}
	outcome, kind = outcomeKey.String(unknown), errorType(err)
	if errors.Is(err, echo.ErrNotPublished) {
		outcome = outcomeKey.String(refused)
	}
	fail(s.span, err, kind)
	return outcome, kind
}

// measure counts the messages, those that were stored by themselves, and the time.
func (s *sending) measure(outcome, kind attribute.KeyValue) {
	m, l := &s.t.metrics, s.topic.stored
	l.count.n.Add(int64(s.n))
	if s.n < s.total {
		l = m.sendLabels(s.topic.name, outcome, kind)
		l.count.n.Add(int64(s.total - s.n))
	}
	if !s.begun.IsZero() {
		m.sending.Record(s.ctx, time.Since(s.begun).Seconds(), l.duration...)
	}
}
