// Package memstream is echo's transport in memory: a bounded log per topic,
// with groups, leases, redelivery and replay as on a durable transport.
//
// A topic keeps one copy of each message in a log; a subscription is a cursor
// in it, so a message costs the same however many read it. The log is bounded
// in messages and bytes. A message that every group and broadcast
// subscription has been given may leave to make room; until then it stays
// for those who start at an older place. What happens when nothing may leave
// is the policy of [WithFull]. A message that was delivered and is not
// settled when it leaves the log is kept by its group, so that one stuck
// message does not stop the topic.
//
// Dead letters are a topic as others, with the same bounds. What is not due yet
// counts against the bounds of its topic apart from the log, and a topic
// remembers as many names of messages that are stored once as it may have
// messages. An inbox, for replies, has 1,024 messages at most and drops the
// oldest.
//
// Nothing is written to disk: what a process had not handled when it ended is
// gone. Publish into memory is an atomic step; its outcome is never unknown.
//
// A subscription or a message needs no goroutine. A group has one timer while
// it has messages in flight.
package memstream

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/echobus/echo/transport"
)

// Transport is a transport in memory. It is safe for concurrent use.
type Transport struct {
	cfg config
	err error // what is wrong with the options

	moving sync.Mutex // held by a Move, which locks two topics

	mu     sync.RWMutex // guards the rest
	topics map[string]*topic
	closed bool
}

var (
	_ transport.Transport    = (*Transport)(nil)
	_ transport.ValueCarrier = (*Transport)(nil)
	_ transport.Retainer     = (*Transport)(nil)
	_ transport.Immediate    = (*Transport)(nil)
	_ transport.Opener       = (*Transport)(nil)
	_ transport.Checker      = (*Transport)(nil)
	_ transport.Inspector    = (*Transport)(nil)
	_ transport.Pinger       = (*Transport)(nil)
	_ transport.Lister       = (*Transport)(nil)
	_ transport.Delayer      = (*Transport)(nil)
	_ transport.Deduplicator = (*Transport)(nil)
)

// New returns an empty transport. When options are wrong, every call on it
// returns an error that names them, and so does Err.
func New(opts ...Option) *Transport {
	t := &Transport{cfg: defaults(), topics: make(map[string]*topic)}
	for _, o := range opts {
		o(&t.cfg)
	}
	t.cfg.life = uint64(time.Now().UnixMicro())
	if err := t.cfg.check(); err != nil {
		t.err = fmt.Errorf("memstream: %w", err)
	}
	return t
}

// Ping implements [transport.Pinger]: a transport that is not closed is alive.
func (t *Transport) Ping(ctx context.Context) error {
	t.mu.RLock()
	closed := t.closed
	t.mu.RUnlock()
	switch {
	case t.err != nil:
		return t.err
	case closed:
		return transport.ErrClosed
	}
	return ctx.Err()
}

// Err returns what is wrong with the options given to New, or nil.
func (t *Transport) Err() error { return t.err }

// CarriesValues reports whether the transport was made [WithValues].
func (t *Transport) CarriesValues() bool { return t.cfg.values }

// RetainsMessages reports true: the log refers to the Data and Header it was given.
func (t *Transport) RetainsMessages() bool { return true }

// DelaysMessages reports true. What is not due yet counts for itself against
// the bounds of its topic.
func (t *Transport) DelaysMessages() bool { return true }

// DeduplicatesMessages reports true. A topic remembers as many messages as it
// may keep; Stats tells when that was too few.
func (t *Transport) DeduplicatesMessages() bool { return true }

// SendsImmediately reports true: Send is a short critical section.
func (t *Transport) SendsImmediately() bool { return true }

// Send implements [transport.Sender]. A full topic makes it wait, refuse
// (an error that wraps [transport.ErrFull]), or drop, as [WithFull] says.
func (t *Transport) Send(ctx context.Context, name string, msgs []transport.Message) (int, error) {
	if transport.IsInbox(name) && !t.wanted(name) {
		return t.nobody(ctx, name, msgs)
	}
	tp, err := t.topic(name)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", transport.ErrNotPublished, err)
	}
	return tp.send(ctx, msgs)
}

// Open implements [transport.Opener].
func (t *Transport) Open(name string) func(context.Context, string, []transport.Message) (int, error) {
	if transport.IsInbox(name) { // which is made by its subscription
		return t.Send
	}
	tp, err := t.topic(name)
	if err != nil {
		return t.Send
	}
	return func(ctx context.Context, _ string, msgs []transport.Message) (int, error) {
		return tp.send(ctx, msgs)
	}
}

// Subscribe implements [transport.Subscriber]. The subscription is an Acker, a
// Nacker, a Releaser, an Extender and, for a group, a Mover.
func (t *Transport) Subscribe(ctx context.Context, name string, opts transport.Options) (transport.Subscription, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := checkOptions(opts); err != nil {
		return nil, err
	}
	tp, err := t.topic(name)
	if err != nil {
		return nil, err
	}
	return tp.subscribe(opts)
}

func checkOptions(o transport.Options) error {
	if o.Group != "" {
		if err := transport.CheckName("group", o.Group); err != nil {
			return err
		}
	}
	switch {
	case o.Lease < 0:
		return fmt.Errorf("lease %v is negative", o.Lease)
	case o.MaxPending < 0:
		return fmt.Errorf("bound of %d pending messages is negative", o.MaxPending)
	case o.MaxPendingBytes < 0:
		return fmt.Errorf("bound of %d pending bytes is negative", o.MaxPendingBytes)
	}
	return nil
}

// Close ends every subscription and every waiting call and forgets all messages.
func (t *Transport) Close() error {
	t.mu.Lock()
	topics := t.topics
	t.topics, t.closed = nil, true
	t.mu.Unlock()
	for _, tp := range topics {
		tp.close()
	}
	return nil
}

// topic returns the named topic and makes it on first use.
func (t *Transport) topic(name string) (*topic, error) {
	t.mu.RLock()
	tp, closed := t.topics[name], t.closed
	t.mu.RUnlock()
	switch {
	case tp != nil:
		return tp, nil
	case closed:
		return nil, transport.ErrClosed
	case t.err != nil:
		return nil, t.err
	}
	if err := transport.CheckName("topic", name); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, transport.ErrClosed
	}
	if tp = t.topics[name]; tp == nil {
		tp = newTopic(name, t)
		t.topics[name] = tp
	}
	return tp, nil
}

// nobody is Send to a topic for replies that nobody receives from.
func (t *Transport) nobody(ctx context.Context, name string, msgs []transport.Message) (int, error) {
	t.mu.RLock()
	closed := t.closed
	t.mu.RUnlock()
	err := cmp.Or(t.err, transport.CheckName("topic", name), ctx.Err())
	if closed {
		err = transport.ErrClosed
	}
	n := 0
	for n < len(msgs) && err == nil {
		if msgs[n].Terms != nil {
			err = noTerms(&msgs[n], name)
		} else {
			n++
		}
	}
	if err != nil {
		return n, fmt.Errorf("%w: %w", transport.ErrNotPublished, err)
	}
	return n, nil
}

// wanted reports whether anybody subscribed to a topic.
func (t *Transport) wanted(name string) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.topics[name] != nil
}

// forget removes a topic that nobody needs any more. The caller holds the
// topic's lock, and so nobody who holds t.mu may ask for that.
func (t *Transport) forget(tp *topic) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.topics[tp.name] == tp {
		delete(t.topics, tp.name)
	}
}

// Stats is what a topic holds and what happened in it since it was made.
type Stats struct {
	Messages int    // in the log now
	Bytes    int    // their size
	Stored   uint64 // messages accepted
	Rejected uint64 // messages refused because the topic was full
	Lost     uint64 // messages a group or broadcast subscription did not get, summed over them
	Lapsed   uint64 // deliveries whose lease ended

	Delayed    int    // messages accepted and not due yet
	Duplicates uint64 // messages accepted that were there already
	Overflowed uint64 // messages that may be stored twice after all, as more are remembered than the topic may hold
}

// Stats returns the figures of a topic; the zero Stats when there is no such topic.
func (t *Transport) Stats(topic string) Stats {
	t.mu.RLock()
	tp := t.topics[topic]
	t.mu.RUnlock()
	if tp == nil {
		return Stats{}
	}
	tp.mu.Lock()
	defer tp.mu.Unlock()
	s := tp.stats
	s.Messages, s.Bytes, s.Delayed = tp.log.len(), tp.log.bytes(), len(tp.later.queue)
	return s
}

// clock is time as the package measures it: since a moment at start, so that
// changes of the wall clock have no effect.
var start = time.Now()

func clock() time.Duration { return time.Since(start) }

// after is d from now on the clock, a century at most.
func after(now, d time.Duration) time.Duration { return now + min(d, century) }

const century = 100 * 365 * 24 * time.Hour
