package echo

import (
	"fmt"
	"reflect"
	"time"

	"github.com/echobus/echo/transport"
)

// Topic is the contract between producers and consumers: a name, and the type
// of the values published under it. It holds no resources and is safe to
// share; a package-level variable is its natural place.
type Topic[M any] struct {
	name string
	cfg  topicConfig
	key  func(M) string
	err  error
	// read makes a value of a message in place of the codec alone; such a topic
	// is not published to.
	read func(c *Consumer[M], raw *transport.Message) (*M, int, error)
}

// NewTopic returns the topic called name that carries values of type M.
//
// Names match ^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$. A wrong name or option does
// no harm here, so that a topic can be a package-level variable: the first
// Publish or Subscribe returns the error.
func NewTopic[M any](name string, opts ...TopicOption) *Topic[M] {
	t := &Topic[M]{name: name}
	t.err = transport.CheckName("topic", name)
	for _, o := range opts {
		o.applyTopic(&t.cfg)
	}
	if t.err == nil {
		t.err = t.cfg.err
	}
	if t.err == nil {
		if err := link(t.cfg.upcasts, t.cfg.version, reflect.TypeFor[M]()); err != nil {
			t.err = fmt.Errorf("topic %s: %w", name, err)
		}
	}
	if t.cfg.key != nil {
		var ok bool
		if t.key, ok = t.cfg.key.(func(M) string); !ok && t.err == nil {
			t.err = fmt.Errorf("topic %s carries %v, but WithKeyFunc got a %T", name, reflect.TypeFor[M](), t.cfg.key)
		}
	}
	return t
}

// Name returns the name of the topic.
func (t *Topic[M]) Name() string { return t.name }

// check returns what is wrong with the topic on a bus. The nil topic is wrong too.
func (t *Topic[M]) check(b *Bus) error {
	switch {
	case t == nil:
		return fmt.Errorf("topic is nil")
	case t.err != nil:
		return t.err
	}
	if c, ok := t.codec(b).(interface{ CheckType(reflect.Type) error }); ok && !b.values && t.read == nil {
		if err := c.CheckType(reflect.TypeFor[M]()); err != nil {
			return fmt.Errorf("topic %s: %w", t.name, err)
		}
	}
	return nil
}

func (t *Topic[M]) codec(b *Bus) Codec {
	if t.cfg.codec != nil {
		return t.cfg.codec
	}
	return b.cfg.codec
}

// TopicOption is an option of [NewTopic].
type TopicOption interface{ applyTopic(*topicConfig) }

type topicConfig struct {
	codec   Codec
	also    []Codec
	key     any // a func(M) string
	version int
	dedup   time.Duration
	upcasts []upcast
	err     error
}

func (c *topicConfig) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}

type topicOption func(*topicConfig)

func (o topicOption) applyTopic(c *topicConfig) { o(c) }

// WithKeyFunc derives the key of a message from its value, unless [WithKey]
// gives one. Messages with equal keys keep their order. M must be the topic's type.
func WithKeyFunc[M any](key func(M) string) TopicOption {
	return topicOption(func(c *topicConfig) {
		c.key = key
		if key == nil {
			c.key, c.err = nil, fmt.Errorf("WithKeyFunc: the function is nil")
		}
	})
}

// WithVersion says which version of the topic's schema the producers of this
// program write, 1 or more. It travels with each message and arrives as
// [Message].Version; without this option that is 0.
func WithVersion(n int) TopicOption {
	return topicOption(func(c *topicConfig) {
		c.version = n
		if n < 1 {
			c.err = fmt.Errorf("WithVersion(%d): versions begin at 1", n)
		}
	})
}
