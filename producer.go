package echo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/echobus/echo/transport"
)

// Producer publishes values of one type to one topic. It holds no resources,
// needs no Close and is safe for concurrent use: calls of Publish that come
// while a slow transport is busy are sent together.
type Producer[M any] struct {
	bus   *Bus
	topic *Topic[M]
	err   error // why nothing can be published
	codec Codec
	typ   string // content type of its messages
	send  SendFunc

	mu    sync.Mutex // guards the rest
	ids   ids
	boxes []M // memory for values carried by reference
}

// NewProducer returns a producer for topic on bus. What is wrong with either
// is returned by its first Publish.
func NewProducer[M any](b *Bus, topic *Topic[M]) *Producer[M] {
	p := &Producer[M]{bus: b, topic: topic}
	if b == nil {
		p.err = fmt.Errorf("bus is nil")
		return p
	}
	if p.err = b.err; p.err == nil {
		p.err = topic.check(b)
	}
	if p.err == nil {
		p.err = topic.publishable(b)
	}
	if p.err != nil {
		return p
	}
	p.codec = topic.codec(b)
	p.typ = typeOf(p.codec, topic.cfg.version)
	p.send = b.sender(topic.name)
	for i := len(b.cfg.hooks) - 1; i >= 0; i-- {
		p.send = b.cfg.hooks[i](p.send)
	}
	return p
}

// publishable returns why nothing can be published to a topic on a bus.
func (t *Topic[M]) publishable(b *Bus) error {
	_, dead := transport.CutDead(t.name)
	switch {
	case dead:
		return fmt.Errorf("topic %s is of dead letters, to which only failures lead", t.name)
	case transport.IsPattern(t.name):
		return fmt.Errorf("topic %s is a pattern, which nothing can be published to", t.name)
	case t.cfg.dedup > 0 && !b.dedups:
		return fmt.Errorf("topic %s: WithDedup: the transport does not deduplicate messages: %w", t.name, errors.ErrUnsupported)
	}
	return nil
}

// one lends out the slice of one message that a Publish sends.
var one = sync.Pool{New: func() any { return new([1]transport.Message) }}

// many lends out the slices that PublishBatch sends.
var many = sync.Pool{New: func() any { return new([]transport.Message) }}

// Publish encodes v and stores it in the topic. It returns nil when the
// transport has it, or a [*PublishError] whose outcome is [ErrNotPublished] or
// [ErrPublishUnknown].
//
// ctx bounds the call. A value that is not nil stays the caller's: it is
// encoded before Publish returns, but for a transport that carries values by
// reference.
func (p *Producer[M]) Publish(ctx context.Context, v M, opts ...PublishOption) error {
	if len(opts) == 0 {
		return p.publish(ctx, v, nil)
	}
	cfg := configs.Get().(*publishConfig) // it escapes to the options
	defer cfg.free()
	for _, o := range opts {
		o.applyPublish(cfg)
	}
	return p.publish(ctx, v, cfg)
}

// publish is Publish with a config, which may be nil.
func (p *Producer[M]) publish(ctx context.Context, v M, cfg *publishConfig) error {
	if err := p.ready(); err != nil {
		return notPublished(p.topicName(), 1, err)
	}
	buf := one.Get().(*[1]transport.Message)
	defer func() {
		buf[0] = transport.Message{}
		one.Put(buf)
	}()
	if err := p.encode(&buf[0], v, cfg); err != nil {
		return notPublished(p.topic.name, 1, err)
	}
	if n, err := p.send(ctx, p.topic.name, buf[:]); n < 1 {
		return publishError(p.topic.name, 0, 1, shortSend(err))
	}
	return nil
}

// PublishBatch encodes vs and stores them in order, with the options for each.
// Nothing is stored when one of them cannot be encoded. Otherwise a
// [*PublishError] says how many were accepted, counted from the first, and
// what is known of the others.
func (p *Producer[M]) PublishBatch(ctx context.Context, vs []M, opts ...PublishOption) error {
	if err := p.ready(); err != nil {
		return notPublished(p.topicName(), len(vs), err)
	}
	var cfg publishConfig
	for _, o := range opts {
		o.applyPublish(&cfg)
	}
	if cfg.id != nil && len(vs) > 1 {
		return notPublished(p.topic.name, len(vs), fmt.Errorf("WithID gives one ID, PublishBatch has %d values", len(vs)))
	}
	if cfg.once != "" && len(vs) > 1 {
		return notPublished(p.topic.name, len(vs), fmt.Errorf("WithIdempotencyKey gives one key, PublishBatch has %d values", len(vs)))
	}
	buf := many.Get().(*[]transport.Message)
	*buf = slices.Grow((*buf)[:0], len(vs))[:len(vs)]
	defer func() {
		if clear(*buf); cap(*buf) <= maxCommit {
			many.Put(buf)
		}
	}()
	msgs := *buf
	for i, v := range vs {
		if err := p.encode(&msgs[i], v, &cfg); err != nil {
			return notPublished(p.topic.name, len(vs), fmt.Errorf("value %d: %w", i, err))
		}
	}
	if len(msgs) == 0 {
		return nil
	}
	if n, err := p.send(ctx, p.topic.name, msgs); n < len(msgs) {
		return publishError(p.topic.name, n, len(msgs), shortSend(err))
	}
	return nil
}

// shortSend is the error of a Send that stored too little.
func shortSend(err error) error {
	if err == nil {
		return fmt.Errorf("transport sent less than it was given and returned no error")
	}
	return err
}

func (p *Producer[M]) ready() error {
	if p.err != nil {
		return p.err
	}
	if p.bus.closed.Load() {
		return ErrClosed
	}
	return nil
}

// Topic is the name of the producer's topic, "" without one.
func (p *Producer[M]) Topic() string {
	if p.topic == nil {
		return ""
	}
	return p.topic.name
}

func (p *Producer[M]) topicName() string {
	if p.topic == nil {
		return "nil topic"
	}
	return p.topic.name
}

// encode fills m with v. cfg may be nil.
func (p *Producer[M]) encode(m *transport.Message, v M, cfg *publishConfig) error {
	p.mu.Lock()
	id, now := p.ids.next()
	if p.bus.values {
		m.Value = p.boxed(v)
	}
	p.mu.Unlock()
	m.ID, m.Time = id, now.UTC().Round(0)
	if p.topic.key != nil {
		m.Key = p.topic.key(v)
	}
	if cfg != nil {
		if err := cfg.fill(m); err != nil {
			return err
		}
	}
	if cfg != nil || p.topic.cfg.dedup > 0 {
		if err := p.terms(m, cfg, now); err != nil {
			return err
		}
	}
	if !p.bus.values {
		data, err := p.codec.Encode(v)
		if err != nil {
			return fmt.Errorf("encode: %w", err)
		}
		m.Data, m.Type = data, p.typ
	}
	return p.bus.cfg.limits.check(m)
}

// id returns a fresh ID and the time it was made.
func (p *Producer[M]) id() (string, time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id, now := p.ids.next()
	return id, now.UTC().Round(0)
}

// boxed returns a pointer to a copy of v. Values that come in quick succession
// share an allocation of up to 1 KiB. The caller holds mu.
func (p *Producer[M]) boxed(v M) *M {
	if len(p.boxes) == 0 {
		size := max(1, int(reflect.TypeFor[M]().Size()))
		p.boxes = make([]M, max(1, min(p.ids.size, 1<<10/size)))
	}
	b := &p.boxes[0]
	p.boxes = p.boxes[1:]
	*b = v
	return b
}

// PublishOption is an option of [Producer.Publish].
type PublishOption interface{ applyPublish(*publishConfig) }

// configs lends out what options fill in.
var configs = sync.Pool{New: func() any { return new(publishConfig) }}

func (c *publishConfig) free() {
	*c = publishConfig{}
	configs.Put(c)
}

type publishConfig struct {
	id     *string
	key    *string
	header map[string]string

	due     func(now time.Time) time.Time
	dueName string // the option that set it
	ttl     time.Duration
	once    string

	reply string // where the reply to this request goes
	call  uint64
	until time.Time // when nobody waits for it any more

	err error
}

func (c *publishConfig) fail(err error) { c.err = errors.Join(c.err, err) }

func (c *publishConfig) fill(m *transport.Message) error {
	if c.err != nil {
		return c.err
	}
	if c.id != nil {
		if err := checkID(*c.id); err != nil {
			return err
		}
		m.ID = *c.id
	}
	if c.key != nil {
		m.Key = *c.key
	}
	for name := range c.header {
		if len(name) >= len(reserved) && name[:len(reserved)] == reserved {
			return fmt.Errorf("header name %q: the prefix %q is reserved", name, reserved)
		}
	}
	m.Header = maps.Clone(c.header)
	return nil
}

// reserved is the prefix of headers that are echo's own.
const reserved = "echo-"

type publishOption func(*publishConfig)

func (o publishOption) applyPublish(c *publishConfig) { o(c) }

// WithKey gives the message a key, in place of the topic's key function.
func WithKey(key string) PublishOption {
	return publishOption(func(c *publishConfig) { c.key = &key })
}

// WithHeader adds a header. Names are tokens as in HTTP, values are UTF-8
// without control characters; names that begin with "echo-" are reserved.
func WithHeader(name, value string) PublishOption {
	return publishOption(func(c *publishConfig) {
		if c.header == nil {
			c.header = make(map[string]string)
		}
		c.header[name] = value
	})
}

// WithID gives the message an ID of the caller's, such as one it was published
// under before, in place of a new UUIDv7.
func WithID(id string) PublishOption {
	return publishOption(func(c *publishConfig) { c.id = &id })
}
