package echo

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"github.com/echobus/echo/transport"
)

// commit is the group commit of one topic: while one Send is under way, single
// messages that come queue up, and the next Send takes all of them. A lone
// publisher sends in its own goroutine with its own context; a queue is sent
// by a goroutine that lasts as long as the queue and that Bus.Close waits for.
type commit struct {
	bus   *Bus
	topic string

	mu    sync.Mutex // guards the rest
	busy  bool       // a Send is under way
	queue []*queued
	spare []*queued // memory of an earlier queue
	free  []*queued // whose publishers have had their outcome
}

// queued is a message that waits for its turn.
type queued struct {
	msg   transport.Message
	done  chan error // buffered
	batch *joined    // once it was taken
}

// joined is a Send on behalf of several publishers. Its context ends when all
// of them have left.
type joined struct {
	left   int
	cancel context.CancelFunc
}

// A Send of the queue has at most this many messages.
const maxCommit = 1024

// sender returns how single messages and batches are sent to a topic.
func (b *Bus) sender(topic string) SendFunc {
	if b.immediate {
		if o, ok := b.transport.(transport.Opener); ok {
			return o.Open(topic)
		}
		return b.transport.Send
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.commits[topic]
	if c == nil {
		c = &commit{bus: b, topic: topic}
		b.commits[topic] = c
	}
	return c.send
}

func (c *commit) send(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
	if len(msgs) != 1 {
		return c.bus.transport.Send(ctx, topic, msgs) // a batch already
	}
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNotPublished, context.Cause(ctx))
	}
	c.mu.Lock()
	if c.busy {
		q := c.unused()
		q.msg = msgs[0]
		c.queue = append(c.queue, q)
		c.mu.Unlock()
		return c.await(ctx, q)
	}
	c.busy = true
	c.mu.Unlock()
	defer c.next()
	return c.bus.transport.Send(ctx, topic, msgs)
}

// next ends a lone publisher's turn.
func (c *commit) next() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 {
		c.busy = false
		return
	}
	c.bus.sending.Go(c.drain)
}

// unused returns a queued that nobody uses. The caller holds mu.
func (c *commit) unused() *queued {
	if last := len(c.free) - 1; last >= 0 {
		q := c.free[last]
		c.free = c.free[:last]
		return q
	}
	return &queued{done: make(chan error, 1)}
}

// outcome returns what became of q, and lets q be used again while the queue
// lasts.
func (c *commit) outcome(q *queued, err error) (int, error) {
	n := 1
	if err != nil {
		n = 0
	}
	q.msg, q.batch = transport.Message{}, nil
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy && len(c.free) < maxCommit {
		c.free = append(c.free, q)
	}
	return n, err
}

// await waits for the outcome of a queued message, or leaves.
func (c *commit) await(ctx context.Context, q *queued) (int, error) {
	if ended := ctx.Done(); ended == nil { // which costs less than a choice
		return c.outcome(q, <-q.done)
	} else {
		select {
		case err := <-q.done:
			return c.outcome(q, err)
		case <-ended:
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case err := <-q.done: // at the same time
		return c.outcome(q, err)
	default:
	}
	if q.batch == nil {
		c.queue = slices.DeleteFunc(c.queue, func(o *queued) bool { return o == q })
		return 0, fmt.Errorf("%w: %w", ErrNotPublished, context.Cause(ctx))
	}
	if q.batch.left--; q.batch.left == 0 {
		q.batch.cancel()
	}
	return 0, context.Cause(ctx) // sent, or being sent: unknown
}

// drain sends what has queued up until nothing has.
func (c *commit) drain() {
	buf := many.Get().(*[]transport.Message)
	defer many.Put(buf)
	for {
		batch, j, ctx := c.take()
		if batch == nil {
			return
		}
		msgs := (*buf)[:0]
		for _, q := range batch {
			msgs = append(msgs, q.msg)
		}
		*buf = msgs
		c.sendAll(ctx, batch, msgs)
		j.cancel()
		clear(*buf)
		clear(batch)
		c.mu.Lock()
		c.spare = batch[:0]
		c.mu.Unlock()
		if n := len(msgs); n > 1 && n < 128 {
			runtime.Gosched() // those who have had their outcome publish again, most likely, and go together
		}
	}
}

// take removes the next batch from the queue, or ends the commit's turn.
func (c *commit) take() ([]*queued, *joined, context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(len(c.queue), maxCommit)
	if n == 0 {
		c.busy, c.queue, c.spare, c.free = false, nil, nil, nil
		return nil, nil, nil
	}
	batch := c.queue[:n:n]
	if n == len(c.queue) {
		batch, c.queue = c.queue, c.spare
	} else {
		c.queue = c.queue[n:]
	}
	c.spare = nil
	ctx, cancel := context.WithCancel(context.Background())
	j := &joined{left: n, cancel: cancel}
	for _, q := range batch {
		q.batch = j
	}
	return batch, j, ctx
}

// sendAll sends a batch and tells each publisher its outcome. A message that
// is refused for itself does not keep the others from being sent.
func (c *commit) sendAll(ctx context.Context, batch []*queued, msgs []transport.Message) {
	for len(batch) > 0 {
		n, err := c.bus.transport.Send(ctx, c.topic, msgs)
		for _, q := range batch[:n] {
			q.done <- nil
		}
		batch, msgs = batch[n:], msgs[n:]
		if len(batch) == 0 {
			return
		}
		failed := batch
		if err = shortSend(err); transport.RefusedForItself(err) {
			failed = batch[:1]
		}
		for _, q := range failed {
			q.done <- err
		}
		batch, msgs = batch[len(failed):], msgs[len(failed):]
	}
}
