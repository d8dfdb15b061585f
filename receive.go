package echo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/echobus/echo/transport"
)

// Consumer receives the messages of one subscription. It is used by one Run,
// or one loop over Messages or Batches, at a time; its other methods may be
// called from anywhere.
type Consumer[M any] struct {
	core *consumer
	decs decoders
	read func(*Consumer[M], *transport.Message) (*M, int, error) // of the topic
}

// Close stops the consumer. Messages that were fetched and not started go back
// to the group. A Run or loop under way ends after the handlers under way, for
// which Close does not wait, so a handler may call it; the subscription is
// closed then, and otherwise at once. Closing twice is no error.
func (c *Consumer[M]) Close() error {
	c.core.stop()
	if c.core.using.Load() {
		return nil
	}
	return c.core.close()
}

// Topic is the name of the consumer's topic, or the pattern.
func (c *Consumer[M]) Topic() string { return c.core.topic }

// Pause stops the consumer from taking messages until Resume. What it had
// fetched and not begun goes back to its group; handlers under way go on, and
// what waits to be tried again goes back when it is due. Other members of the
// group are not concerned; without any, keys keep their order.
func (c *Consumer[M]) Pause() { c.core.pause() }

// Resume ends a Pause.
func (c *Consumer[M]) Resume() { c.core.resume() }

// Run handles messages until ctx ends or the consumer or its bus is closed,
// which is no error, or the subscription fails for good. It waits for the
// handlers under way and leaves the consumer closed.
//
// A handler that returns nil has its message acknowledged. One that returns an
// error gets it again, as [WithRetry] says; meanwhile the others go on, but for
// those with the same key, which wait. [Reject] and [RetryAfter] make errors
// that say more. A panic or runtime.Goexit in a handler is an error, too, a
// [*PanicError].
//
// In a group, a message that is not to be tried again becomes a dead letter: it
// goes to a topic of its own, see [DeadLetters]. So does one that cannot be
// decoded. A broadcast subscription gives both up, and logs that.
//
// Acknowledgements are sent in batches, a few milliseconds after the handler
// returned at the latest.
func (c *Consumer[M]) Run(ctx context.Context, h Handler[M]) error {
	if h == nil {
		return c.fail("run", errors.New("the handler is nil"))
	}
	var outer Handler[any]
	if mws := slices.Concat(c.core.bus.cfg.middleware, c.core.cfg.middleware); len(mws) > 0 {
		outer = chained(h, mws)
	}
	return c.fail("run", c.core.run(ctx, func() handling { return c.handling(h, outer) }))
}

// handling decodes messages and gives them to h, or to the middleware around it.
func (c *Consumer[M]) handling(h Handler[M], outer Handler[any]) handling {
	values := &ahead[M]{decode: c.value}
	handle := func(ctx context.Context, f *fetch, i int) error {
		v, version, err := values.value(f, i)
		if err != nil {
			return c.core.undecoded(ctx, err)
		}
		raw := &f.msgs[i]
		if outer != nil {
			return outer(ctx, Message[any]{*v, raw.ID, c.core.topicOf(raw), raw.Key, raw.Time, ownHeader(raw.Header), version, raw.Attempt, f.delivery(i)})
		}
		return h(ctx, Message[M]{*v, raw.ID, c.core.topicOf(raw), raw.Key, raw.Time, ownHeader(raw.Header), version, raw.Attempt, f.delivery(i)})
	}
	return handling{handle, values.begin, values.end}
}

// value returns what a message carries, which is not the caller's to change,
// and the version of its schema.
func (c *Consumer[M]) value(raw *transport.Message) (*M, int, error) {
	if c.read != nil {
		return c.read(c, raw)
	}
	return valueOf[M](c.core, &c.decs, raw)
}

// valueOf decodes a message.
func valueOf[M any](c *consumer, decs *decoders, raw *transport.Message) (v *M, version int, err error) {
	if raw.Value != nil {
		v, ok := raw.Value.(*M)
		if !ok {
			return nil, 0, c.undecodable(raw, fmt.Errorf("value carried by reference is a %T, want %T", raw.Value, v))
		}
		return v, 0, nil
	}
	if err := cmp.Or(checkID(raw.ID), c.bus.cfg.limits.check(raw)); err != nil {
		return nil, 0, c.undecodable(raw, err)
	}
	codec, version, err := decs.find(raw.Type)
	if err != nil {
		return nil, 0, c.undecodable(raw, err)
	}
	if v, err = decodeAs[M](decs, codec, version, raw.Data); err != nil {
		return nil, 0, c.undecodable(raw, err)
	}
	return v, version, nil
}

// decode calls a codec, whose panic on a message is an error about the message.
func decode(codec Codec, data []byte, v any) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &PanicError{Value: p, Stack: debug.Stack()}
		}
	}()
	return codec.Decode(data, v)
}

func (c *consumer) undecodable(raw *transport.Message, err error) error {
	return &DecodeError{Topic: c.topicOf(raw), ID: raw.ID, Type: raw.Type, Data: raw.Data, Err: err}
}

// message returns message i of a fetch with its value.
func (c *Consumer[M]) message(f *fetch, i int, v *M, version int) Message[M] {
	raw := &f.msgs[i]
	return Message[M]{
		Value:   *v,
		ID:      raw.ID,
		Topic:   c.core.topicOf(raw),
		Key:     raw.Key,
		Time:    raw.Time,
		Headers: ownHeader(raw.Header),
		Version: version,
		Attempt: raw.Attempt,
		d:       f.delivery(i),
	}
}

// ownHeader returns a copy of a header that is shared with other receivers,
// without what echo itself added.
func ownHeader(h map[string]string) map[string]string {
	var own map[string]string
	for name, value := range h {
		if strings.HasPrefix(name, reserved) {
			continue
		}
		if own == nil {
			own = make(map[string]string, len(h))
		}
		own[name] = value
	}
	return own
}

func (c *Consumer[M]) fail(verb string, err error) error {
	if err != nil {
		return fmt.Errorf("echo: %s %s: %w", verb, c.core.topic, err)
	}
	return nil
}

// Messages yields messages for the caller to settle. From the yield on the
// lease is the caller's to extend; what is not settled when it ends goes to
// the group again. What was fetched and not yielded is given back when the
// loop ends, and the consumer stays open.
//
// The loop ends without an error when ctx ends or the consumer or its bus is
// closed. A yielded [*DecodeError] concerns the message beside it, whose Value
// is zero and which becomes a dead letter unless the loop body settles it; a yielded
// [*LostError] tells of messages lost before. The loop may go on after both.
// Any other error is the last thing yielded.
func (c *Consumer[M]) Messages(ctx context.Context) iter.Seq2[Message[M], error] {
	return func(yield func(Message[M], error) bool) {
		c.loop(ctx, "messages", 1, 0, func(batch Batch[M], err error) bool {
			if len(batch) == 0 {
				return yield(Message[M]{}, err)
			}
			return yield(batch[0], err)
		})
	}
}

// Batches yields up to max messages at a time, for work that is cheaper in
// bulk: as soon as there are max, or wait after the first one came. Leases,
// settlement, errors and the end of the loop are as for [Consumer.Messages];
// a message that cannot be decoded is a batch of its own.
func (c *Consumer[M]) Batches(ctx context.Context, max int, wait time.Duration) iter.Seq2[Batch[M], error] {
	return func(yield func(Batch[M], error) bool) {
		var err error
		switch {
		case max < 1:
			err = fmt.Errorf("a batch of %d messages: at least one is needed", max)
		case max > c.core.cfg.MaxPending:
			err = fmt.Errorf("a batch of %d messages is more than WithPrefetch(%d) allows", max, c.core.cfg.MaxPending)
		case wait < 0:
			err = fmt.Errorf("the wait %v is negative", wait)
		}
		if err != nil {
			yield(nil, c.fail("batches", err))
			return
		}
		c.loop(ctx, "batches", max, wait, yield)
	}
}

// loop is a use of the consumer that yields messages.
type loop[M any] struct {
	*use
	from *Consumer[M]
	f    *fetch // being yielded
	i    int    // its next message
	done []*fetch
	late error // an error to yield after what was collected before it
}

func (c *Consumer[M]) loop(ctx context.Context, verb string, max int, wait time.Duration, yield func(Batch[M], error) bool) {
	u, err := c.core.begin(ctx, false)
	if errors.Is(err, ErrClosed) {
		return // as if it had been closed a moment later
	}
	if err != nil {
		yield(nil, c.fail(verb, err))
		return
	}
	l := &loop[M]{use: u, from: c}
	defer l.close()
	var items []item
	for {
		items, err = l.collect(items[:0], max, wait)
		if err != nil {
			lost, goOn := errors.AsType[*LostError](err)
			switch {
			case l.closing(err):
				return
			case goOn:
				err = lost
			default:
				err = c.fail(verb, err)
			}
			if !yield(nil, err) || !goOn {
				return
			}
		}
		if !l.hand(items, yield) {
			return
		}
		l.retire()
	}
}

// collect gathers up to max fetched messages, or what came until wait after
// the first one.
func (l *loop[M]) collect(items []item, max int, wait time.Duration) ([]item, error) {
	if err := l.late; err != nil {
		l.late = nil
		return items, err
	}
	ctx := l.receive
	for len(items) < max {
		it, err := l.next(ctx, max-len(items))
		switch {
		case err == nil:
			items = append(items, it)
		case len(items) == 0:
			return items, err
		case l.receive.Err() != nil || !errors.Is(err, context.DeadlineExceeded):
			l.late = err
			return items, nil
		default:
			return items, nil // the wait is over
		}
		if len(items) == 1 && max > 1 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(l.receive, wait)
			defer cancel()
		}
	}
	return items, nil
}

// next returns the next fetched message, or receives.
func (l *loop[M]) next(ctx context.Context, most int) (item, error) {
	for {
		for l.f != nil && l.i < len(l.f.msgs) {
			it := item{l.f, l.i}
			l.i++
			if it.f.state(it.i) == buffered {
				return it, nil
			}
		}
		if l.f != nil {
			l.c.adapt(l.f)
			l.done = append(l.done, l.f)
			l.f = nil
		}
		if most > 1 {
			l.c.window = max(l.c.window, most) // a batch is wanted whole
		}
		f, err := l.c.receive(ctx, l.c.cfg.MaxPending)
		if err != nil {
			return item{}, err
		}
		l.f, l.i = f, 0
	}
}

// hand yields the messages of items, those that cannot be decoded one by one.
func (l *loop[M]) hand(items []item, yield func(Batch[M], error) bool) bool {
	var batch Batch[M]
	for _, it := range items {
		if !l.start(it) || l.barred(it) {
			continue
		}
		v, version, err := l.from.value(&it.f.msgs[it.i])
		if err == nil {
			if batch == nil {
				batch = make(Batch[M], 0, len(items))
			}
			batch = append(batch, l.from.message(it.f, it.i, v, version))
			continue
		}
		m := l.from.message(it.f, it.i, new(M), 0)
		if len(batch) > 0 && !yield(batch, nil) {
			if it.f.move(it.i, running, gone) { // it was not yielded
				l.c.inHand.Add(-1)
				l.c.untake(it.f.msgs[it.i : it.i+1])
			}
			return false
		}
		batch = nil
		goOn := yield(Batch[M]{m}, err)
		l.conclude(m.d, m.Attempt, m.d.reject(l.c.bus.settling, reasonOf(err), err))
		if !goOn {
			return false
		}
	}
	return len(batch) == 0 || yield(batch, nil)
}

// barred sees to a message that is not to be yielded.
func (l *loop[M]) barred(it item) bool {
	m, d := &it.f.msgs[it.i], it.f.delivery(it.i)
	err := l.c.bars(m)
	switch {
	case err == nil && (l.c.memory == nil || !l.c.memory.knows(l.c.nameOf(m))):
		return false
	case err == nil:
		l.c.count.duplicates.Add(1)
		err = d.drop(l.c.bus.settling)
	case err == errNotForUs:
		err = d.drop(l.c.bus.settling)
	default:
		reason, _ := l.c.cfg.retry.judge(1, err)
		err = d.reject(l.c.bus.settling, reason, err)
	}
	l.conclude(d, m.Attempt, err)
	return true
}

// conclude gives back a message that could not be settled.
func (l *loop[M]) conclude(d delivery, attempt int, err error) {
	if err != nil && !errors.Is(err, ErrLeaseLost) {
		d.nack(l.c.bus.settling, l.c.cfg.retry.wait(attempt))
	}
}

// start puts a message into the caller's hands, with a fresh lease.
func (l *loop[M]) start(it item) bool {
	if l.c.releasing.Load() > 0 {
		l.c.awaitReturns() // or this one might be begun, and those before it go back
	}
	if !it.f.move(it.i, buffered, running) {
		return false
	}
	l.c.inHand.Add(1)
	if lease := l.c.lease(); lease > 0 && clock()-l.c.keptAt(it.f) > lease/10 {
		if err := it.f.delivery(it.i).extend(l.c.bus.settling, 0); errors.Is(err, ErrLeaseLost) {
			return false
		}
	}
	return true
}

// retire ends the care for fetches that were yielded whole.
func (l *loop[M]) retire() {
	for _, f := range l.done {
		l.c.retire(f, nil)
	}
	l.done = l.done[:0]
}

// close ends the loop, and the consumer if that was closed meanwhile.
func (l *loop[M]) close() {
	l.end()
	if l.c.stopping.Load() {
		l.c.close()
	}
}
