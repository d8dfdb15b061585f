package migrate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/echobus/echo/transport"
)

// Draining is a transport whose subscriptions leave one transport for another.
// It is made by [Drainover] and is safe for concurrent use.
type Draining struct {
	old, new  transport.Transport
	cfg       drainConfig
	err       error               // what is wrong with the options
	inspector transport.Inspector // old's, or nil
	inspected transport.Transport

	count drainCounters

	mu     sync.Mutex // guards the rest
	groups map[[2]string]*given
}

type drainCounters struct{ old, new, repeated, forgotten, late, switched atomic.Uint64 }

var (
	_ transport.Transport    = (*Draining)(nil)
	_ transport.ValueCarrier = (*Draining)(nil)
	_ transport.Retainer     = (*Draining)(nil)
	_ transport.Immediate    = (*Draining)(nil)
	_ transport.Delayer      = (*Draining)(nil)
	_ transport.Deduplicator = (*Draining)(nil)
	_ transport.Checker      = (*Draining)(nil)
)

// DrainOption is an option of [Drainover].
type DrainOption interface{ applyDrain(*drainConfig) }

type drainConfig struct {
	quiet      time.Duration
	remembered int
	logger     *slog.Logger
	err        error
}

type drainOption func(*drainConfig)

func (o drainOption) applyDrain(c *drainConfig) { o(c) }

// WithQuiet sets how long the old topic must have had nothing for a group, as
// often as that was looked at, before the group goes on with the new one; the
// default is 5 s. It is also how often the old topic is looked at after that.
func WithQuiet(d time.Duration) DrainOption {
	return drainOption(func(c *drainConfig) {
		if c.quiet = d; d <= 0 {
			c.err = errors.Join(c.err, fmt.Errorf("WithQuiet(%v): a quiet period is positive", d))
		}
	})
}

// WithRemembered sets how many IDs of the old transport a group, or a broadcast
// subscription, remembers to tell repetitions; the default is 262,144. Each takes
// about 150 bytes. When there are more, the ones learned first are forgotten, and
// counted by DrainStats.Forgotten: their messages may be delivered twice. Of the
// new transport it remembers the last 16,384, for late messages.
func WithRemembered(n int) DrainOption {
	return drainOption(func(c *drainConfig) {
		if c.remembered = n; n < 1 {
			c.err = errors.Join(c.err, fmt.Errorf("WithRemembered(%d): at least one ID", n))
		}
	})
}

// Drainover returns a transport that publishes to new alone. Its subscriptions
// consume what old has, and then what new has. Close closes both.
//
// A group begins on new when old has nothing for it: its lag and its pending
// messages, as old's [transport.Inspector] tells them, are zero for a while
// ([WithQuiet]). Each message is settled, extended and moved to dead letters where
// it came from. So the messages of a key that old has come before those that new
// has, retries included. new must have room for what is published meanwhile.
// Subscribe returns an error that wraps [errors.ErrUnsupported] when old cannot
// tell, or either transport lacks acknowledging, giving back, leases or moving.
//
// What comes to old after that all the same (from a publisher that was
// forgotten, a delay, a redrive) is found within the quiet period, delivered, and
// counted by DrainStats.Late; it comes among new's messages, in no order with them.
//
// A message that is on both, as after a [Tee], is delivered from one and
// silently acknowledged on the other, told by its ID, unless it is a dead letter that
// was sent home. When a group changes over,
// it learns the IDs of what old keeps, by a broadcast that begins a minute before
// the oldest message of new; so it does not matter which member, or process,
// handled them. It also remembers what was delivered here. Messages are
// delivered twice nevertheless when old does not keep them any more and they were
// not delivered by this Draining, when more IDs are needed than
// [WithRemembered] allows, and when a Tee still publishes after the group has changed over.
//
// A broadcast subscription that begins now reads new alone. One that begins
// earlier reads old from there to the end it had when the subscription was opened,
// settles that, and then reads new: from the same time or ID if it began at one, and
// else from new's oldest message, without what old had. It does not look at old again.
//
// A position of new has the highest bit of Hi set, so positions of old are lower
// and both are told apart; Send sets them so. A transport that uses this bit
// itself, another Draining too, ends the subscription with an error.
//
// MaxPending and MaxPendingBytes bound what is held of each transport, which is
// both at a time only while late messages are.
//
// When options are wrong, every call returns an error that says so, and so does Err.
func Drainover(old, new transport.Transport, opts ...DrainOption) *Draining {
	d := &Draining{
		old: old, new: new,
		cfg:    drainConfig{quiet: 5 * time.Second, remembered: 1 << 18, logger: silent},
		groups: make(map[[2]string]*given),
	}
	for _, o := range opts {
		o.applyDrain(&d.cfg)
	}
	if err := errors.Join(d.cfg.err, wrong(old, new)); err != nil {
		d.err = fmt.Errorf("migrate: drainover: %w", err)
		return d
	}
	d.inspector, _ = transport.As[transport.Inspector](old)
	if i, ok := transport.As[transport.Inspector](new); ok {
		d.inspected = inspected{d, sum{d.inspector, i}}
	}
	return d
}

// Send implements [transport.Sender]: it stores messages in the new transport,
// and replies in both, as who called may be on either.
func (d *Draining) Send(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
	if d.err != nil {
		return 0, notPublished(d.err)
	}
	if transport.IsInbox(topic) {
		return d.reply(ctx, topic, msgs)
	}
	n, err := d.new.Send(ctx, topic, msgs)
	for i := range msgs[:n] {
		if p := &msgs[i].Position; *p != (transport.Position{}) {
			*p = mark(*p)
		}
	}
	return n, err
}

// replyGrace is how long one way may take when the other one has a reply.
const replyGrace = time.Second

// reply sends replies by both ways at a time. One that takes them all is enough:
// the other one, which may be gone for good, has a moment more.
func (d *Draining) reply(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type outcome struct {
		n   int
		err error
	}
	outcomes := make(chan outcome, 2)
	for _, to := range []transport.Transport{d.old, d.new} {
		go func() {
			n, err := to.Send(ctx, topic, slices.Clone(msgs))
			outcomes <- outcome{n, err}
		}()
	}
	most, errs := 0, error(nil)
	for range 2 {
		o := <-outcomes
		most, errs = max(most, o.n), errors.Join(errs, o.err)
		if o.n == len(msgs) {
			defer time.AfterFunc(replyGrace, cancel).Stop()
		}
	}
	if most == len(msgs) {
		errs = nil
	}
	return most, errs
}

// Close closes both transports.
func (d *Draining) Close() error {
	var err error
	for _, of := range []transport.Transport{d.new, d.old} {
		if of != nil {
			err = errors.Join(err, of.Close())
		}
	}
	return err
}

// Unwrap leads [transport.As] to an Inspector that adds up what both transports
// tell, if the new one has one: what is on both counts twice.
func (d *Draining) Unwrap() transport.Transport { return d.inspected }

// Err returns what is wrong with the options of Drainover or of its transports, or nil.
func (d *Draining) Err() error { return d.err }

// CarriesValues reports whether the new transport carries values by reference.
func (d *Draining) CarriesValues() bool {
	return d.err == nil && does(d.new, transport.ValueCarrier.CarriesValues)
}

// RetainsMessages reports whether the new transport keeps what messages refer to.
func (d *Draining) RetainsMessages() bool {
	return d.err == nil && does(d.new, transport.Retainer.RetainsMessages)
}

// SendsImmediately reports whether the new transport does.
func (d *Draining) SendsImmediately() bool { return immediate(d.new) }

// DelaysMessages reports whether the new transport does.
func (d *Draining) DelaysMessages() bool {
	return d.err == nil && does(d.new, transport.Delayer.DelaysMessages)
}

// DeduplicatesMessages reports whether the new transport does. It does not know
// what was published on the old one.
func (d *Draining) DeduplicatesMessages() bool {
	return d.err == nil && does(d.new, transport.Deduplicator.DeduplicatesMessages)
}

// DrainStats is what a [Draining] did since it was made, summed over its subscriptions.
type DrainStats struct {
	Old, New  uint64 // deliveries from either transport
	Late      uint64 // of Old, those that came after their group had changed over
	Repeated  uint64 // messages that were on both, and acknowledged silently on one
	Forgotten uint64 // IDs of the old transport that were forgotten, as there were too many
	Switched  uint64 // subscriptions that went over to the new transport
}

// Stats returns the figures. Safe for concurrent use.
func (d *Draining) Stats() DrainStats {
	c := &d.count
	return DrainStats{c.old.Load(), c.new.Load(), c.late.Load(), c.repeated.Load(), c.forgotten.Load(), c.switched.Load()}
}

// poll is how long a Receive waits on the old transport before it looks whether
// that is empty.
func (d *Draining) poll() time.Duration {
	return min(max(d.cfg.quiet/4, 2*time.Millisecond), 500*time.Millisecond)
}
