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

// BridgeOption is an option of [Bridge].
type BridgeOption interface{ applyBridge(*bridgeConfig) }

type bridgeConfig struct {
	group  string
	batch  int
	lease  time.Duration
	min    time.Duration // of the back-off
	max    time.Duration
	hops   int
	here   string // names of the two ends
	there  string
	once   time.Duration
	stop   bool
	meter  *BridgeMeter
	logger *slog.Logger
	err    error
}

type bridgeOption func(*bridgeConfig)

func (o bridgeOption) applyBridge(c *bridgeConfig) { o(c) }

func (c *bridgeConfig) fail(bad bool, format string, args ...any) {
	if bad {
		c.err = errors.Join(c.err, fmt.Errorf(format, args...))
	}
}

// WithGroup sets the group in which a bridge consumes; the default is "bridge".
// Bridges of one group share the messages, and with that give up their order.
func WithGroup(name string) BridgeOption {
	return bridgeOption(func(c *bridgeConfig) {
		c.group = name
		if err := transport.CheckName("group", name); err != nil {
			c.fail(true, "WithGroup: %w", err)
		}
	})
}

// WithBatch sets how many messages of a topic are copied at a time; the default is 256.
func WithBatch(n int) BridgeOption {
	return bridgeOption(func(c *bridgeConfig) {
		c.batch = n
		c.fail(n < 1, "WithBatch(%d): at least one message", n)
	})
}

// WithLease sets how long the messages that a bridge held stay away when it
// crashes; the default is the transport's. While it runs, it extends them.
func WithLease(d time.Duration) BridgeOption {
	return bridgeOption(func(c *bridgeConfig) {
		c.lease = d
		c.fail(d <= 0, "WithLease(%v): a lease is positive", d)
	})
}

// WithBackoff sets how long a bridge waits after a failure: about min after the
// first one, twice as long after each further one, and at most max, each time
// shortened by up to a half at random. The default is 100 ms to 10 s.
func WithBackoff(min, max time.Duration) BridgeOption {
	return bridgeOption(func(c *bridgeConfig) {
		c.min, c.max = min, max
		c.fail(min <= 0 || max < min, "WithBackoff(%v, %v): the first is positive, and the second not less", min, max)
	})
}

// WithSites names the two ends of a bridge. A message that has been at the other
// end is not copied there again, through however many bridges it came. The names
// follow the rules for topics. Bridges that belong together name their ends alike.
func WithSites(from, to string) BridgeOption {
	return bridgeOption(func(c *bridgeConfig) {
		c.here, c.there = from, to
		for _, name := range []string{from, to} {
			if err := transport.CheckName("site", name); err != nil {
				c.fail(true, "WithSites: %w", err)
			}
		}
		c.fail(from == to, "WithSites(%q, %q): the two ends are one", from, to)
	})
}

// WithHops sets how many bridges a message may pass; the default is 1 without
// [WithSites] and 16 with it. What has passed as many is acknowledged and not copied.
func WithHops(n int) BridgeOption {
	return bridgeOption(func(c *bridgeConfig) {
		c.hops = n
		c.fail(n < 1, "WithHops(%d): at least one", n)
	})
}

// WithOnce asks the other end to store each ID once within a window, so that what is
// sent again is not there twice. It needs to be a [transport.Deduplicator].
func WithOnce(window time.Duration) BridgeOption {
	return bridgeOption(func(c *bridgeConfig) {
		c.once = window
		c.fail(window <= 0, "WithOnce(%v): a window is positive", window)
	})
}

// WithStopOnRefusal ends a bridge with an error when a message is refused for ever.
// By default that becomes a dead letter where it came from.
func WithStopOnRefusal() BridgeOption { return bridgeOption(func(c *bridgeConfig) { c.stop = true }) }

// WithMeter counts what a bridge does in m. Several bridges may share one.
func WithMeter(m *BridgeMeter) BridgeOption {
	return bridgeOption(func(c *bridgeConfig) {
		c.meter = m
		c.fail(m == nil, "WithMeter: the meter is nil")
	})
}

// BridgeMeter counts what bridges do. The zero meter is ready, and safe for
// concurrent use.
type BridgeMeter struct {
	copied, repeated, dead, refused, returned, lost atomic.Uint64
}

// BridgeStats is what bridges did.
type BridgeStats struct {
	Copied   uint64 // messages that the other end accepted
	Repeated uint64 // messages that were sent and may have been there: after an unknown outcome, or delivered again
	Dead     uint64 // messages that became dead letters, as the other end refuses them for ever
	Refused  uint64 // calls of Send that failed, and were tried again
	Returned uint64 // messages not copied, as they have been at the other end, or passed too many bridges
	Lost     uint64 // messages that were dropped before the bridge received them, as far as that is known
}

// Stats returns the figures.
func (m *BridgeMeter) Stats() BridgeStats {
	return BridgeStats{m.copied.Load(), m.repeated.Load(), m.dead.Load(), m.refused.Load(), m.returned.Load(), m.lost.Load()}
}

// Bridge copies topics from one transport to another until ctx ends, which is no
// error: what the other end accepted is acknowledged then, and the rest given
// back. ID, key, time, type, header and data stay as they are; the header
// "echo-bridge" is added, which lists where a message came from. A message
// takes its place at the other end when it is copied. Neither transport is closed.
//
// Each message is copied at least once: it is acknowledged when the other end has
// accepted it. What was sent when a bridge crashed, or when an outcome is unknown,
// is sent again under its ID; [WithOnce] has it stored once. First copies keep the
// order of the topic. What is sent again after a crash comes after what a crashed
// bridge had already copied.
//
// When the other end fails, or is full, the bridge tries again, as [WithBackoff]
// says, for as long as it takes. A message that is refused for ever (too large, or of
// a kind that the other end cannot store: an error that wraps
// [transport.ErrTooLarge] or [errors.ErrUnsupported]) becomes a dead letter of its topic
// where it came from, with the reason "rejected".
//
// It returns an error at once when options are wrong or a transport lacks what is
// needed, and later when a subscription fails for good or a transport was closed. All
// topics end then.
func Bridge(ctx context.Context, from, to transport.Transport, topics []string, opts ...BridgeOption) error {
	c := bridgeConfig{group: "bridge", batch: 256, min: 100 * time.Millisecond, max: 10 * time.Second, meter: new(BridgeMeter), logger: silent}
	for _, o := range opts {
		o.applyBridge(&c)
	}
	if c.hops == 0 && c.err == nil {
		if c.hops = 1; c.here != "" {
			c.hops = 16
		}
	}
	if err := c.check(from, to, topics); err != nil {
		return fmt.Errorf("migrate: bridge: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil
	}
	lanes, err := openLanes(ctx, from, to, topics, &c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(lanes))
	var wg sync.WaitGroup
	for i, l := range lanes {
		wg.Go(func() {
			defer cancel() // one topic's end is the end of all
			if err := errors.Join(l.run(ctx), l.sub.Close()); err != nil {
				errs[i] = fmt.Errorf("migrate: bridge: topic %s: %w", l.topic, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (c *bridgeConfig) check(from, to transport.Transport, topics []string) error {
	err := errors.Join(c.err, wrong(from, to))
	if err != nil {
		return err
	}
	if len(topics) == 0 {
		return errors.New("no topics")
	}
	for i, name := range topics {
		if slices.Contains(topics[:i], name) {
			err = errors.Join(err, fmt.Errorf("topic %s is named twice", name))
		}
	}
	if c.once > 0 && !does(to, transport.Deduplicator.DeduplicatesMessages) {
		err = errors.Join(err, fmt.Errorf("WithOnce: the other end does not deduplicate messages: %w", errors.ErrUnsupported))
	}
	if does(from, transport.ValueCarrier.CarriesValues) && !does(to, transport.ValueCarrier.CarriesValues) {
		err = errors.Join(err, fmt.Errorf("values that are carried by reference cannot be sent to where they are not: %w", errors.ErrUnsupported))
	}
	return err
}

func openLanes(ctx context.Context, from, to transport.Transport, topics []string, c *bridgeConfig) ([]*lane, error) {
	var lanes []*lane
	for _, topic := range topics {
		l, err := openLane(ctx, from, to, topic, c)
		if err == nil {
			lanes = append(lanes, l)
			continue
		}
		for _, l := range lanes {
			err = errors.Join(err, l.sub.Close())
		}
		if ctx.Err() != nil {
			return nil, nil
		}
		return nil, fmt.Errorf("migrate: bridge: topic %s: %w", topic, err)
	}
	return lanes, nil
}
