package echo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/echobus/echo/transport"
)

// Subscribe opens a subscription to topic and returns its consumer. A message
// whose Publish begins after Subscribe returned is not missed.
//
// With [WithGroup] the consumers of the group share the topic's messages, and
// a new group begins with the oldest message that is kept. Without it the
// subscription is a broadcast: it gets every message, beginning now.
//
// ctx bounds this call alone; the subscription ends with [Consumer.Close],
// [Bus.Close] or the end of [Consumer.Run].
func Subscribe[M any](ctx context.Context, b *Bus, topic *Topic[M], opts ...SubscribeOption) (*Consumer[M], error) {
	c, err := subscribe(ctx, b, topic, opts)
	if err != nil {
		name := "nil topic"
		if topic != nil {
			name = topic.name
		}
		return nil, fmt.Errorf("echo: subscribe %s: %w", name, err)
	}
	return c, nil
}

func subscribe[M any](ctx context.Context, b *Bus, topic *Topic[M], opts []SubscribeOption) (*Consumer[M], error) {
	if b == nil {
		return nil, errors.New("bus is nil")
	}
	if b.err != nil {
		return nil, b.err
	}
	if err := topic.check(b); err != nil {
		return nil, err
	}
	cfg, err := newSubscribeConfig(opts)
	if err != nil {
		return nil, err
	}
	core, err := newConsumer(ctx, b, topic.name, cfg)
	if err != nil {
		return nil, err
	}
	return &Consumer[M]{core: core, decs: newDecoders(b, topic.cfg, topic.codec(b)), read: topic.read}, nil
}

// SubscribeOption is an option of [Subscribe] and [Handle].
type SubscribeOption interface{ applySubscribe(*subscribeConfig) }

type subscribeConfig struct {
	transport.Options
	startName   string // the option that set Options.Start
	concurrency int
	retry       Retry
	dedup       time.Duration
	deadExpired bool
	drain       time.Duration
	onError     func(context.Context, error) error
	middleware  []func(Handler[any]) Handler[any]
	prefetchSet bool
	drainSet    bool
	err         error
}

const (
	defaultPrefetch      = 1024
	defaultPrefetchBytes = 8 << 20
)

func newSubscribeConfig(opts []SubscribeOption) (*subscribeConfig, error) {
	cfg := &subscribeConfig{
		concurrency: 1,
		retry:       Retry{}.filled(),
		drain:       30 * time.Second,
	}
	cfg.MaxPending, cfg.MaxPendingBytes = defaultPrefetch, defaultPrefetchBytes
	for _, o := range opts {
		o.applySubscribe(cfg)
	}
	if !cfg.prefetchSet {
		cfg.MaxPending = max(cfg.MaxPending, 2*cfg.concurrency)
	}
	if cfg.concurrency > cfg.MaxPending {
		cfg.fail(fmt.Errorf("WithConcurrency(%d) needs more messages than WithPrefetch(%d) allows", cfg.concurrency, cfg.MaxPending))
	}
	if t := cfg.retry.Timeout; cfg.drainSet && t > cfg.drain {
		cfg.fail(fmt.Errorf("WithRetry gives an attempt %v, and WithDrainTimeout(%v) ends it sooner when the consumer stops", t, cfg.drain))
	}
	cfg.drain = max(cfg.drain, cfg.retry.Timeout)
	return cfg, cfg.err
}

func (c *subscribeConfig) fail(err error) {
	c.err = errors.Join(c.err, err)
}

type subscribeOption func(*subscribeConfig)

func (o subscribeOption) applySubscribe(c *subscribeConfig) { o(c) }

// WithGroup makes the consumer a member of a group: each message goes to one
// member. The group keeps its place in the topic while it has no members.
// Names are as for topics.
func WithGroup(name string) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) {
		c.Group = name
		c.fail(transport.CheckName("group", name))
	})
}

// FromOldest begins with the oldest message that is kept. Like the other
// From options it applies to a broadcast subscription and to a group that is
// new; a group that exists goes on where it was.
func FromOldest() SubscribeOption {
	return from("FromOldest", transport.Start{From: transport.Oldest})
}

// FromNewest begins with the first message published from now on.
func FromNewest() SubscribeOption {
	return from("FromNewest", transport.Start{From: transport.Newest})
}

// FromID begins after the message with an ID, which must still be kept.
func FromID(id string) SubscribeOption {
	return from("FromID", transport.Start{From: transport.AfterID, ID: id})
}

// FromTime begins with the first message kept that was published at t or later.
func FromTime(t time.Time) SubscribeOption {
	return from("FromTime", transport.Start{From: transport.AtTime, Time: t})
}

func from(name string, s transport.Start) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) {
		if c.startName != "" && (c.startName != name || c.Start != s) {
			c.fail(fmt.Errorf("%s contradicts %s: a subscription begins at one place", name, c.startName))
		}
		if s.From == transport.AfterID && s.ID == "" {
			c.fail(errors.New("FromID: the ID is empty"))
		}
		c.startName, c.Start = name, s
	})
}

// WithConcurrency lets [Consumer.Run] call the handler up to n times at once.
// Messages with equal keys are handled one after another in their order,
// retries included. The default is 1: one after another, whatever the keys.
func WithConcurrency(n int) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) {
		if c.concurrency = n; n < 1 {
			c.fail(fmt.Errorf("WithConcurrency(%d): at least one handler is needed", n))
		}
	})
}

// WithPrefetch bounds what the consumer holds and has not settled: messages,
// and bytes as [transport.Message.Size] counts them (0 leaves them at their
// default). The defaults are 1,024 messages (or twice the concurrency) and 8 MiB.
//
// A consumer fetches ahead as many messages as its handler gets through in a
// few milliseconds, so a slow one does not hoard what others could do.
func WithPrefetch(messages, bytes int) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) {
		c.prefetchSet = true
		c.MaxPending = messages
		if bytes != 0 {
			c.MaxPendingBytes = bytes
		}
		if messages < 1 || bytes < 0 {
			c.fail(fmt.Errorf("WithPrefetch(%d, %d): at least one message, and no negative size", messages, bytes))
		}
	})
}

// WithLease sets how long a message may stay unsettled before it goes to
// another member of the group; the default is the transport's, 30 s in memory.
// While a message waits in the consumer or its handler runs, the lease is
// extended: it matters when a process stops without saying so.
func WithLease(d time.Duration) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) {
		if c.Lease = d; d <= 0 {
			c.fail(fmt.Errorf("WithLease(%v): a lease must be positive", d))
		}
	})
}

// WithDrainTimeout sets how long handlers may go on after Run's context ended
// or the consumer was closed, before their contexts are cancelled; the default
// is 30 s, or [Retry].Timeout if that is longer. During [Bus.Close] its context is the limit instead.
func WithDrainTimeout(d time.Duration) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) {
		if c.drain, c.drainSet = d, true; d < 0 {
			c.fail(fmt.Errorf("WithDrainTimeout(%v): the time is negative", d))
		}
	})
}

// WithErrorHook lets f decide about what Run has no handler for: a
// [*DecodeError], where nil makes the message a dead letter and an error has it
// delivered again as if a handler had returned it, or a [*LostError], where nil
// goes on and an error ends Run with it. f is called by the goroutines of
// handlers and instead of them. Without it both are logged, and Run goes on.
func WithErrorHook(f func(ctx context.Context, err error) error) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) {
		if c.onError = f; f == nil {
			c.fail(errors.New("WithErrorHook: the function is nil"))
		}
	})
}
