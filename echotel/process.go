package echotel

import (
	"context"
	"errors"
	"runtime/debug"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/echobus/echo"
)

// middleware calls the handler of one consumer in a span. A panic or Goexit of
// the handler is told and goes on.
func (t *Telemetry) middleware(next echo.Handler[any]) echo.Handler[any] {
	last := new(atomic.Pointer[topic])
	chance := newSampler(t.ratio)
	return func(ctx context.Context, m echo.Message[any]) error {
		if m.Headers == nil && !chance.looks(ctx) {
			err := next(ctx, m)
			tp := t.topic(last, m.Topic, m.Group())
			if err == nil {
				tp.processed.count.n.Add(1)
				return nil
			}
			p := processing{t: t, topic: tp, ctx: ctx, span: noSpan, n: 1}
			p.end(err)
			return err
		}
		p := t.process(ctx, t.topic(last, m.Topic, m.Group()), m.ID, m.Attempt, m.Headers)
		returned := false
		defer func() {
			if returned {
				return
			}
			value := recover()
			p.end(&echo.PanicError{Value: value, Stack: debug.Stack()})
			if value != nil {
				panic(value) // the stack still has the frames of the first one
			}
		}()
		err := next(p.ctx, m)
		returned = true
		p.end(err)
		return err
	}
}

// Start begins the span of processing one message of [echo.Consumer.Messages]
// as a handler's would be. The context returned is for the processing. Call end
// once when the message is done with: an error makes the span fail. What end is
// told does not settle the message.
func Start[M any](ctx context.Context, t *Telemetry, m echo.Message[M]) (_ context.Context, end func(error)) {
	p := t.process(ctx, t.topic(new(atomic.Pointer[topic]), m.Topic, m.Group()), m.ID, m.Attempt, m.Headers)
	return p.ctx, p.end
}

// StartBatch begins the span of processing a batch of [echo.Consumer.Batches],
// with a link to the context of each message. The context returned is for the
// processing; baggage of the messages is not in it, as they may differ. Call end
// once when the batch is done with: an error makes the span fail. An empty batch
// has no span.
func StartBatch[M any](ctx context.Context, t *Telemetry, b echo.Batch[M]) (_ context.Context, end func(error)) {
	if len(b) == 0 {
		return ctx, func(error) {}
	}
	var links []trace.Link
	for i := range b {
		if _, carried := t.read(ctx, b[i].Headers); carried.IsValid() {
			links = append(links, delivered(carried, b[i].ID, b[i].Attempt))
		}
	}
	p := t.processBatch(ctx, t.topic(new(atomic.Pointer[topic]), b[0].Topic, b[0].Group()), len(b), links)
	return p.ctx, p.end
}

// processing is a message, or some, being processed.
type processing struct {
	t     *Telemetry
	topic *topic
	ctx   context.Context
	span  trace.Span
	begun time.Time // zero when nobody measures
	n     int
}

// process begins the processing of one message. A message that carries no more
// than a span's context, which becomes a link, is read once the span is
// recorded: most are not.
func (t *Telemetry) process(ctx context.Context, tp *topic, id string, attempt int, header map[string]string) processing {
	p := processing{t: t, topic: tp, n: 1, begun: t.processClock(ctx)}
	var carried, here trace.SpanContext
	late := !t.parent && t.onlyTrace(header)
	if !late {
		here = trace.SpanContextFromContext(ctx)
		ctx, carried = t.read(ctx, header)
	}
	if t.parent && carried.IsValid() {
		ctx = trace.ContextWithRemoteSpanContext(ctx, carried)
	}
	p.ctx, p.span = t.tracer.Start(ctx, tp.process.span, tp.process.begin...)
	if !p.span.IsRecording() {
		return p
	}
	if late {
		_, carried = t.read(ctx, header)
	}
	p.span.SetAttributes(semconv.MessagingMessageID(id), attemptKey.Int(attempt))
	if carried.IsValid() {
		p.span.AddLink(delivered(carried, id, attempt))
	}
	if t.parent && carried.IsValid() && here.IsValid() {
		p.span.AddLink(trace.Link{SpanContext: here})
	}
	return p
}

func (t *Telemetry) processBatch(ctx context.Context, tp *topic, n int, links []trace.Link) processing {
	p := processing{t: t, topic: tp, n: n, begun: t.processClock(ctx)}
	opts := tp.process.with(trace.WithAttributes(semconv.MessagingBatchMessageCount(n)))
	p.ctx, p.span = t.tracer.Start(ctx, tp.process.span, append(opts, trace.WithLinks(links...))...)
	return p
}

// delivered is a link to the context that a message came with.
func delivered(sc trace.SpanContext, id string, attempt int) trace.Link {
	return trace.Link{SpanContext: sc, Attributes: []attribute.KeyValue{semconv.MessagingMessageID(id), attemptKey.Int(attempt)}}
}

// processClock returns the time, if processing is to be measured.
func (t *Telemetry) processClock(ctx context.Context) time.Time {
	if t.metrics.process.Enabled(ctx) {
		return time.Now()
	}
	return time.Time{}
}

// end tells how the processing ended.
func (p *processing) end(err error) {
	m, l := &p.t.metrics, p.topic.processed
	times := !p.begun.IsZero()
	if err != nil && !errors.Is(err, echo.ErrLater) {
		kind := errorType(err)
		l = m.processLabels(p.topic.name, p.topic.group, kind)
		fail(p.span, err, kind)
	}
	l.count.n.Add(int64(p.n))
	if times {
		m.process.Record(p.ctx, time.Since(p.begun).Seconds(), l.duration...)
	}
	p.span.End()
}
