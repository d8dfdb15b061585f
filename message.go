package echo

import (
	"context"
	"fmt"
	"time"

	"github.com/echobus/echo/transport"
)

// Message is a message that arrived. A handler gets it by value and may keep
// it; what Value points to is the handler's own, but for values that a
// transport carries by reference.
//
// Ack, Nack, Reject and Extend settle the message by hand, in [Consumer.Messages] and
// [Consumer.Batches]. Under [Consumer.Run] the handler's result settles it;
// calling them there anticipates that.
type Message[M any] struct {
	Value   M
	ID      string // unique, made by the producer's side
	Topic   string
	Key     string    // "" without one
	Time    time.Time // when it was published
	Headers map[string]string
	Version int // of the producer's schema, 0 when it said none
	Attempt int // 1 at the first delivery, then counting

	d delivery
}

// Group returns the group that the message was delivered to, "" for a broadcast
// and for a message that never arrived.
func (m Message[M]) Group() string {
	if m.d.f == nil {
		return ""
	}
	return m.d.f.c.cfg.Group
}

// Ack settles the message as done.
//
// Settling a message twice is a no-op: the first of Ack, Nack and Reject counts. When
// the message was not settled before its lease ended, the result is
// [ErrLeaseLost], and it may have been handled elsewhere.
func (m Message[M]) Ack(ctx context.Context) error { return m.settled("ack", m.d.ack(ctx)) }

// Nack gives the message back, to be delivered again, to this consumer or
// another of its group, no sooner than after delay. Errors are as for Ack.
func (m Message[M]) Nack(ctx context.Context, delay time.Duration) error {
	if delay < 0 {
		return m.settled("nack", fmt.Errorf("delay %v is negative", delay))
	}
	return m.settled("nack", m.d.nack(ctx, delay))
}

// Reject makes the message a dead letter of its group because of err, see
// [DeadLetters]. Errors are as for Ack; when the topic of dead letters refuses
// the message, it is still to be settled.
func (m Message[M]) Reject(ctx context.Context, err error) error {
	return m.settled("reject", m.d.reject(ctx, ReasonRejected, err))
}

// Extend makes the lease end after d from now; 0 means the whole lease again.
// It is a no-op on a settled message and returns [ErrLeaseLost] too late.
func (m Message[M]) Extend(ctx context.Context, d time.Duration) error {
	if d < 0 {
		return m.settled("extend", fmt.Errorf("extension %v is negative", d))
	}
	return m.settled("extend", m.d.extend(ctx, d))
}

func (m Message[M]) settled(verb string, err error) error {
	if err != nil {
		return fmt.Errorf("echo: %s message %s of %s: %w", verb, m.ID, m.Topic, err)
	}
	return nil
}

// Batch is some messages of [Consumer.Batches]. Settle single messages by
// themselves where their outcomes differ.
type Batch[M any] []Message[M]

// Ack settles as done every message of the batch that is not settled yet. An
// error that wraps [ErrLeaseLost] says that some came too late.
func (b Batch[M]) Ack(ctx context.Context) error {
	err := settleAll(ctx, b.deliveries(),
		func(c *consumer, rs []transport.Receipt) error { return c.acker.Ack(ctx, rs) },
		func(d delivery) { d.f.done(int(d.i)) })
	if err != nil {
		return fmt.Errorf("echo: ack %d messages of %s: %w", len(b), b[0].Topic, err)
	}
	return nil
}

func (b Batch[M]) deliveries() []delivery {
	ds := make([]delivery, len(b))
	for i := range b {
		ds[i] = b[i].d
	}
	return ds
}

// Handler handles one message: nil means done, an error that it shall be
// delivered again after a back-off. ctx ends when the message's lease is lost
// or the time to finish after a shutdown is over, and carries the values of
// the context that Run was given. A Handler of a consumer with concurrency
// above 1 is called concurrently.
type Handler[M any] func(ctx context.Context, m Message[M]) error

// untyped returns m for middleware, and retyped what comes out of it.
func (m Message[M]) untyped() Message[any] {
	return Message[any]{m.Value, m.ID, m.Topic, m.Key, m.Time, m.Headers, m.Version, m.Attempt, m.d}
}

func retyped[M any](m Message[any]) (Message[M], error) {
	v, ok := m.Value.(M)
	if !ok && m.Value != nil {
		return Message[M]{}, fmt.Errorf("middleware passed on a %T in place of a %T", m.Value, v)
	}
	return Message[M]{v, m.ID, m.Topic, m.Key, m.Time, m.Headers, m.Version, m.Attempt, m.d}, nil
}

// wrapped puts middleware around a handler, the first outermost.
func wrapped[M any](h Handler[M], mws []func(Handler[any]) Handler[any]) Handler[M] {
	if len(mws) == 0 {
		return h
	}
	outer := chained(h, mws)
	return func(ctx context.Context, m Message[M]) error { return outer(ctx, m.untyped()) }
}

// chained is the outermost of some middleware around a handler.
func chained[M any](h Handler[M], mws []func(Handler[any]) Handler[any]) Handler[any] {
	outer := Handler[any](func(ctx context.Context, m Message[any]) error {
		typed, err := retyped[M](m)
		if err != nil {
			return err
		}
		return h(ctx, typed)
	})
	for i := len(mws) - 1; i >= 0; i-- {
		outer = mws[i](outer)
	}
	return outer
}
