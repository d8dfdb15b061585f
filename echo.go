// Package echo is typed publish/subscribe with swappable transports.
//
// A [Topic] is a name and a type. A [Producer] publishes values of that type, a
// [Consumer] receives them, and a [Bus] joins them over a transport: in memory
// by default.
//
//	var orders = echo.NewTopic[Order]("orders")
//
//	bus := echo.New()
//	defer bus.Close(ctx)
//
//	consumer, err := echo.Subscribe(ctx, bus, orders, echo.WithGroup("billing"))
//	go consumer.Run(ctx, func(ctx context.Context, m echo.Message[Order]) error {
//		return charge(ctx, m.Value)
//	})
//
//	producer := echo.NewProducer(bus, orders)
//	err = producer.Publish(ctx, Order{ID: "o-1", Total: 12.5})
//
// # Delivery
//
// Delivery is at least once. A message is leased to one member of each group
// and comes again, with a higher Attempt, when its handler fails, its lease ends
// or its holder goes away; so handlers must bear repetition. Without a group
// each subscription gets every message, under the same rules.
//
// First deliveries come in the order in which messages were stored. Messages
// with equal keys are handled one after another within a consumer, also with
// [WithConcurrency] and through retries.
//
// [WithRetry] says how often and when a message is tried again. What is not goes
// among the [DeadLetters] of its topic, from where [Redrive] sends it home.
//
// # Requests
//
// [Call] sends a request to those who [Respond] to a [Service], and awaits the reply.
//
// # Outcomes
//
// Publish returns nil when the transport has the message, an error that wraps
// [ErrNotPublished] when it surely has not, and one that wraps
// [ErrPublishUnknown] when that cannot be known.
//
// # Shutdown
//
// [Bus.Close] stops receiving, lets handlers finish, gives back what was not
// started and returns the account.
package echo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
)

// Bus joins producers and consumers over one transport. It is safe for
// concurrent use.
type Bus struct {
	cfg       busConfig
	err       error // what is wrong with the options
	transport transport.Transport
	values    bool             // the transport carries values by reference
	immediate bool             // its Send gains nothing from group commit
	delays    bool             // the transport delays messages
	dedups    bool             // the transport deduplicates messages
	decoders  map[string]Codec // by content type

	// settling is the context of settlements: no caller's. It ends with Close, or
	// settleGrace after the context of that.
	settling    context.Context
	endSettling context.CancelFunc

	sending sync.WaitGroup // group commits under way
	closed  atomic.Bool    // refuses publishing

	callers    sync.Map        // of services, by these
	replies    context.Context // of the inbox; ends with Close
	endReplies context.CancelFunc
	replying   sync.WaitGroup // the inbox under way

	mu          sync.Mutex // guards the rest
	draining    bool       // refuses subscribing
	inbox       *opening   // of replies to calls, nil until the first
	inboxClosed bool
	consumers   map[*consumer]struct{}
	commits     map[string]*commit // by topic
	closing     chan struct{}      // closed when Close is done; nil before it begins
	account     Account
	closeErr    error
}

// New returns a bus, in memory unless [WithTransport] says otherwise. When
// options are wrong, everything done with the bus returns an error that names
// them.
func New(opts ...BusOption) *Bus {
	b := &Bus{cfg: defaultBusConfig(), consumers: make(map[*consumer]struct{}), commits: make(map[string]*commit)}
	for _, o := range opts {
		o.applyBus(&b.cfg)
	}
	if b.transport = b.cfg.transport; b.transport == nil {
		b.transport = memstream.New()
	}
	if c, ok := transport.As[transport.Checker](b.transport); ok {
		b.cfg.fail(c.Err())
	}
	if c, ok := transport.As[transport.ValueCarrier](b.transport); ok {
		b.values = c.CarriesValues()
	}
	if c, ok := b.transport.(transport.Immediate); ok {
		b.immediate = c.SendsImmediately()
	}
	if c, ok := transport.As[transport.Delayer](b.transport); ok {
		b.delays = c.DelaysMessages()
	}
	if c, ok := transport.As[transport.Deduplicator](b.transport); ok {
		b.dedups = c.DeduplicatesMessages()
	}
	b.decoders = make(map[string]Codec)
	addCodecs(b.decoders, []Codec{JSON, Bytes, Text})
	addCodecs(b.decoders, append([]Codec{b.cfg.codec}, b.cfg.also...))
	b.err = errors.Join(b.cfg.errs...)
	b.settling, b.endSettling = context.WithCancel(context.Background())
	b.replies, b.endReplies = context.WithCancel(context.Background())
	return b
}

// Open returns a bus over the transport of a URL, so that configuration swaps
// it. ctx bounds connecting. mem:// is always there; other drivers register
// themselves when the program imports them:
//
//	import _ "github.com/echobus/echo/redisstream" // redis://, rediss://, redis+sentinel://, redis+cluster://
//	import _ "github.com/echobus/echo/wsstream"    // ws://, wss://
//
//	bus, err := echo.Open(ctx, os.Getenv("ECHO_URL"))
//
// Parameters of the URL are options of the driver, such as
// mem://?messages=1000&full=reject, redis://localhost/0?prefix=shop or
// wss://:token@example.com/echo. The options must not name another transport.
func Open(ctx context.Context, url string, opts ...BusOption) (*Bus, error) {
	t, err := transport.Open(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("echo: %w", err)
	}
	b := New(append([]BusOption{WithTransport(t)}, opts...)...)
	if b.err != nil {
		t.Close()
		return nil, fmt.Errorf("echo: open: %w", b.err)
	}
	return b, nil
}

// Account is what became of the messages that consumers held when [Bus.Close]
// was called.
type Account struct {
	Completed    int // handlers that finished during the close, with or without an error
	Acknowledged int // messages acknowledged during the close
	GivenBack    int // messages handed back to their group: never started, or failed
	Abandoned    int // messages left unsettled, most of them with handlers still running
}

// Close ends the bus in phases: consumers stop receiving and give back what
// they had not started; handlers run on, and may publish, until they finish or
// ctx ends; acknowledgements are flushed; publishing ends; the transport is
// closed. It returns the account of the messages concerned, and an error that
// wraps ctx's if handlers were still running when it ended; their contexts are
// cancelled then, with cause [ErrClosed].
//
// Close waits for all handlers, so calling it from one needs a ctx that ends.
// Later calls wait for the first one, within their own ctx, and return what it did.
func (b *Bus) Close(ctx context.Context) (Account, error) {
	b.mu.Lock()
	done, first := b.closing, b.closing == nil
	if first {
		done = make(chan struct{})
		b.closing = done
	}
	b.mu.Unlock()
	if first {
		b.account, b.closeErr = b.close(ctx)
		close(done)
	}
	select {
	case <-done:
		return b.account, b.closeErr
	default:
	}
	select {
	case <-done:
		return b.account, b.closeErr
	case <-ctx.Done():
		return Account{}, fmt.Errorf("echo: close: another one is under way: %w", context.Cause(ctx))
	}
}

// settleGrace is how long acknowledgements may take once there is no time left:
// a Close whose context has ended acknowledges what was handled all the same.
const settleGrace = time.Second

func (b *Bus) close(ctx context.Context) (Account, error) {
	defer b.endSettling()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(settleGrace, b.endSettling) })()
	b.mu.Lock()
	b.draining = true
	consumers := make([]*consumer, 0, len(b.consumers))
	for c := range b.consumers {
		consumers = append(consumers, c)
	}
	b.mu.Unlock()
	for _, c := range consumers {
		c.unlimit() // ctx is the limit
		c.stop()
	}
	var acc Account
	running := 0
	for _, c := range consumers {
		running += c.finish(ctx)
		c.tally(&acc)
	}
	b.closed.Store(true)
	b.closeInbox()
	if running == 0 {
		b.await(&b.sending)
	}
	err := b.transport.Close()
	if running > 0 {
		err = errors.Join(fmt.Errorf("%d handlers still running: %w", running, context.Cause(ctx)), err)
	}
	if err != nil {
		err = fmt.Errorf("echo: close: %w", err)
	}
	return acc, err
}

// await waits for goroutines that a transport may hold up, as long as it takes
// acknowledgements. Closing the transport ends them.
func (b *Bus) await(work *sync.WaitGroup) {
	done := make(chan struct{})
	go func() {
		work.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-b.settling.Done():
	}
}

// add registers a consumer, unless the bus is closing.
func (b *Bus) add(c *consumer) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.draining {
		return ErrClosed
	}
	b.consumers[c] = struct{}{}
	return nil
}

func (b *Bus) remove(c *consumer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.consumers, c)
}

// BusOption is an option of [New].
type BusOption interface{ applyBus(*busConfig) }

type busConfig struct {
	transport  transport.Transport
	codec      Codec
	also       []Codec
	logger     *slog.Logger
	limits     Limits
	middleware []func(Handler[any]) Handler[any]
	hooks      []func(SendFunc) SendFunc
	errs       []error
}

func defaultBusConfig() busConfig {
	return busConfig{codec: JSON, logger: slog.New(slog.DiscardHandler), limits: defaultLimits()}
}

func (c *busConfig) fail(err error) {
	if err != nil {
		c.errs = append(c.errs, err)
	}
}

type busOption func(*busConfig)

func (o busOption) applyBus(c *busConfig) { o(c) }

// WithTransport puts the bus on a transport and hands it over: closing the bus
// closes the transport. Buses that share one wrap it in [transport.KeepOpen].
func WithTransport(t transport.Transport) BusOption {
	return busOption(func(c *busConfig) {
		switch {
		case t == nil:
			c.fail(errors.New("WithTransport: the transport is nil"))
		case c.transport != nil:
			c.fail(fmt.Errorf("WithTransport is given twice: %T and %T", c.transport, t))
		}
		c.transport = t
	})
}

// WithLogger sets where the bus logs what it does not return: failed handlers,
// messages set aside, messages lost. By default nowhere.
func WithLogger(l *slog.Logger) BusOption {
	return busOption(func(c *busConfig) {
		if c.logger = l; l == nil {
			c.fail(errors.New("WithLogger: the logger is nil"))
		}
	})
}

// WithMiddleware puts functions around handlers, the first outermost: around
// those of every consumer of a bus, or, given to [Subscribe], of one consumer,
// inside the bus's. A middleware may change the context and the message it
// passes on, but not the type of its Value.
func WithMiddleware(mw ...func(next Handler[any]) Handler[any]) interface {
	BusOption
	SubscribeOption
} {
	return middlewareOption(mw)
}

type middlewareOption []func(Handler[any]) Handler[any]

func (o middlewareOption) err() error {
	for i, mw := range o {
		if mw == nil {
			return fmt.Errorf("WithMiddleware: function %d of %d is nil", i+1, len(o))
		}
	}
	return nil
}

func (o middlewareOption) applyBus(c *busConfig) {
	c.middleware = append(c.middleware, o...)
	c.fail(o.err())
}

func (o middlewareOption) applySubscribe(c *subscribeConfig) {
	c.middleware = append(c.middleware, o...)
	c.fail(o.err())
}

// SendFunc publishes encoded messages, as [transport.Sender] says. Hooks may
// change their headers before they pass them on.
type SendFunc func(ctx context.Context, topic string, msgs []transport.Message) (n int, err error)

// WithPublishHook puts functions around publishing, the first outermost: one
// call for each Publish and PublishBatch.
func WithPublishHook(hooks ...func(next SendFunc) SendFunc) BusOption {
	return busOption(func(c *busConfig) {
		c.hooks = append(c.hooks, hooks...)
		for i, h := range hooks {
			if h == nil {
				c.fail(fmt.Errorf("WithPublishHook: function %d of %d is nil", i+1, len(hooks)))
			}
		}
	})
}
