package memstream

import (
	"errors"
	"fmt"
	"time"
)

// Option is an option of [New].
type Option func(*config)

type config struct {
	maxMessages int
	maxBytes    int
	maxAge      time.Duration
	full        Full
	lease       time.Duration
	values      bool
	life        uint64 // tells positions of this transport from those of others
}

func defaults() config {
	return config{maxMessages: 1 << 16, maxBytes: 64 << 20, full: Block, lease: 30 * time.Second}
}

// WithMaxMessages bounds the messages a topic keeps; the default is 65,536. A
// group may hold as many again that left the log before it settled them.
func WithMaxMessages(n int) Option { return func(c *config) { c.maxMessages = n } }

// WithMaxBytes bounds the bytes a topic keeps, counted as [transport.Message.Size]
// does; the default is 64 MiB. A message larger than that is refused.
func WithMaxBytes(n int) Option { return func(c *config) { c.maxBytes = n } }

// WithMaxAge drops messages older than d, by their Time, whether or not
// everybody has been given them; who was not is told by a [transport.LostError].
// By default age does not matter.
func WithMaxAge(d time.Duration) Option {
	return func(c *config) {
		c.maxAge = d
		if d == 0 {
			c.maxAge = -1 // an age of nothing is a mistake, not a default
		}
	}
}

// WithFull says what happens to a message for which a topic has no room
// because some group or broadcast subscription has yet to be given the oldest
// one. The default is [Block].
func WithFull(f Full) Option { return func(c *config) { c.full = f } }

// WithLease sets the lease of subscriptions that ask for none; the default is 30 s.
func WithLease(d time.Duration) Option { return func(c *config) { c.lease = d } }

// WithValues carries values by reference, without encoding them: every
// subscriber gets the value that was published. What it points to is shared
// by the publisher and all subscribers, so nobody may change it.
func WithValues() Option { return func(c *config) { c.values = true } }

// Full names what a full topic does.
type Full uint8

const (
	Block      Full = iota // the sender waits, as long as its context allows
	Reject                 // the sender gets an error that wraps [transport.ErrFull]
	DropOldest             // the oldest message is dropped; who lost it is told by a [transport.LostError]
)

func (f Full) String() string {
	switch f {
	case Block:
		return "block"
	case Reject:
		return "reject"
	case DropOldest:
		return "drop oldest"
	}
	return fmt.Sprintf("Full(%d)", uint8(f))
}

func (c *config) check() error {
	var errs []error
	if c.maxMessages < 1 {
		errs = append(errs, fmt.Errorf("WithMaxMessages(%d): a topic keeps at least one message", c.maxMessages))
	}
	if c.maxBytes < 1 {
		errs = append(errs, fmt.Errorf("WithMaxBytes(%d): a topic keeps at least one byte", c.maxBytes))
	}
	if c.maxAge < 0 {
		errs = append(errs, errors.New("WithMaxAge: the age must be positive"))
	}
	if c.lease <= 0 {
		errs = append(errs, fmt.Errorf("WithLease(%v): a lease must be positive", c.lease))
	}
	if c.full > DropOldest {
		errs = append(errs, fmt.Errorf("WithFull(%v): no such policy", c.full))
	}
	return errors.Join(errs...)
}
